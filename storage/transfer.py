"""Files and folders from any place to any other: in parts, side by side, verified, and going on after a cut.

One function does upload, download and copies between stores, since each is the same: read a range of the
source, send it as a part to the target, sum it on the way. A file becomes visible only when it is whole.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from runtime.core.errors import Corrupt, NoSpace, NotFound, StorageError
from runtime.core.log import get_logger
from storage import traffic
from storage.backend import Entry, Part
from storage.crc import combine
from storage.journal import Journal, Sent, open_journal
from storage.location import Location, side_by_side
from storage.patience import patiently

_log = get_logger(__name__)

_MAX_PARTS = 9_000
"""S3 and GCS allow 10,000."""
_MEMORY_BYTES = 128 << 20
"""What the parts in flight may hold together; a process's peak stays below 300 MB above idle."""
_REMOTE_STREAMS = 8

T = TypeVar("T")


class Progress(Protocol):
    """Told how a transfer goes; calls come from several threads."""

    def total(self, size_bytes: int) -> None:
        """So many bytes more will be moved."""

    def advance(self, size_bytes: int) -> None:
        """So many bytes have been moved; negative when a part has to be sent again."""


@dataclass(frozen=True)
class Copy:
    """One file to be moved."""

    source: Location
    entry: Entry
    """What the source is, as its store described it."""
    target: Location
    crc32c: int | None = None
    """What the content must sum up to, where a manifest says so; else what the source's store says."""


def copy_file(source: Location, target: Location, *, progress: Progress | None = None) -> int:
    """Copy one object or file.

    Returns:
        CRC-32C of its content.

    Raises:
        NotFound: the source is not there.
        Corrupt: the bytes do not sum up to what the source's store or a manifest says, twice.
        StorageError: see the tree; nothing is visible at the target.
    """
    entry = source.stat()
    if entry is None:
        raise NotFound(f"{source}: there is no such file. Check the address.")
    return copy_all([Copy(source, entry, target)], progress=progress)[0]


def copy_folder(source: Location, target: Location, *, progress: Progress | None = None) -> list[Entry]:
    """Copy everything below ``source``; a folder's manifest comes after its files.

    Returns:
        The source's entries.

    Raises:
        NotFound: nothing is below ``source``.
    """
    entries = side_by_side(lambda entry: _with_checksum(source, entry), source.find())
    if not entries:
        raise NotFound(
            f"{source}: nothing is there, neither a file nor a folder with files. Check the address."
        )
    last = [entry for entry in entries if entry.key.rpartition("/")[2] == "manifest.json"]
    for group in ([entry for entry in entries if entry not in last], last):
        copy_all([Copy(source.at(e), e, target / source.relative(e)) for e in group], progress=progress)
    return entries


def _with_checksum(source: Location, entry: Entry) -> Entry:
    """The entry with its checksum, where a listing leaves it out; a whole object comes with its own."""
    backend = source.backend
    if not backend.stat_tells_more or entry.size_bytes <= backend.min_part_bytes:
        return entry
    return source.at(entry).stat() or entry


def copy_all(copies: Sequence[Copy], *, progress: Progress | None = None) -> list[int]:
    """Copy many files side by side, large ones in parts; the sums of their contents, in order.

    The first fault ends the others at their next part. What large files have sent by then is remembered on
    this machine, and the same call goes on from there; only where room is missing it makes room.
    """
    if progress:
        progress.total(sum(copy.entry.size_bytes for copy in copies))
    moves = [_Move(copy, progress) for copy in copies]
    try:
        _run([task for move in moves for task in move.tasks()], _streams(moves))
    except NoSpace:
        for move in moves:
            move.give_up()
        raise
    finally:
        for move in moves:
            move.close()
    return [move.crc32c for move in moves]


_Task = Callable[[], None]


