"""Uploads by the JSON API of the Google Cloud Storage stand-in: media, multipart and resumable.

Source: https://cloud.google.com/storage/docs/json_api/v1/objects/insert and
https://cloud.google.com/storage/docs/performing-resumable-uploads
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from email.parser import HeaderParser
from typing import Any
from urllib.parse import quote

from aiohttp import web

from tests.servers.gcs_json import Call, resource, select
from tests.servers.gcs_state import Bucket, Conditions, Session, State, Stored, invalid, no_such_upload
from tests.servers.gcs_transfer import given_hashes, read_body, summed

CHUNK_BYTES = 256 * 1024
"""Every chunk of a resumable upload but the last is a multiple of this, at Google too."""


async def upload(
    request: web.BaseRequest, state: State, bucket: Bucket, query: Mapping[str, str]
) -> web.Response:
    """One request to ``/upload/storage/v1/b/BUCKET/o``."""
    kind = query.get("uploadType")
    if upload_id := query.get("upload_id"):
        return await _resume(request, state, bucket, upload_id, query)
    if kind == "resumable":
        return await _begin(request, state, bucket, query)
    if kind == "multipart":
        about, pieces, content_type = _related(request.headers["Content-Type"], await read_body(request))
    elif kind == "media":
        about, pieces = {}, [await read_body(request)]
        content_type = request.headers.get("Content-Type", "application/octet-stream")
    else:
        raise invalid(f"Invalid upload request: uploadType is {kind!r}.")
    session = _session(bucket, about, content_type, query)
    session.pieces = pieces
    stored = await _finish(session, given_hashes(request.headers))
    return _answer(bucket, stored, query)


def _session(
    bucket: Bucket, about: Mapping[str, Any], content_type: str, query: Mapping[str, str]
) -> Session:
    name = query.get("name") or about.get("name")
    if not name:
        raise invalid("Required parameter: name", "InvalidObjectName")
    return Session(
        bucket,
        name,
        about.get("contentType") or content_type,
        about.get("metadata") or {},
        Conditions.of_query(query),
        about.get("crc32c"),
        about.get("md5Hash"),
    )


def _answer(bucket: Bucket, stored: Stored, query: Mapping[str, str]) -> web.Response:
    found = resource(bucket, stored)
    headers = {"x-goog-hash": stored.content.goog_hash, "x-goog-generation": str(stored.generation)}
    return web.json_response(
        select(found, query["fields"]) if query.get("fields") else found, headers=headers
    )


async def _finish(session: Session, hashes: Mapping[str, str | None]) -> Stored:
    content = await summed(session.pieces)
    content.verify(crc32c=session.crc32c, md5=session.md5)
    content.verify(**hashes)
    session.done = session.bucket.put(
        session.name,
        content,
        content_type=session.content_type,
        metadata=session.metadata,
        conditions=session.conditions,
    )
    return session.done


def _related(content_type: str, body: bytearray) -> tuple[dict[str, Any], list[memoryview], str]:
    """Metadata, media (not copied) and the media's type of a multipart/related body."""
    match = re.search(r'boundary="?([^";]+)', content_type)
    if match is None:
        raise invalid("Multipart body without a boundary.")
    mark = b"--" + match[1].encode()
    second = body.find(mark, len(mark))
    closing = body.rfind(b"\r\n" + mark + b"--")
    if second < 0 or closing < second:
        raise invalid("Multipart body must contain exactly two parts and end with its boundary.")
    about = bytes(body[len(mark) : second]).partition(b"\r\n\r\n")[2].strip()
    media = body.find(b"\r\n\r\n", second) + 4
    heads = HeaderParser().parsestr(body[second + len(mark) : media].decode().lstrip())
    found_type = heads.get("Content-Type", "application/octet-stream")
    return Call("POST", "", body=about).resource, [memoryview(body)[media:closing]], found_type


async def _begin(
    request: web.BaseRequest, state: State, bucket: Bucket, query: Mapping[str, str]
) -> web.Response:
    about = Call("POST", "", body=bytes(await read_body(request))).resource
    content_type = request.headers.get("X-Upload-Content-Type", "application/octet-stream")
    session = _session(bucket, about, content_type, query)
    session.conditions.check(bucket.objects.get(session.name))
    upload_id = secrets.token_urlsafe(24)
    state.sessions[upload_id] = session
    # By the name the client called us by: the rest of the upload takes the same way, proxies included.
    place = f"http://{request.host}/upload/storage/v1/b/{quote(bucket.name)}/o?uploadType=resumable"
    if fields := query.get("fields"):
        place += f"&fields={quote(fields)}"
    return web.Response(
        headers={"Location": f"{place}&upload_id={upload_id}", "X-GUploader-UploadID": upload_id}
    )


async def _resume(
    request: web.BaseRequest, state: State, bucket: Bucket, upload_id: str, query: Mapping[str, str]
) -> web.Response:
    session = state.sessions.get(upload_id)
    if session is None or session.bucket is not bucket:
        raise no_such_upload()
    if request.method == "DELETE":
        del state.sessions[upload_id]
        return web.Response(status=499)
    body = await read_body(request)
    if session.done:
        return _answer(bucket, session.done, query)
    total = _append(session, request.headers.get("Content-Range"), body)
    if total == session.size_bytes:
        try:
            return _answer(bucket, await _finish(session, given_hashes(request.headers)), query)
        finally:
            if session.done is None:
                # Refused for good: Google forgets such an upload, too.
                del state.sessions[upload_id]
    headers = {"Range": f"bytes=0-{session.size_bytes - 1}"} if session.size_bytes else {}
    return web.Response(status=308, headers={**headers, "X-GUploader-UploadID": upload_id})


def _append(session: Session, content_range: str | None, body: bytearray) -> int | None:
    """Adds what is new in the chunk; the size of the whole, where the client knows it."""
    if content_range is None:
        first, total = 0, len(body)
    else:
        match = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", content_range)
        if match is None or (match[1] and int(match[2]) - int(match[1]) + 1 != len(body)):
            raise invalid(f"Invalid Content-Range for {len(body)} bytes: {content_range!r}")
        first = int(match[1]) if match[1] else session.size_bytes
        total = None if match[3] == "*" else int(match[3])
    if first > session.size_bytes:
        raise invalid(f"The chunk begins at {first}, but only {session.size_bytes} bytes have come.")
    last = first + len(body)
    if total != last and len(body) % CHUNK_BYTES:
        raise invalid(f"A chunk of {len(body)} bytes is no multiple of {CHUNK_BYTES}, and not the last.")
    if last > session.size_bytes:
        session.pieces.append(memoryview(body)[session.size_bytes - first :])
        session.size_bytes = last
    return total
