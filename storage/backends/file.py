"""``file://`` and plain paths: a folder of this machine, or a mount (NFS, Lustre) that every node has.

The rules that hold on NFS without exact semantics: a temporary file in the same folder, fsync, then rename
or link; never a lock on the store; a repeated request (the answer to the first was lost) may report ENOENT
or EEXIST for what was done, so the result is looked at; a stale handle (ESTALE) means: open again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from runtime.core.errors import Conflict, Corrupt, Denied, NoSpace, NotFound, StorageError
from storage import backend
from storage.backend import CHUNK_BYTES, Entry, Part, Unfinished
from storage.patience import Transient

_PREFIX, _SUFFIX = ".tandem-", ".tmp"
"""What is between these, and after the target's name, is an upload id. No listing shows such files."""

_PASSING = {errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.EBUSY}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


class Options(backend.Options):
    """A folder needs no settings."""


def connect(root: str, options: Mapping[str, Any]) -> File:
    """The file system of this machine."""
    return File()


class File(backend.Backend):
    """This machine's file system; keys are absolute paths."""

    scheme = "file"
    is_local = True

    def uri(self, key: str) -> str:
        return key

    def find(self, key: str) -> Iterator[Entry]:
        found: list[Entry] = []
        with _translated(key):
            for folder, _, files in os.walk(key, onerror=_raise_but_missing, followlinks=True):
                for name in files:
                    if not _is_temporary(name) and (entry := self._stat(os.path.join(folder, name))):
                        found.append(entry)
        return iter(sorted(found, key=lambda entry: entry.key))

    def names(self, key: str) -> tuple[list[str], list[Entry]]:
        folders, files = [], []
        with _translated(key), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for name in sorted(os.listdir(key)):
                path = os.path.join(key, name)
                found = _found(path)
                if found and stat.S_ISDIR(found.st_mode):
                    folders.append(name)
                elif found and stat.S_ISREG(found.st_mode) and not _is_temporary(name):
                    files.append(_entry(path, found))
        return folders, files

    def stat(self, key: str) -> Entry | None:
        with _translated(key):
            return self._stat(key)

    def _stat(self, key: str) -> Entry | None:
        found = _found(key)
        return _entry(key, found) if found and stat.S_ISREG(found.st_mode) else None

    def read(self, entry: Entry, start: int, size_bytes: int) -> Iterator[bytes]:
        with _translated(entry.key):
            descriptor = os.open(entry.key, os.O_RDONLY)
            try:
                if _version(os.fstat(descriptor)) != entry.version:
                    raise Conflict(
                        f"{entry.key}: was changed while it was read. Let nobody write there meanwhile, and "
                        "try again."
                    )
                end = start + size_bytes
                while start < end:
                    chunk = os.pread(descriptor, min(CHUNK_BYTES, end - start), start)
                    if not chunk:
                        raise Transient(f"the file ends {end - start} bytes too early")
                    start += len(chunk)
                    yield chunk
            finally:
                os.close(descriptor)

    def write(self, key: str, part: Part, *, create_only: bool) -> None:
        self._write(key, part, create_only=create_only, synced=True)

    def write_unsynced(self, key: str, part: Part) -> None:
        self._write(key, part, create_only=False, synced=False)

    def _write(self, key: str, part: Part, *, create_only: bool, synced: bool) -> None:
        with _translated(key):
            temporary = self._new_temporary(key)
            try:
                with open(temporary, "wb") as file:
                    file.writelines(part)
                    file.flush()
                    if synced:
                        os.fsync(file.fileno())
                if create_only:
                    _link(temporary, key)
                else:
                    _rename(temporary, key)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)

    def begin(self, key: str, size_bytes: int) -> str:
        with _translated(key):
            temporary = self._new_temporary(key)
            room = os.statvfs(os.path.dirname(temporary))
            if room.f_bavail * room.f_frsize < size_bytes:
                raise OSError(errno.ENOSPC, "too little room")
            with open(temporary, "wb") as file:
                file.truncate(size_bytes)
            return os.path.basename(temporary).rpartition(_PREFIX)[2].removesuffix(_SUFFIX)

    def send(self, key: str, upload_id: str, part: Part) -> str:
        with _translated(key):
            descriptor = os.open(_temporary(key, upload_id), os.O_WRONLY)
            try:
                offset = part.offset
                for chunk in part:
                    view = memoryview(chunk)
                    while view:
                        written = os.pwrite(descriptor, view, offset)
                        offset, view = offset + written, view[written:]
            finally:
                os.close(descriptor)
        return ""

    def knows(self, key: str, upload_id: str) -> bool:
        return self.stat(_temporary(key, upload_id)) is not None

    def holds(self, key: str, upload_id: str, part: Part) -> bool:
        # A loss of power keeps the journal and loses the bytes: they are read again.
        with _translated(key):
            descriptor = os.open(_temporary(key, upload_id), os.O_RDONLY)
            try:
                part.chunks = _pread(descriptor, part.offset, part.size_bytes)
                for _ in part:
                    pass
            except Corrupt:
                return False
            finally:
                os.close(descriptor)
        return True

    def finish(self, key: str, upload_id: str, tags: dict[int, str], *, size_bytes: int, crc32c: int) -> None:
        with _translated(key):
            temporary = _temporary(key, upload_id)
            found = os.stat(temporary).st_size
            if found != size_bytes:
                raise StorageError(
                    f"{key}: {found} of {size_bytes} bytes were written. Nothing was kept; try again."
                )
            _rename(temporary, key)

    def give_up(self, key: str, upload_id: str) -> None:
        with _translated(key), contextlib.suppress(FileNotFoundError):
            os.unlink(_temporary(key, upload_id))

    def unfinished(self, key: str) -> Iterator[Unfinished]:
        with _translated(key):
            for folder, _, files in os.walk(key):
                for name in filter(_is_temporary, files):
                    with contextlib.suppress(FileNotFoundError):
                        began_s = os.stat(os.path.join(folder, name)).st_mtime
                        target, _, upload_id = name.removesuffix(_SUFFIX)[1:].rpartition(_PREFIX)
                        yield Unfinished(os.path.join(folder, target), upload_id, began_s)

    def delete(self, key: str) -> None:
        with _translated(key), contextlib.suppress(FileNotFoundError):
            os.unlink(key)

    def sync(self, keys: Iterable[str]) -> None:
        folders = set()
        for key in keys:
            with _translated(key):
                _fsync(key)
            folders.add(os.path.dirname(key))
        for folder in sorted(folders):
            # Some file systems know no fsync of a folder; their renames are durable or nothing helps.
            with contextlib.suppress(OSError):
                _fsync(folder)

    def adopt(self, path: Path, key: str) -> bool:
        with _translated(key):
            temporary = self._new_temporary(key)
            try:
                os.link(path, temporary)
            except OSError:
                # Another device, no links there, too many of them: it is copied.
                return False
            try:
                os.replace(temporary, key)
            finally:
                # Two names of one file are not replaced: the second one stays.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)
        return True

    def local_path(self, key: str) -> Path | None:
        return Path(key)

    def remove_empty_folders(self, key: str) -> None:
        for folder, _, _ in os.walk(key, topdown=False):
            # Not empty, or gone already: both are fine.
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    def _new_temporary(self, key: str) -> str:
        os.makedirs(os.path.dirname(key), exist_ok=True)
        return _temporary(key, secrets.token_hex(8))