def _streams(moves: Iterable[_Move]) -> int:
    """How many parts at a time: as many as the memory bound allows."""
    largest = max((move.part_bytes for move in moves), default=1)
    local = all(m.copy.source.backend.is_local and m.copy.target.backend.is_local for m in moves)
    wanted = min(4, len(os.sched_getaffinity(0))) if local else _REMOTE_STREAMS
    return max(1, min(wanted, _MEMORY_BYTES // largest))


def _run(tasks: Sequence[_Task], streams: int) -> None:
    """Run the tasks; the first fault cancels those that have not begun, and is raised."""
    if len(tasks) == 1:
        tasks[0]()
        return
    stop = threading.Event()

    def guarded(task: _Task) -> None:
        if not stop.is_set():
            task()

    pool = ThreadPoolExecutor(streams, thread_name_prefix="transfer")
    # Threads do not inherit context variables: our patience is one.
    futures: list[Future[None]] = [pool.submit(copy_context().run, guarded, task) for task in tasks]
    try:
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


class _Move:
    """One file on its way. Its parts may run in any order and thread; the last one makes it visible."""

    def __init__(self, copy: Copy, progress: Progress | None) -> None:
        self.copy = copy
        self.crc32c = 0
        size = copy.entry.size_bytes
        smallest = max(copy.source.backend.min_part_bytes, copy.target.backend.min_part_bytes)
        self.part_bytes = max(smallest, math.ceil(size / _MAX_PARTS / (1 << 20)) << 20)
        self._numbers = range(1, math.ceil(size / self.part_bytes) + 1)
        self._wanted = copy.entry.crc32c if copy.crc32c is None else copy.crc32c
        self._progress = progress
        self._lock = threading.Lock()
        self._journal: Journal | None = None
        self._upload_id: str | None = None
        self._no_upload: Exception | None = None
        self._is_ending = False
        self._sent: dict[int, Sent] = {}

    def tasks(self) -> list[_Task]:
        """What is to be run: one call for a small file, one a part for a large one."""
        if len(self._numbers) <= 1:
            return [self._send_whole]
        return [partial(self._send_part, number) for number in self._numbers]

    def close(self) -> None:
        """Leave the journal's lock; the journal itself stays for a later attempt."""
        if self._journal:
            self._journal.close()

    def give_up(self) -> None:
        """Leave nothing of an unfinished upload at the target."""
        target, upload_id = self.copy.target, self._upload_id
        if upload_id is None:
            return
        # What went wrong before is what is told.
        with suppress(StorageError):
            self._patiently(lambda: target.backend.give_up(target.key, upload_id))
            if self._journal:
                self._journal.remove()

    def _send_whole(self) -> None:
        target = self.copy.target

        def attempt() -> Part:
            part = self._part(1, wanted_crc32c=self._wanted)
            target.backend.write_unsynced(target.key, part)
            return part

        try:
            part = self._patiently(attempt)
        except Corrupt:
            part = self._second_time(lambda: self._patiently(attempt))
        self.crc32c = part.crc32c
        self._count(self.copy.entry.size_bytes)
        self._tell(self.copy.entry.size_bytes)

    def _send_part(self, number: int) -> None:
        upload_id = self._begun()
        if not self._has(number, upload_id):
            self._send_now(number, upload_id)
        self._tell(self._size_of(number))
        with self._lock:
            is_last = len(self._sent) == len(self._numbers) and not self._is_ending
            self._is_ending = self._is_ending or is_last
        if is_last:
            self._finish(upload_id)

    def _send_now(self, number: int, upload_id: str) -> None:
        target = self.copy.target

        def attempt() -> Sent:
            part = self._part(number)
            tag = target.backend.send(target.key, upload_id, part)
            return Sent(tag, part.crc32c)

        sent = self._patiently(attempt)
        self._count(self._size_of(number))
        with self._lock:
            self._sent[number] = sent
            if self._journal:
                self._journal.add(number, sent)

    def _part(self, number: int, wanted_crc32c: int | None = None) -> Part:
        offset, length = (number - 1) * self.part_bytes, self._size_of(number)
        chunks = _Range(self.copy, offset, length) if length else ()
        return Part(number, offset, length, chunks, wanted_crc32c)

    def _size_of(self, number: int) -> int:
        return min(self.part_bytes, self.copy.entry.size_bytes - (number - 1) * self.part_bytes)

    def _begun(self) -> str:
        """The upload's id; the first part that asks begins it, or takes up the one of an earlier attempt."""
        with self._lock:
            if self._no_upload:
                # One wait for a store that does not answer is enough.
                raise self._no_upload
            if self._upload_id is None:
                try:
                    self._upload_id = self._taken_up() or self._new_upload()
                except Exception as error:
                    self._no_upload = error
                    raise
            return self._upload_id

    def _taken_up(self) -> str | None:
        copy = self.copy
        version = f"{copy.entry.version} {copy.entry.size_bytes}"
        self._journal = journal = open_journal(copy.source.uri, version, copy.target.uri)
        if journal is None or journal.upload_id is None or journal.part_bytes != self.part_bytes:
            return None
        upload_id, target = journal.upload_id, copy.target
        return upload_id if self._patiently(lambda: target.backend.knows(target.key, upload_id)) else None

    def _new_upload(self) -> str:
        target, size = self.copy.target, self.copy.entry.size_bytes
        upload_id = self._patiently(lambda: target.backend.begin(target.key, size))
        if self._journal:
            self._journal.begin(upload_id, self.part_bytes)
        return upload_id

    def _has(self, number: int, upload_id: str) -> bool:
        """Whether an earlier attempt sent this part, and the target still has it."""
        known = self._journal.sent.get(number) if self._journal else None
        if known is None:
            return False
        target, offset, length = self.copy.target, (number - 1) * self.part_bytes, self._size_of(number)

        def attempt() -> bool:
            part = Part(number, offset, length, (), known.crc32c)
            return target.backend.holds(target.key, upload_id, part)

        if not self._patiently(attempt):
            return False
        with self._lock:
            self._sent[number] = known
        return True

    def _finish(self, upload_id: str) -> None:
        try:
            self._make_visible(upload_id)
        except Corrupt:
            self._second_time(self._all_again)

    def _all_again(self) -> None:
        self._sent = {}
        self._upload_id = upload_id = self._new_upload()
        for number in self._numbers:
            self._send_now(number, upload_id)
        self._make_visible(upload_id)

    def _make_visible(self, upload_id: str) -> None:
        target, size = self.copy.target, self.copy.entry.size_bytes
        self.crc32c = 0
        for number in self._numbers:
            self.crc32c = combine(self.crc32c, self._sent[number].crc32c, self._size_of(number))
        if self._wanted not in (None, self.crc32c):
            self._patiently(lambda: target.backend.give_up(target.key, upload_id))
            raise Corrupt(f"the sum is {self.crc32c:08x} and should be {self._wanted:08x}")
        tags = {number: sent.tag for number, sent in self._sent.items()}
        self._patiently(lambda: _finished(target, upload_id, tags, size, self.crc32c))
        self._upload_id = None
        if self._journal:
            self._journal.remove()

    def _second_time(self, action: Callable[[], T]) -> T:
        """Move the file once more: a bit was turned on the way, and nothing tells which."""
        _log.warning("%s: arrived with another checksum at %s; once more", self.copy.source, self.copy.target)
        try:
            return action()
        except Corrupt as error:
            raise Corrupt(
                f"{self.copy.source}: its content does not match its checksum, twice ({error}). The stored "
                "file is damaged; nothing was kept. Publish it again, or copy it from another store."
            ) from None

    def _count(self, size_bytes: int) -> None:
        traffic.add(self.copy.source.backend.scheme, self.copy.target.backend.scheme, size_bytes)

    def _tell(self, size_bytes: int) -> None:
        if self._progress:
            self._progress.advance(size_bytes)

    def _patiently(self, attempt: Callable[[], T]) -> T:
        """``attempt`` with patience; the message names the end that is not this machine."""
        ends = (self.copy.target, self.copy.source)
        remote = next((end for end in ends if not end.backend.is_local), self.copy.target)
        return patiently(attempt, remote.uri)


@dataclass(frozen=True)
class _Range:
    """Bytes of a source, read whenever they are taken: a client may have to send a request twice."""

    copy: Copy
    start: int
    size_bytes: int

    def __iter__(self) -> Iterator[bytes]:
        return self.copy.source.backend.read(self.copy.entry, self.start, self.size_bytes)


def _finished(target: Location, upload_id: str, tags: dict[int, str], size_bytes: int, crc32c: int) -> None:
    """Finish the upload; that the store knows it no more may mean that an earlier try went through."""
    try:
        target.backend.finish(target.key, upload_id, tags, size_bytes=size_bytes, crc32c=crc32c)
    except NotFound:
        found = target.backend.stat(target.key)
        if found is None or found.size_bytes != size_bytes or found.crc32c not in (None, crc32c):
            raise
