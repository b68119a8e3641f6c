"""Bodies of the Google Cloud Storage stand-in: read a request's without copies, send a range of an object."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from email.utils import format_datetime

from aiohttp import web
from multidict import CIMultiDictProxy

from tests.servers.gcs_state import Bytes, Content, Refusal, Stored

_THREAD_BYTES = 256 * 1024
"""Sums over more than this are made in a thread, so that other transfers go on meanwhile."""


async def read_body(request: web.BaseRequest) -> bytearray:
    """The whole body. It is not copied into bytes at the end: it may have a GiB."""
    body = bytearray()
    async for piece in request.content.iter_any():
        body += piece
    return body


async def summed(pieces: Iterable[Bytes], *, with_md5: bool = True) -> Content:
    """``Content.of``, without holding up the loop."""
    kept = list(pieces)
    if sum(len(piece) for piece in kept) <= _THREAD_BYTES:
        return Content.of(kept, with_md5=with_md5)
    return await asyncio.to_thread(Content.of, kept, with_md5=with_md5)


def given_hashes(headers: CIMultiDictProxy[str]) -> dict[str, str | None]:
    """The checksums in ``x-goog-hash`` and ``Content-MD5``, for ``Content.verify``."""
    values = headers.getall("x-goog-hash", [])
    pairs = dict(word.strip().split("=", 1) for value in values for word in value.split(",") if "=" in word)
    return {"crc32c": pairs.get("crc32c"), "md5": pairs.get("md5", headers.get("Content-MD5"))}


def object_headers(stored: Stored) -> dict[str, str]:
    """What both APIs say about an object when they send it."""
    return {
        "Content-Type": stored.content_type,
        "ETag": f'"{stored.etag}"',
        "Last-Modified": format_datetime(stored.created, usegmt=True),
        "Accept-Ranges": "bytes",
        "x-goog-generation": str(stored.generation),
        "x-goog-metageneration": str(stored.metageneration),
        "x-goog-hash": stored.content.goog_hash,
        "x-goog-stored-content-encoding": "identity",
        "x-goog-stored-content-length": str(stored.content.size_bytes),
        **{f"x-goog-meta-{name}": value for name, value in stored.metadata.items()},
    }


async def send(request: web.BaseRequest, stored: Stored) -> web.StreamResponse:
    """The object, or the range of it that was asked for; only the headers for HEAD."""
    size_bytes = stored.content.size_bytes
    asked = _range(request.headers.get("Range"), size_bytes)
    start, end = asked or (0, size_bytes)
    headers = object_headers(stored) | {"Content-Length": str(end - start)}
    if asked:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size_bytes}"
    response = web.StreamResponse(status=206 if asked else 200, headers=headers)
    await response.prepare(request)
    if request.method != "HEAD":
        for piece in stored.content.slices(start, end):
            await response.write(piece)
    await response.write_eof()
    return response


def _range(header: str | None, size_bytes: int) -> tuple[int, int] | None:
    """First byte and the one after the last; None: everything. Several ranges are ignored, as by Google."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if match is None or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        start, end = max(size_bytes - int(last), 0), size_bytes
    else:
        start, end = int(first), min(int(last) + 1, size_bytes) if last else size_bytes
    if start >= end:
        message = "The requested range cannot be satisfied."
        raise Refusal(416, "requestedRangeNotSatisfiable", "InvalidRange", message)
    return start, end
