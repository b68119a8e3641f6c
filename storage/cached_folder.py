"""One folder in the node cache: what it needs, the hard links it is made of, its record and its locks."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.file_lock import FileLock, try_to_hold
from storage.local_files import write_json
from storage.location import Location


@dataclass(frozen=True)
class Wanted:
    """A file that a folder needs, and where it can be had."""

    path: str
    """Its name in the folder."""
    source: Location
    size_bytes: int
    key: str
    """Names the content: its SHA-256, or its address and version where that is not known."""
    sha256: str | None = None
    crc32c: int | None = None


class CachedFolder:
    """A folder that stays as long as this object, or the process, does.

    Use it as a context manager, or keep it for the life of the process that reads the files.
    """

    def __init__(self, path: Path, lock: FileLock | None) -> None:
        self.path = path
        self._lock = lock

    def close(self) -> None:
        """Allow its eviction."""
        if self._lock:
            self._lock.release()

    def __enter__(self) -> CachedFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class View:
    """One folder of hard links, its record and its locks."""

    def __init__(self, root: Path, digest: str) -> None:
        self._stem = root / "folders" / digest
        self.path = self._stem
        self.lock = self._stem.with_suffix(".lock")
        self.build_lock = self._stem.with_suffix(".build")
        self._record = self._stem.with_suffix(".json")

    @property
    def _data(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self._record.read_text()))
        except (OSError, ValueError):
            return {}

    @property
    def is_complete(self) -> bool:
        """Whether it can be used as it is."""
        return bool(self._data.get("complete")) and self.path.is_dir()

    @property
    def label(self) -> str:
        """What it is, for people."""
        return str(self._data.get("label", ""))

    @property
    def keys(self) -> list[str]:
        """The blobs that it needs, one for each of its files."""
        return list(self._data.get("files", {}).values())

    @property
    def size_bytes(self) -> int:
        """Bytes of its files together."""
        return int(self._data.get("size_bytes", 0))

    def write(self, label: str, wanted: Sequence[Wanted], *, complete: bool) -> None:
        """Record what it is to hold; ``complete`` when it does."""
        self._record.parent.mkdir(parents=True, exist_ok=True)
        files = {file.path: file.key for file in wanted}
        size_bytes = sum(file.size_bytes for file in wanted)
        write_json(
            self._record, {"label": label, "complete": complete, "size_bytes": size_bytes, "files": files}
        )

    def link(self, wanted: Sequence[Wanted], blob: Callable[[str], Path]) -> None:
        """Make the folder of hard links, in one step."""
        scratch = self._stem.with_name(f".{self._stem.name}.{secrets.token_hex(4)}")
        for file in wanted:
            target = scratch / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(blob(file.key), target)
        shutil.rmtree(self.path, ignore_errors=True)
        scratch.rename(self.path)

    def remove_if_unused(self) -> bool:
        """Remove the folder unless somebody uses it; whether it went."""
        lock = try_to_hold(self.lock)
        if lock is None:
            return False
        with lock:
            # The record first: a folder without one is rebuilt, a record without a folder would be believed.
            self._record.unlink(missing_ok=True)
            shutil.rmtree(self.path, ignore_errors=True)
            self.build_lock.unlink(missing_ok=True)
            self.lock.unlink(missing_ok=True)
        return True


def digest_of(wanted: Sequence[Wanted]) -> str:
    """Names a folder by the names and contents of its files."""
    digest = hashlib.sha256()
    for file in sorted(wanted, key=lambda file: file.path):
        digest.update(f"{file.key}  {file.path}\n".encode())
    return digest.hexdigest()[:32]
