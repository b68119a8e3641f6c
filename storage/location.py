"""A place in a store: join names to it, look, read and write small things. Large things: ``transfer``."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from runtime.core.config import load_spec
from runtime.core.errors import ConfigError, Conflict, Corrupt, NotFound, StorageError
from runtime.core.lookup import load
from storage import address, backends
from storage.backend import Backend, Entry, Part
from storage.patience import Transient, patiently
from storage.workspace import options_for

T = TypeVar("T")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Location:
    """An address with the client that reaches it. Get one from :func:`locate`; ``/`` goes down."""

    backend: Backend
    key: str

    def __truediv__(self, name: str) -> Location:
        return Location(self.backend, f"{self.key}/{name}" if self.key else name)

    def __str__(self) -> str:
        return self.uri

    @property
    def uri(self) -> str:
        """The address, as a person would write it."""
        return self.backend.uri(self.key)

    @property
    def name(self) -> str:
        """The last part."""
        return self.key.rpartition("/")[2]

    def at(self, entry: Entry) -> Location:
        """The place of an entry that a listing of this store gave."""
        return Location(self.backend, entry.key)

    def stat(self) -> Entry | None:
        """The object here, or None."""
        return self._patiently(lambda: self.backend.stat(self.key))

    def find(self) -> list[Entry]:
        """Every object below, at any depth, sorted by key."""
        return self._patiently(lambda: list(self.backend.find(self.key)))

    def folders(self) -> list[str]:
        """Names of the folders directly below."""
        return self._patiently(lambda: self.backend.names(self.key))[0]

    def names(self) -> tuple[list[str], list[Entry]]:
        """Folders and objects directly below."""
        return self._patiently(lambda: self.backend.names(self.key))

    def relative(self, entry: Entry) -> str:
        """An entry's key as seen from here."""
        return entry.key[len(self.key) + 1 :] if self.key else entry.key

    def read_bytes(self) -> bytes:
        """The object's content.

        Raises:
            NotFound: there is none.
        """
        found = self._patiently(self._read)
        if found is None:
            raise NotFound(f"{self.uri}: there is nothing. Check the address.")
        return found

    def read_range(self, start: int, size_bytes: int) -> bytes:
        """``size_bytes`` of the object from ``start`` on, fewer where it ends before; nothing else is read.

        Raises:
            NotFound: there is no object.
        """

        def read() -> bytes | None:
            entry = self.backend.stat(self.key)
            if entry is None:
                return None
            size = max(0, min(size_bytes, entry.size_bytes - start))
            try:
                return b"".join(self.backend.read(entry, start, size)) if size else b""
            except (Conflict, NotFound):
                raise Transient("it is being replaced all the time") from None

        found = self._patiently(read)
        if found is None:
            raise NotFound(f"{self.uri}: there is nothing. Check the address.")
        return found

    def _read(self) -> bytes | None:
        entry = self.backend.stat(self.key)
        if entry is None:
            return None
        try:
            chunks = self.backend.read(entry, 0, entry.size_bytes) if entry.size_bytes else ()
            return Part(1, 0, entry.size_bytes, chunks, entry.crc32c).read()
        except (Conflict, NotFound):
            raise Transient("it is being replaced all the time") from None
        except Corrupt as error:
            raise Transient(f"what comes is not what is stored ({error})") from None

    def read_json(self) -> Any:
        """The object's content as JSON, or None when there is no object.

        Raises:
            NotFound: there is not even a bucket.
            StorageError: it is no JSON.
        """
        found = self._patiently(self._read)
        try:
            return None if found is None else json.loads(found)
        except ValueError as error:
            raise StorageError(
                f"{self.uri}: is not JSON ({error}). Somebody else wrote it; move it away."
            ) from None

    def write_bytes(self, data: bytes, *, create_only: bool = False) -> None:
        """Put ``data`` here, all at once.

        Raises:
            Conflict: ``create_only``, and something is here.
        """
        tries = itertools.count(1)

        def attempt() -> None:
            is_first = next(tries) == 1
            try:
                self.backend.write(self.key, _whole(data), create_only=create_only)
            except Conflict:
                # An earlier try may have gone through, and its answer was lost.
                if is_first or not self._holds(data):
                    raise

        self._patiently(attempt)

    def _holds(self, data: bytes) -> bool:
        try:
            return self._read() == data
        except NotFound:
            return False

    def write_json(self, data: Any) -> None:
        """Put ``data`` here as JSON, all at once."""
        self.write_bytes(json.dumps(data, indent=2).encode())

    def delete(self) -> None:
        """Remove the object here; none is no error."""
        self._patiently(lambda: self.backend.delete(self.key))

    def local_path(self) -> Path | None:
        """The file on this machine, where the store is a folder of it."""
        return self._patiently(lambda: self.backend.local_path(self.key))

    def attempt(self, action: Callable[[], T]) -> T:
        """``action`` on this place, tried again while its fault may pass."""
        return self._patiently(action)

    def _patiently(self, action: Callable[[], T]) -> T:
        return patiently(action, self.uri)


def _whole(data: bytes) -> Part:
    return Part(number=1, offset=0, size_bytes=len(data), chunks=[data])


def locate(text: str, *, field: str = "the address") -> Location:
    """The place at a URI or a path, with the settings of the workspace config.

    Raises:
        ConfigError: the address is malformed, no backend knows its scheme, or its settings are wrong.
        Denied: there are no credentials for it.
    """
    found = address.parse(text, field=field)
    module = load(backends, found.scheme, field=f"{field} {found.uri!r}: its scheme")
    options = options_for(found.uri)
    try:
        load_spec(module.Options, options)
    except ConfigError as error:
        raise ConfigError(f"workspace config, settings for {found.uri}: {error}") from None
    return Location(
        _connected(found.scheme, found.root, json.dumps(options, sort_keys=True), os.getpid()), found.key
    )


# By process: connections must not be shared across a fork.
@cache
def _connected(scheme: str, root: str, options: str, pid: int) -> Backend:
    module = load(backends, scheme, field="scheme")
    backend: Backend = module.connect(root, json.loads(options))
    return backend


def side_by_side(action: Callable[[Item], T], items: Iterable[Item]) -> list[T]:
    """``action`` for every item, several at a time: a store's answer takes much longer than the work."""
    todo = list(items)
    if len(todo) < 2:
        return [action(item) for item in todo]
    pool = ThreadPoolExecutor(8)
    try:
        # Threads do not inherit context variables: our patience is one.
        futures = [pool.submit(copy_context().run, action, item) for item in todo]
        return [future.result() for future in futures]
    finally:
        # After a fault the others are not begun: each would wait as long for the same store.
        pool.shutdown(cancel_futures=True)


def delete_all(places: Iterable[Location]) -> None:
    """Remove many objects."""
    side_by_side(Location.delete, places)
