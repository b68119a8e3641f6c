"""Buckets, objects and unfinished uploads of the Google Cloud Storage stand-in, in memory; knows no HTTP."""

from __future__ import annotations

import base64
import hashlib
import itertools
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import crc32c

WRITE_BYTES = 1024 * 1024
"""A body is served in pieces of this size, so that several transfers share the loop fairly."""

Bytes = bytes | bytearray | memoryview

_GENERATIONS = itertools.count(time.time_ns() // 1000)
"""They look like Google's, which are microseconds since 1970; each is used once, later ones are higher."""


class Refusal(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        reason: Google's word for it in JSON (``notFound``).
        code: Google's word for it in XML (``NoSuchKey``).
        message: Google's sentence.
    """

    def __init__(self, status: int, reason: str, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason, self.code, self.message = status, reason, code, message


def invalid(message: str, code: str = "InvalidArgument") -> Refusal:
    """The request itself is wrong."""
    return Refusal(400, "invalid", code, message)


def no_such_upload() -> Refusal:
    """The upload was never begun, or is complete, or was aborted."""
    return Refusal(404, "notFound", "NoSuchUpload", "The requested upload was not found.")


@dataclass(frozen=True)
class Content:
    """Bytes in pieces, with their checksums in base64."""

    pieces: tuple[memoryview, ...]
    size_bytes: int
    crc32c: str
    md5: str | None

    @classmethod
    def of(cls, pieces: Iterable[Bytes], *, with_md5: bool = True) -> Content:
        """Sums ``pieces``, at about 0.6 GiB/s with the MD5. Objects put together from parts have none."""
        kept = tuple(memoryview(piece) for piece in pieces)
        crc, md5 = 0, hashlib.md5(usedforsecurity=False)
        for piece in kept:
            crc = crc32c.crc32c(piece, crc)
            if with_md5:
                md5.update(piece)
        return cls(
            kept,
            sum(piece.nbytes for piece in kept),
            base64.b64encode(crc.to_bytes(4, "big")).decode(),
            base64.b64encode(md5.digest()).decode() if with_md5 else None,
        )

    @property
    def md5_hex(self) -> str | None:
        return base64.b64decode(self.md5).hex() if self.md5 else None

    @property
    def goog_hash(self) -> str:
        """As the header ``x-goog-hash`` says it."""
        return f"crc32c={self.crc32c}" + (f",md5={self.md5}" if self.md5 else "")

    def slices(self, start: int, end: int) -> Iterator[memoryview]:
        """The bytes from ``start`` up to ``end``, in slices of at most ``WRITE_BYTES``; nothing is copied."""
        at = 0
        for piece in self.pieces:
            first, last = max(start - at, 0), min(end - at, piece.nbytes)
            for offset in range(first, last, WRITE_BYTES):
                yield piece[offset : min(offset + WRITE_BYTES, last)]
            at += piece.nbytes

    def verify(self, *, crc32c: str | None, md5: str | None) -> None:
        """Refuses when a checksum that the client gave is not that of what came."""
        wrong = [
            f'Provided {name} "{given}" doesn\'t match calculated {name} "{found}".'
            for name, given, found in (("CRC32C", crc32c, self.crc32c), ("MD5 hash", md5, self.md5))
            if given is not None and given != found
        ]
        if wrong:
            raise invalid(wrong[0], "BadDigest")


@dataclass(frozen=True)
class Stored:
    """One live object."""

    name: str
    generation: int
    content: Content
    content_type: str
    metadata: Mapping[str, str]
    created: datetime
    metageneration: int = 1
    component_count: int | None = None

    @property
    def etag(self) -> str:
        """As the XML API says it: the MD5 in hexadecimal where there is one, else something unique."""
        return self.content.md5_hex or base64.b64encode(f"{self.generation:x}".encode()).decode()


@dataclass(frozen=True)
class Conditions:
    """What must hold for a request to go on. Generation 0 means that nothing is there."""

    generation_match: int | None = None
    generation_not_match: int | None = None
    metageneration_match: int | None = None

    @classmethod
    def of_query(cls, query: Mapping[str, str | int]) -> Conditions:
        """The JSON API's parameters."""
        names = ("ifGenerationMatch", "ifGenerationNotMatch", "ifMetagenerationMatch")
        return cls(*(number(query.get(name), name) for name in names))

    @classmethod
    def of_headers(cls, headers: Mapping[str, str]) -> Conditions:
        """The XML API's headers."""
        match, meta = "x-goog-if-generation-match", "x-goog-if-metageneration-match"
        return cls(
            generation_match=number(headers.get(match), match),
            metageneration_match=number(headers.get(meta), meta),
        )

    def check(self, found: Stored | None, *, reading: bool = False) -> None:
        """Refuses with 412, or with 304 where a reader has that generation already."""
        generation = found.generation if found else 0
        if self.generation_not_match == generation and reading:
            raise Refusal(304, "notModified", "NotModified", "Not Modified")
        holds = (
            self.generation_match in (None, generation)
            and self.generation_not_match != generation
            and self.metageneration_match in (None, found.metageneration if found else 0)
        )
        if not holds:
            raise Refusal(
                412,
                "conditionNotMet",
                "PreconditionFailed",
                "At least one of the pre-conditions you specified did not hold.",
            )


def number(value: str | int | None, name: str) -> int | None:
    """The number a parameter holds, or None where it was not given."""
    if value is None:
        return None
    try:
        return int(value)
    except ValueError:
        raise invalid(f"Invalid value for {name}: {value!r}") from None


@dataclass
class Upload:
    """A multipart upload of the XML API that is under way."""

    id: str
    name: str
    content_type: str
    metadata: Mapping[str, str]
    begun: datetime = field(default_factory=lambda: datetime.now(UTC))
    parts: dict[int, Content] = field(default_factory=dict)
    part_times: dict[int, datetime] = field(default_factory=dict)


@dataclass
class Bucket:
    """One bucket. Its methods never wait, so each is atomic on the server's loop."""

    name: str
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    objects: dict[str, Stored] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)

    def live(self, name: str, generation: int | None = None) -> Stored:
        """The object, if it is there and still of that generation. Older ones are not kept."""
        found = self.objects.get(name)
        if found is None or generation not in (None, found.generation):
            raise Refusal(404, "notFound", "NoSuchKey", f"No such object: {self.name}/{name}")
        return found

    def put(
        self,
        name: str,
        content: Content,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        conditions: Conditions,
        component_count: int | None = None,
    ) -> Stored:
        """A new generation of the object, if the conditions hold."""
        if not 0 < len(name.encode()) <= 1024:
            raise invalid("The name of an object must have 1 to 1024 bytes.", "InvalidObjectName")
        conditions.check(self.objects.get(name))
        now = datetime.now(UTC)
        self.objects[name] = Stored(
            name, next(_GENERATIONS), content, content_type, metadata, now, component_count=component_count
        )
        return self.objects[name]

    def delete(self, name: str, generation: int | None, conditions: Conditions) -> None:
        """Removes the object, if the conditions hold."""
        conditions.check(self.live(name, generation))
        del self.objects[name]

    def begin(self, name: str, content_type: str, metadata: Mapping[str, str]) -> Upload:
        """A new multipart upload; ids sort by time."""
        upload = Upload(f"{next(_GENERATIONS):x}-{secrets.token_hex(8)}", name, content_type, metadata)
        self.uploads[upload.id] = upload
        return upload

    def upload(self, upload_id: str, name: str) -> Upload:
        """The upload with this id, which must be one of this object."""
        found = self.uploads.get(upload_id)
        if found is None or found.name != name:
            raise no_such_upload()
        return found


@dataclass(frozen=True)
class Page:
    """One page of a listing."""

    items: list[Stored]
    prefixes: list[str]
    next_token: str | None


def page(
    bucket: Bucket, *, prefix: str, delimiter: str, start: str, end: str, token: str, max_results: int
) -> Page:
    """The objects whose names begin with ``prefix``, in order; those in one "folder" as one prefix.

    Args:
        bucket: Where.
        prefix: What names begin with.
        delimiter: What ends a folder's name; empty: there are none.
        start: Names before this one are left out.
        end: This name and those after it are left out; empty: none.
        token: Of the page before; empty: the first page.
        max_results: Objects and prefixes together on one page.
    """
    try:
        after_kind, _, after = base64.urlsafe_b64decode(token).decode().partition(":")
    except ValueError:
        raise invalid(f"Invalid page token: {token!r}") from None
    items: list[Stored] = []
    prefixes: list[str] = []
    last = ""
    for name in sorted(bucket.objects):
        beyond = name < start or (end and name >= end) or not name.startswith(prefix)
        seen = name <= after or (after_kind == "p" and name.startswith(after))
        if beyond or (token and seen):
            continue
        head, cut, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
        folder = prefix + head + cut if cut else None
        if folder and prefixes and prefixes[-1] == folder:
            continue
        if len(items) + len(prefixes) == max_results:
            return Page(items, prefixes, base64.urlsafe_b64encode(last.encode()).decode())
        if folder:
            prefixes.append(folder)
        else:
            items.append(bucket.objects[name])
        last = f"p:{folder}" if folder else f"o:{name}"
    return Page(items, prefixes, None)


@dataclass
class Session:
    """A resumable upload of the JSON API. ``done`` is what it became."""

    bucket: Bucket
    name: str
    content_type: str
    metadata: Mapping[str, str]
    conditions: Conditions
    crc32c: str | None
    md5: str | None
    pieces: list[Bytes] = field(default_factory=list)
    size_bytes: int = 0
    done: Stored | None = None


@dataclass
class State:
    """Everything the server knows."""

    buckets: dict[str, Bucket] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)

    def bucket(self, name: str) -> Bucket:
        """The bucket; ``forbidden`` refuses everybody, and those named ``missing...`` never exist."""
        if name == "forbidden":
            raise Refusal(403, "forbidden", "AccessDenied", "Access denied: this account may not do that.")
        if name not in self.buckets:
            raise Refusal(404, "notFound", "NoSuchBucket", "The specified bucket does not exist.")
        return self.buckets[name]

    def create(self, name: str) -> Bucket:
        """A new bucket."""
        if name.startswith("missing") or not 3 <= len(name) <= 63:
            raise invalid(f"Invalid bucket name: {name!r}", "InvalidBucketName")
        if name == "forbidden":
            self.bucket(name)
        if name in self.buckets:
            message = "Your previous request to create the named bucket succeeded and you already own it."
            raise Refusal(409, "conflict", "BucketAlreadyOwnedByYou", message)
        self.buckets[name] = Bucket(name)
        return self.buckets[name]
