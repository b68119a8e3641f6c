"""What of a large transfer is done, kept on this machine's disk: after a cut it goes on from there.

One file a transfer, named by source, its version, and target. Lines are appended as parts are committed; a
half-written last line counts for nothing. Who does the transfer holds the file's lock; the kernel drops it
with the process. A second process that does the same at the same time goes without a journal.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.core.log import get_logger
from runtime.core.places import file_cache

_log = get_logger(__name__)

_KEPT_S = 7 * 24 * 3600.0
"""Stores forget begun uploads after a week or so; a journal older than that is of no use."""


@dataclass(frozen=True)
class Sent:
    """A part that the target has."""

    tag: str
    crc32c: int


class Journal:
    """Of one transfer. Thread-safe as far as needed: the writers are one pool, appends are single writes."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        self.upload_id: str | None = None
        self.part_bytes = 0
        self.sent: dict[int, Sent] = {}
        self._is_kept = True
        self._read()

    def _read(self) -> None:
        text = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0).decode(errors="replace")
        for line in text[: text.rfind("\n") + 1].splitlines():
            with suppress(ValueError, KeyError):
                self._take(json.loads(line))
        if text and not text.endswith("\n"):
            # What a killed process left of its last line must not spoil the next one.
            os.write(self._descriptor, b"\n")

    def _take(self, line: dict[str, Any]) -> None:
        if "upload_id" in line:
            self.upload_id, self.part_bytes, self.sent = line["upload_id"], line["part_bytes"], {}
        else:
            self.sent[line["part"]] = Sent(line["tag"], line["crc32c"])

    def begin(self, upload_id: str, part_bytes: int) -> None:
        """A fresh upload: what was sent before counts no more."""
        self._append({"upload_id": upload_id, "part_bytes": part_bytes})

    def add(self, number: int, sent: Sent) -> None:
        """One part is committed."""
        self._append({"part": number, "tag": sent.tag, "crc32c": sent.crc32c})

    def _append(self, line: dict[str, Any]) -> None:
        data = json.dumps(line).encode() + b"\n"
        with suppress(OSError):
            if os.write(self._descriptor, data) == len(data):
                self._take(line)
                return
        # This disk is full, and a journal with a gap must not be believed: the transfer goes on without one.
        _log.warning("%s: cannot be written; when it is cut, the transfer begins again", self._path)
        self.remove()

    def remove(self) -> None:
        """The transfer has ended well."""
        # Once: the next file of this name is another process's.
        if self._is_kept:
            self._is_kept = False
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Drop the lock; the file stays for whoever goes on."""
        os.close(self._descriptor)


def open_journal(source_uri: str, source_version: str | None, target_uri: str) -> Journal | None:
    """The journal of this transfer, locked; None when another process is at it, or none can be kept."""
    name = hashlib.sha256(f"{source_uri}\n{source_version}\n{target_uri}".encode()).hexdigest()[:32]
    path = file_cache() / "transfers" / f"{name}.jsonl"
    try:
        return _open(path)
    except BlockingIOError:
        return None
    except OSError as error:
        _log.warning("%s: %s; when it is cut, the transfer begins again", path, error.strerror)
        return None


def _open(path: Path) -> Journal:
    path.parent.mkdir(parents=True, exist_ok=True)
    # O_APPEND: threads add whole lines.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its owner may have removed it between our open and our lock.
        if not path.exists() or path.stat().st_ino != os.fstat(descriptor).st_ino:
            raise BlockingIOError
        return Journal(path, descriptor)
    except OSError:
        os.close(descriptor)
        raise


def drop_old_journals() -> None:
    """Remove journals that nobody has touched for a week."""
    for path in (file_cache() / "transfers").glob("*.jsonl"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _KEPT_S:
                path.unlink()