def _temporary(key: str, upload_id: str) -> str:
    folder, name = os.path.split(key)
    return os.path.join(folder, f".{name}{_PREFIX}{upload_id}{_SUFFIX}")


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(_SUFFIX) and _PREFIX in name


def _found(path: str) -> os.stat_result | None:
    # Not os.path.isfile and isdir: they take every fault, a stale handle too, for "there is nothing".
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _entry(key: str, found: os.stat_result) -> Entry:
    return Entry(key, found.st_size, _version(found), None, found.st_mtime)


def _version(found: os.stat_result) -> str:
    return f"{found.st_mtime_ns}-{found.st_size}"


def _pread(descriptor: int, start: int, size_bytes: int) -> Iterator[bytes]:
    end = start + size_bytes
    while start < end and (chunk := os.pread(descriptor, min(CHUNK_BYTES, end - start), start)):
        start += len(chunk)
        yield chunk


def _link(temporary: str, key: str) -> None:
    """Give the file its name unless the name is taken; link(2) is atomic on NFS too."""
    try:
        os.link(temporary, key)
    except FileExistsError:
        # A repeated request reports EEXIST although the first one made the link: two names say so.
        if os.stat(temporary).st_nlink < 2:
            raise


def _rename(temporary: str, key: str) -> None:
    wanted = os.stat(temporary).st_ino
    try:
        os.replace(temporary, key)
    except FileNotFoundError:
        # A repeated request finds nothing to rename; whether the first one did it, the target tells.
        if os.stat(key).st_ino != wanted:
            raise


def _fsync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _raise_but_missing(error: OSError) -> None:
    """A folder that is not there, or goes while it is walked, has nothing in it."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


@contextlib.contextmanager
def _translated(key: str) -> Iterator[None]:
    """The operating system's errors in our own words."""
    try:
        yield
    except OSError as error:
        raise translate(error, key) from None


def translate(error: OSError, path: str) -> Exception:
    """What an ``OSError`` at ``path`` means for whoever stores something there."""
    said = error.strerror or str(error)
    if error.errno in _PASSING:
        return Transient(said)
    if error.errno in _FULL:
        return NoSpace(
            f"{path}: the disk or the quota is full ({said}). Free some room there, and try again."
        )
    if error.errno in _DENIED:
        return Denied(f"{path}: {said}. Choose a place that you may write, or change its rights.")
    if error.errno == errno.EEXIST:
        return Conflict(f"{path} exists already.")
    if error.errno == errno.ENOENT:
        return NotFound(f"{path}: there is no such file. Check the path.")
    return StorageError(f"{path}: {said}. Check the disk or the mount.")
