"""A run's metrics as they come: lines of JSON that anybody can read while one process adds to them.

On a file system a line is appended at once. Object stores cannot append: there the whole (small) object is
written again every few seconds, in a thread of its own, so that training never waits for a store.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from runtime.core.errors import NotFound, StorageError
from runtime.core.log import get_logger
from storage.backends.file import translate
from storage.location import Location

_log = get_logger(__name__)

_EVERY_S = 2.0
"""Google Cloud Storage takes one change a second of the same object."""
_SHARE = 0.05
"""At most so much of the time is spent writing, however long the log grows."""


def read_metrics(place: Location) -> list[dict[str, Any]]:
    """The lines so far, oldest first; one that is still being written is left out."""
    try:
        text = place.read_bytes().decode()
    except NotFound:
        return []
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


class MetricsLog:
    """The one writer of a run's ``metrics.jsonl``."""

    def __init__(self, place: Location) -> None:
        self._place = place
        self._path = place.local_path()
        # On a file system: those that wait. On an object store: all.
        self._lines = [json.dumps(line) for line in read_metrics(place)] if self._path is None else []
        self._written = len(self._lines)
        if self._path is not None:
            self._drop_half_line()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep_writing, name="metrics", daemon=True)
        if self._path is None:
            self._thread.start()

    def append(self, values: dict[str, Any]) -> None:
        """Add one line; a store that does not take it now gets it together with a later one."""
        with self._lock:
            self._lines.append(json.dumps(values))
        if self._path is not None:
            self._flush_if_possible()

    def forget_after(self, step: int) -> None:
        """Drop the lines of later steps: a resumed run does them again, and none is counted twice."""
        known = read_metrics(self._place) if self._path else []
        known += [json.loads(line) for line in self._lines]
        kept = [json.dumps(line) for line in known if line["step"] <= step]
        if len(kept) == len(known):
            return
        with self._lock:
            self._lines = kept
            self._write()
        if self._path is not None:
            self._lines = []

    def flush(self) -> None:
        """Return when every line so far is in the store.

        Raises:
            StorageError: it cannot be written.
        """
        with self._lock:
            if self._path is not None:
                self._append_waiting(self._path)
            elif self._written != len(self._lines):
                self._write()

    def close(self) -> None:
        """Write what is left. A store that fails now costs these lines and no more; the log tells."""
        self._closing.set()
        if self._path is None:
            self._thread.join()
        try:
            self.flush()
        except StorageError:
            _log.exception("the last metrics could not be written")

    def _flush_if_possible(self) -> None:
        try:
            self.flush()
        except StorageError as error:
            # Training goes on; the lines stay, and the next attempt writes them all.
            _log.warning("metrics: %s", error)

    def _drop_half_line(self) -> None:
        """What a killed writer left of its last line would spoil the next one."""
        try:
            data = self._place.read_bytes()
        except NotFound:
            return
        if data and not data.endswith(b"\n"):
            self._place.write_bytes(data[: data.rfind(b"\n") + 1])

    def _append_waiting(self, path: Path) -> None:
        if self._lines:
            data = "".join(f"{line}\n" for line in self._lines).encode()
            self._place.attempt(lambda: _append(path, data))
            self._lines = []

    def _keep_writing(self) -> None:
        pause_s = _EVERY_S
        while not self._closing.wait(pause_s):
            began_s = time.monotonic()
            self._flush_if_possible()
            pause_s = max(_EVERY_S, (time.monotonic() - began_s) / _SHARE)

    def _write(self) -> None:
        self._place.write_bytes("".join(f"{line}\n" for line in self._lines).encode())
        self._written = len(self._lines)


def _append(path: Path, data: bytes) -> None:
    """Add all of ``data`` to the file, or nothing."""
    try:
        with path.open("ab", buffering=0) as file:
            whole = file.tell()
            try:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(whole)
                raise
    except OSError as error:
        raise translate(error, str(path)) from None
