"""flock(2) on this machine's disk: locks that the kernel drops when their holder dies. Never on a store."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from runtime.core.errors import StorageError


class FileLock:
    """A held lock; the file is its name. Other processes find the lock by opening the same path."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Let it go; twice is no error."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


def hold(path: Path, *, shared: bool = False) -> FileLock:
    """Wait for the lock and hold it."""
    found = _lock(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    assert found is not None
    return found


def try_to_hold(path: Path) -> FileLock | None:
    """The exclusive lock, or None when somebody holds it."""
    return _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock(path: Path, how: int) -> FileLock | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, how)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            raise StorageError(
                f"{path}: cannot be locked ({error.strerror}), as on many network mounts. Set "
                "TANDEM_FILE_CACHE to a folder on a disk of this machine."
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        # Whoever held it may have removed the file: then this lock is on a file that nobody finds.
        try:
            is_current = path.stat().st_ino == os.fstat(descriptor).st_ino
        except FileNotFoundError:
            is_current = False
        if is_current:
            return FileLock(descriptor)
        os.close(descriptor)
