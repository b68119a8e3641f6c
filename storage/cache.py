"""The node cache: each content once on a node's disk, for training and serving and all their processes.

::

    blobs/<key>           a file's content, read-only, named by its SHA-256 (or its address and version)
    folders/<digest>/     a folder as its users want it: hard links to blobs
    folders/<digest>.json what it is and which blobs it needs
    folders/<digest>.lock held, shared, by every process that uses the folder: nothing held is evicted
    incoming/             downloads on their way; a killed one is taken up again

All locks are flock(2) on this disk, which the kernel drops when their holder dies.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from runtime.core.errors import Corrupt, NoSpace, NotFound, StorageError
from runtime.core.log import get_logger
from runtime.core.places import file_cache
from storage import last_known
from storage.backend import Entry
from storage.backends.file import translate
from storage.cached_folder import CachedFolder, View, Wanted, digest_of
from storage.file_lock import FileLock, hold, try_to_hold
from storage.journal import drop_old_journals
from storage.local_files import sha256_of
from storage.location import Location, locate
from storage.manifest import FileEntry
from storage.transfer import Copy, Progress, copy_all
from storage.workspace import workspace

_log = get_logger(__name__)

_ABANDONED_S = 24 * 3600.0
"""A download that nobody has gone on with for so long is removed when the cache is trimmed."""

_RECORD_BYTES = 1 << 20
"""More than a folder's record, its locks and a journal take."""


@dataclass(frozen=True)
class Held:
    """One folder in the cache, as ``tandem storage cache`` shows it."""

    label: str
    size_bytes: int
    last_used_s: float
    in_use: bool
    path: Path


