"""What a store must be able to do: the few operations behind every address, one attempt each.

A backend tries once and says what happened in our own errors; trying again is ``patience``'s business, and
splitting files into parts is ``transfer``'s. To add a URI scheme, add ``storage/backends/<scheme>.py`` with
``Options`` (a config model) and ``connect(root, options)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import crc32c

from runtime.core.config import ConfigModel
from runtime.core.errors import Corrupt

CHUNK_BYTES = 512 << 10
"""How much is read, hashed and handed on at a time: it stays in a core's cache. 1 MiB does not on a busy
machine, and local copies then take three times as long (measured)."""


class Options(ConfigModel):
    """Settings of one scheme, given for a URI prefix in the workspace config. Never a secret."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object or file, as its store describes it."""

    key: str
    """Its full name below the backend's root."""

    size_bytes: int
    """Its length."""

    version: str | None
    """Changes whenever the content does: a generation, an ETag, a time of change."""

    crc32c: int | None
    """CRC-32C of the whole content, where the store keeps one."""

    modified_s: float
    """Seconds since 1970."""


def is_folder_marker(key: str) -> bool:
    """Whether it is the empty object that web consoles make for a folder: no listing shows it."""
    return key.endswith("/")


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An upload that was begun and has neither been finished nor given up."""

    key: str
    upload_id: str
    began_s: float
    """Seconds since 1970."""


@dataclass
class Part:
    """A piece of a file on its way: its bytes are summed as they pass, anew whenever they are taken."""

    number: int
    """From 1, in order."""

    offset: int
    """Where it begins in the file."""

    size_bytes: int
    chunks: Iterable[bytes]
    wanted_crc32c: int | None = None
    """What it must sum up to, where that is known; else it is not compared."""
    crc32c: int = field(default=0, init=False)
    """CRC-32C of what has passed so far."""

    def __iter__(self) -> Iterator[bytes]:
        """The chunks.

        Raises:
            Corrupt: at the end, when they sum up to something else than wanted.
        """
        self.crc32c = 0
        for chunk in self.chunks:
            self.crc32c = crc32c.crc32c(chunk, self.crc32c)
            yield chunk
        if self.wanted_crc32c not in (None, self.crc32c):
            raise Corrupt(f"the sum is {self.crc32c:08x} and should be {self.wanted_crc32c:08x}")

    def read(self) -> bytes:
        """All of it. A single chunk is passed on without a copy."""
        pieces = list(self)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Backend(ABC):
    """One bucket, or one file system. Keys have no leading slash, but for files, whose keys are paths.

    Every method raises ``NotFound``, ``Denied``, ``Conflict``, ``NoSpace`` or another ``StorageError`` for
    what will not change by itself, and ``patience.Transient`` for what may pass.
    """

    scheme: ClassVar[str]

    is_local: ClassVar[bool] = False
    """Whether bytes move at memory speed: no use for many requests at a time."""

    shared: ClassVar[bool] = True
    """Whether other processes see the same content."""

    stat_tells_more: ClassVar[bool] = False
    """Whether ``stat`` knows a checksum that listings leave out. ``read`` of a whole object compares it."""

    min_part_bytes: ClassVar[int] = 8 << 20
    """Smallest part of a large file. Small ones cost less processor time than large ones (measured)."""

    @abstractmethod
    def uri(self, key: str) -> str:
        """The full address of ``key``, as a person would write it."""

    @abstractmethod
    def find(self, key: str) -> Iterator[Entry]:
        """Every object below the folder ``key``, at any depth, sorted by key. Nothing: an empty iterator."""

    @abstractmethod
    def names(self, key: str) -> tuple[list[str], list[Entry]]:
        """Sub-folders (their last names) and objects directly in the folder ``key``, each sorted."""

    @abstractmethod
    def stat(self, key: str) -> Entry | None:
        """The object ``key``, or None when there is none (a folder is none)."""

    @abstractmethod
    def read(self, entry: Entry, start: int, size_bytes: int) -> Iterator[bytes]:
        """``size_bytes`` bytes of ``entry`` from ``start``, in chunks; of that version and no other.

        Fewer bytes than asked for are a ``Transient``; the caller need not count. An object that was replaced
        meanwhile is a ``Conflict`` or ``NotFound``.
        """

    @abstractmethod
    def write(self, key: str, part: Part, *, create_only: bool) -> None:
        """Put one small object in its place, all at once; verified by the store, or by us.

        Raises:
            Conflict: ``create_only``, and ``key`` exists.
        """

    def write_unsynced(self, key: str, part: Part) -> None:
        """Like ``write``, but what it wrote may not survive a loss of power before ``sync``."""
        self.write(key, part, create_only=False)

    @abstractmethod
    def begin(self, key: str, size_bytes: int) -> str:
        """Begin the upload of a large object; its id."""

    @abstractmethod
    def send(self, key: str, upload_id: str, part: Part) -> str:
        """Send one part, verified; the tag that ``finish`` wants."""

    @abstractmethod
    def knows(self, key: str, upload_id: str) -> bool:
        """Whether an upload that an earlier process began can go on."""

    def holds(self, key: str, upload_id: str, part: Part) -> bool:
        """Whether a part that an earlier process sent is whole. Object stores verified it when it came."""
        return True

    @abstractmethod
    def finish(self, key: str, upload_id: str, tags: dict[int, str], *, size_bytes: int, crc32c: int) -> None:
        """Make the object visible, all at once.

        Raises:
            NotFound: the store knows the upload no more; it must begin again.
        """

    @abstractmethod
    def give_up(self, key: str, upload_id: str) -> None:
        """Forget a begun upload and free its room."""

    @abstractmethod
    def unfinished(self, key: str) -> Iterator[Unfinished]:
        """Uploads that were begun below the folder ``key``."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove one object. One that is not there is no error."""

    def sync(self, keys: Iterable[str]) -> None:
        """Return when these objects survive a loss of power. Object stores promise that by themselves."""
        return

    def adopt(self, path: Path, key: str) -> bool:
        """Take a finished file of this machine as the object, without copying it; whether that was possible.

        Nobody may change the file afterwards; removing its old name is fine. Only where both are on one file
        system there is such a thing.
        """
        return False

    def local_path(self, key: str) -> Path | None:
        """The file that holds ``key`` on this machine, where there is one."""
        return None

    def remove_empty_folders(self, key: str) -> None:
        """Remove the folder ``key`` and its sub-folders as far as they are empty. Object stores have none."""
        return
