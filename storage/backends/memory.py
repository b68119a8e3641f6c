"""``memory://name``: objects in this process alone, for tests. No other process sees them."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import crc32c

from runtime.core.errors import Conflict, NotFound
from storage import backend
from storage.backend import CHUNK_BYTES, Entry, Part, Unfinished

_STORES: dict[str, Memory] = {}


class Options(backend.Options):
    """Memory needs no settings."""


def connect(root: str, options: Mapping[str, Any]) -> Memory:
    """The store of this name; made when it is asked for the first time."""
    return _STORES.setdefault(root, Memory(root))


class Memory(backend.Backend):
    """A dictionary that behaves like an object store."""

    scheme = "memory"
    is_local = True
    shared = False

    def __init__(self, root: str) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[Entry, bytes]] = {}
        self._uploads: dict[str, tuple[Unfinished, bytearray]] = {}
        self._generation = 0

    def uri(self, key: str) -> str:
        return f"memory://{self._root}/{key}".rstrip("/")

    def find(self, key: str) -> Iterator[Entry]:
        prefix = f"{key}/" if key else ""
        with self._lock:
            return iter([self._objects[k][0] for k in sorted(self._objects) if k.startswith(prefix)])

    def names(self, key: str) -> tuple[list[str], list[Entry]]:
        prefix = f"{key}/" if key else ""
        below = [(entry.key[len(prefix) :], entry) for entry in self.find(key)]
        folders = {name.partition("/")[0] for name, _ in below if "/" in name}
        return sorted(folders), [entry for name, entry in below if "/" not in name]

    def stat(self, key: str) -> Entry | None:
        with self._lock:
            found = self._objects.get(key)
        return found[0] if found else None

    def read(self, entry: Entry, start: int, size_bytes: int) -> Iterator[bytes]:
        with self._lock:
            found = self._objects.get(entry.key)
        if found is None or found[0].version != entry.version:
            raise Conflict(f"{self.uri(entry.key)}: was changed while it was read. Try again.")
        for begin in range(start, start + size_bytes, CHUNK_BYTES):
            yield found[1][begin : min(begin + CHUNK_BYTES, start + size_bytes)]

    def write(self, key: str, part: Part, *, create_only: bool) -> None:
        data = part.read()
        with self._lock:
            if create_only and key in self._objects:
                raise Conflict(f"{self.uri(key)} exists already.")
            self._put(key, data)

    def begin(self, key: str, size_bytes: int) -> str:
        upload_id = secrets.token_hex(8)
        with self._lock:
            self._uploads[upload_id] = (Unfinished(key, upload_id, time.time()), bytearray(size_bytes))
        return upload_id

    def send(self, key: str, upload_id: str, part: Part) -> str:
        data = part.read()
        with self._lock:
            self._upload(key, upload_id)[1][part.offset : part.offset + len(data)] = data
        return ""

    def knows(self, key: str, upload_id: str) -> bool:
        return upload_id in self._uploads

    def finish(self, key: str, upload_id: str, tags: dict[int, str], *, size_bytes: int, crc32c: int) -> None:
        with self._lock:
            self._put(key, bytes(self._upload(key, upload_id)[1]))
            del self._uploads[upload_id]

    def give_up(self, key: str, upload_id: str) -> None:
        with self._lock:
            self._uploads.pop(upload_id, None)

    def unfinished(self, key: str) -> Iterator[Unfinished]:
        prefix = f"{key}/" if key else ""
        with self._lock:
            return iter([u for u, _ in self._uploads.values() if u.key.startswith(prefix)])

    def delete(self, key: str) -> None:
        with self._lock:
            self._objects.pop(key, None)

    def _put(self, key: str, data: bytes) -> None:
        self._generation += 1
        entry = Entry(key, len(data), str(self._generation), crc32c.crc32c(data), time.time())
        self._objects[key] = (entry, data)

    def _upload(self, key: str, upload_id: str) -> tuple[Unfinished, bytearray]:
        try:
            return self._uploads[upload_id]
        except KeyError:
            raise NotFound(f"{self.uri(key)}: the upload {upload_id} is not known.") from None