class NodeCache:
    """The cache below ``root``. Get this node's from :func:`node_cache`."""

    def __init__(self, root: Path, max_bytes: int | None = None) -> None:
        self.root = root
        self._max_bytes = max_bytes

    @property
    def max_bytes(self) -> int:
        """The budget: what was asked for, else half of the disk."""
        if self._max_bytes is not None:
            return self._max_bytes
        self.root.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.root).total // 2

    def folder(
        self, wanted: Sequence[Wanted], *, label: str, progress: Progress | None = None
    ) -> CachedFolder:
        """A folder of these files, brought here once however many ask.

        Raises:
            NoSpace: the budget or the disk cannot hold it beside what is in use.
            StorageError: a file could not be had; nothing half-done is visible.
        """
        view = View(self.root, digest_of(wanted))
        try:
            return CachedFolder(view.path, self._held(view, wanted, label, progress))
        except OSError as error:
            fault = translate(error, str(self.root))
            if isinstance(fault, StorageError):
                raise fault from None
            raise StorageError(f"{self.root}: {fault}. Check the disk, or set TANDEM_FILE_CACHE.") from None

    def _held(self, view: View, wanted: Sequence[Wanted], label: str, progress: Progress | None) -> FileLock:
        """The lock of a complete folder."""
        lock = hold(view.lock, shared=True)
        try:
            if not view.is_complete:
                with hold(view.build_lock):
                    if not view.is_complete:
                        self._build(view, wanted, label, progress)
            os.utime(view.lock)
        except BaseException:
            lock.release()
            raise
        return lock

    def _build(self, view: View, wanted: Sequence[Wanted], label: str, progress: Progress | None) -> None:
        if shutil.disk_usage(self.root).free < _RECORD_BYTES:
            # On a full disk not even the record of what is wanted could be written.
            self._make_room(_RECORD_BYTES)
        # Not while somebody evicts; afterwards who evicts sees which blobs are awaited.
        with hold(self._evicting, shared=True):
            view.write(label, wanted, complete=False)
        by_key = {file.key: file for file in wanted}
        with ExitStack() as locks:
            # In one order, so that two builders with common files cannot wait for each other.
            for key in sorted(by_key):
                locks.enter_context(hold(self.root / "locks" / key))
            missing = [file for key, file in by_key.items() if not self._blob(key).exists()]
            linked = {file.key for file in missing if self._link_in(file)}
            fetched = [file for file in missing if file.key not in linked]
            if fetched:
                self._make_room(sum(file.size_bytes for file in fetched))
                self._fetch(fetched, progress)
            # Not while somebody sweeps: a folder that is being made looks like one that was left.
            with hold(self._evicting, shared=True):
                view.link(wanted, self._blob)
                view.write(label, wanted, complete=True)

    def _link_in(self, file: Wanted) -> bool:
        """Take a file of a store on this very disk by hard link: no byte is moved."""
        with suppress(OSError, NotFound):
            path = file.source.local_path()
            if path is None or path.stat().st_dev != self._device or path.stat().st_size != file.size_bytes:
                return False
            if file.sha256 and sha256_of(path) != file.sha256:
                raise Corrupt(
                    f"{file.source}: its content does not match its checksum. The stored file is damaged: "
                    "publish it again, or copy it from another store."
                )
            self._blob(file.key).parent.mkdir(parents=True, exist_ok=True)
            os.link(path, self._blob(file.key))
            # Whoever writes into the folder would write into the store. Not ours to change: then it stays.
            with suppress(OSError):
                path.chmod(0o444)
            return True
        return False

    def _fetch(self, files: list[Wanted], progress: Progress | None) -> None:
        copies = []
        for file in files:
            entry = file.source.stat()
            if entry is None or entry.size_bytes != file.size_bytes:
                raise StorageError(
                    f"{file.source}: is gone or was changed, though it is immutable. Publish it again under "
                    "another version."
                )
            copies.append(Copy(file.source, entry, self._incoming(file.key), crc32c=file.crc32c))
        copy_all(copies, progress=progress)
        for file in files:
            self._take_in(file)

    def _take_in(self, file: Wanted) -> None:
        path = Path(self._incoming(file.key).key)
        if file.crc32c is None and file.sha256 and sha256_of(path) != file.sha256:
            path.unlink()
            raise Corrupt(
                f"{file.source}: its content does not match its checksum. The stored file is damaged; "
                "nothing was kept. Publish it again, or copy it from another store."
            )
        path.chmod(0o444)
        # A loss of power must not leave a blob of the right length and no content.
        with path.open("rb") as opened:
            os.fsync(opened.fileno())
        self._blob(file.key).parent.mkdir(parents=True, exist_ok=True)
        path.rename(self._blob(file.key))

    def _incoming(self, key: str) -> Location:
        return locate(str(self.root / "incoming" / key))

    def _blob(self, key: str) -> Path:
        return self.root / "blobs" / key[:2] / key

    @property
    def _evicting(self) -> Path:
        return self.root / "evict.lock"

    @cached_property
    def _device(self) -> int:
        self.root.mkdir(parents=True, exist_ok=True)
        return self.root.stat().st_dev

    # what is kept, and what goes

    def held(self) -> list[Held]:
        """Every complete folder, the least recently used first."""
        found = []
        for view in self._views():
            if view.is_complete:
                lock = try_to_hold(view.lock)
                in_use = lock is None
                last_used_s = view.lock.stat().st_mtime
                if lock:
                    lock.release()
                found.append(Held(view.label, view.size_bytes, last_used_s, in_use, view.path))
        return sorted(found, key=lambda one: one.last_used_s)

    def used_bytes(self) -> int:
        """Bytes that only the cache holds: blobs that a store on this disk has too cost nothing."""
        links: dict[str, int] = {}
        for view in self._views():
            for key in view.keys if view.is_complete else ():
                links[key] = links.get(key, 0) + 1
        total = 0
        for blob in self._blobs():
            with suppress(FileNotFoundError):
                found = blob.stat()
                total += 0 if found.st_nlink > 1 + links.get(blob.name, 0) else found.st_size
        return total

    def trim(self, max_bytes: int) -> int:
        """Evict the least recently used folders that nobody uses until at most ``max_bytes`` are left.

        Returns:
            Bytes that were freed.
        """
        with hold(self._evicting):
            before = self.used_bytes()
            self._sweep()
            views = sorted(
                (v for v in self._views() if v.lock.exists()), key=lambda v: v.lock.stat().st_mtime
            )
            for view in views:
                # 0 means all, also what costs nothing because a store on this disk has it too.
                if max_bytes and self.used_bytes() <= max_bytes:
                    break
                if view.remove_if_unused():
                    _log.info("evicted %s", view.label)
                    self._drop_orphans()
            return before - self.used_bytes()

    def _make_room(self, needed_bytes: int) -> None:
        used, free = self.used_bytes(), shutil.disk_usage(self.root).free
        too_much = max(used + needed_bytes - self.max_bytes, needed_bytes - free)
        if too_much <= 0:
            return
        # What cannot work evicts nothing.
        freed = self.trim(used - too_much) if too_much <= used else 0
        if freed < too_much:
            in_use = ", ".join(held.label for held in self.held() if held.in_use) or "nothing"
            raise NoSpace(
                f"the node cache {self.root} has no room for {needed_bytes:,} bytes more: it may hold "
                f"{self.max_bytes:,} and holds {used:,}, its disk has {free:,} free, and what is in use "
                f"stays ({in_use}). Free some room, raise cache.max_bytes in the workspace config, or set "
                "TANDEM_FILE_CACHE to a folder on a larger disk."
            )

    def _sweep(self) -> None:
        """Remove what killed processes left: folders never finished, downloads that nobody goes on with."""
        drop_old_journals()
        for view in self._views():
            if not view.is_complete:
                view.remove_if_unused()
        for path in (self.root / "folders").glob(".*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        self._drop_orphans()
        for path in (self.root / "incoming").glob("*"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _ABANDONED_S:
                    path.unlink()

    def _awaited(self) -> set[str]:
        return {key for view in self._views() for key in view.keys}

    def _drop_orphans(self) -> None:
        awaited = self._awaited()
        for blob in self._blobs():
            if blob.name not in awaited:
                blob.unlink(missing_ok=True)
                (self.root / "locks" / blob.name).unlink(missing_ok=True)

    def _blobs(self) -> Iterable[Path]:
        return (self.root / "blobs").glob("*/*")

    def _views(self) -> list[View]:
        records = (self.root / "folders").glob("*.json")
        return [View(self.root, record.stem) for record in records if not record.name.startswith(".")]


def node_cache() -> NodeCache:
    """The cache of this node: ``$TANDEM_FILE_CACHE``, with the workspace config's budget."""
    return NodeCache(file_cache(), workspace().cache.max_bytes)


def wanted_of(files: Iterable[FileEntry], place: Location) -> list[Wanted]:
    """What the cache must bring for a manifest's files, which lie below ``place``."""
    return [
        Wanted(f.path, place / f.path, f.size_bytes, f.sha256, sha256=f.sha256, crc32c=f.crc32c_number)
        for f in files
    ]


def wanted_below(place: Location) -> list[Wanted]:
    """What the cache must bring for a folder without a manifest: every object, as it is or was last seen."""
    listed = last_known.answer(f"{place.uri}/*", lambda: [asdict(entry) for entry in place.find()] or None)
    return [_wanted(place, Entry(**entry)) for entry in listed or ()]


def _wanted(place: Location, entry: Entry) -> Wanted:
    mark = f"{place.at(entry)} {entry.version} {entry.size_bytes}"
    key = f"at-{hashlib.sha256(mark.encode()).hexdigest()}"
    return Wanted(place.relative(entry), place.at(entry), entry.size_bytes, key, crc32c=entry.crc32c)


@contextmanager
def cached(wanted: Sequence[Wanted], *, label: str) -> Iterator[Path]:
    """The folder of these files, in use within the block."""
    with node_cache().folder(wanted, label=label) as folder:
        yield folder.path
