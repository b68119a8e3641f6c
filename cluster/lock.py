"""An exclusive lock between processes of one machine. Standard library only; local disks only."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(file: Path, *, waiting_for: str) -> Iterator[int]:
    """Hold the lock ``file`` (made when missing); says so on standard error when it must wait.

    Yields:
        The lock's descriptor. A child process that inherits it (``pass_fds``) holds the lock too, so after
        a ``kill -9`` of this process nobody gets the lock while that child still writes.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for another process: {waiting_for}", file=sys.stderr)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
