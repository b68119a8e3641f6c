"""The JSON API of the Google Cloud Storage stand-in, without the bodies of objects."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from email.parser import BytesParser
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.servers.gcs_state import (
    Bucket,
    Conditions,
    Content,
    Refusal,
    State,
    Stored,
    invalid,
    number,
    page,
)

PREFIX = "/storage/v1/"
PAGE_RESULTS = 1000
_BATCH_LIMIT = 100
_COMPOSE_LIMIT = 32


@dataclass(frozen=True)
class Call:
    """One request of the JSON API.

    Args:
        method: GET, POST, PATCH, DELETE.
        path: What follows ``/storage/v1/``, percent-encoded as it came.
        query: Its parameters, decoded.
        body: JSON, or empty.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def segments(self) -> list[str]:
        """The path's segments, decoded: the slashes in an object's name are encoded, those between not."""
        return [unquote(segment) for segment in self.path.split("/")]

    @property
    def resource(self) -> dict[str, Any]:
        """The body's JSON object."""
        try:
            found = json.loads(self.body or b"{}")
        except ValueError:
            raise invalid("Parse Error: the body is no JSON.", "ParseError") from None
        if not isinstance(found, dict):
            raise invalid("Parse Error: the body is no JSON object.", "ParseError")
        return found


def query_of(text: str) -> dict[str, str]:
    """A query string's parameters; those without a value are empty."""
    return dict(parse_qsl(text, keep_blank_values=True))


def answer(state: State, call: Call) -> dict[str, Any] | None:
    """What the call returns; None: 204. Does everything at once, so every call is atomic.

    Raises:
        Refusal: it cannot be done.
    """
    found = _answer(state, call)
    fields = call.query.get("fields")
    return select(found, fields) if found is not None and fields else found


def _answer(state: State, call: Call) -> dict[str, Any] | None:
    match call.method, call.segments:
        case "GET", ["b"]:
            names = sorted(name for name in state.buckets if name.startswith(call.query.get("prefix", "")))
            return {"kind": "storage#buckets", "items": [_bucket(state.buckets[name]) for name in names]}
        case "POST", ["b"]:
            return _bucket(state.create(str(call.resource.get("name", ""))))
        case "GET", ["b", bucket]:
            return _bucket(state.bucket(bucket))
        case "DELETE", ["b", bucket]:
            if state.bucket(bucket).objects:
                raise Refusal(
                    409, "conflict", "BucketNotEmpty", "The bucket you tried to delete is not empty."
                )
            del state.buckets[bucket]
            return None
        case "GET", ["b", bucket, "o"]:
            return _list(state.bucket(bucket), call.query)
        case (("GET" | "PATCH" | "DELETE"), ["b", bucket, "o", name]):
            return _object(state.bucket(bucket), name, call)
        case "POST", ["b", bucket, "o", name, "compose"]:
            return _compose(state.bucket(bucket), name, call)
        case "POST", ["b", bucket, "o", name, ("rewriteTo" | "copyTo") as verb, "b", to, "o", to_name]:
            copied = _copy(state.bucket(bucket), name, state.bucket(to), to_name, call)
            return _rewritten(copied) if verb == "rewriteTo" else copied
    raise Refusal(404, "notFound", "NotFound", f"This stand-in does not know {call.method} {call.path}")


def select(found: Any, fields: str) -> Any:
    """Only the fields that were asked for, such as ``items(name,size),nextPageToken``.

    Left out are those that were not, so that code which needs them fails here as it would at Google.
    Source: https://cloud.google.com/storage/docs/json_api#partial-response
    """
    if isinstance(found, list):
        return [select(item, fields) for item in found]
    words = [word for word in _split(fields) if word]
    if "*" in words or not isinstance(found, dict):
        return found
    chosen: dict[str, Any] = {}
    for word in words:
        name, deeper = re.fullmatch(r"([^(/]+)[(/]?(.*?)\)?", word).groups()  # type: ignore[union-attr]
        if name in found:
            chosen[name] = select(found[name], deeper) if deeper else found[name]
    return chosen


def _split(fields: str) -> list[str]:
    """Splits at the commas outside parentheses."""
    words, depth = [""], 0
    for letter in fields:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and not depth:
            words.append("")
        else:
            words[-1] += letter.strip()
    return words


def _bucket(bucket: Bucket) -> dict[str, Any]:
    created = bucket.created.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {
        "kind": "storage#bucket",
        "id": bucket.name,
        "name": bucket.name,
        "location": "US",
        "storageClass": "STANDARD",
        "metageneration": "1",
        "etag": "CAE=",
        "timeCreated": created,
        "updated": created,
    }


def resource(bucket: Bucket, stored: Stored) -> dict[str, Any]:
    """An object's metadata, as Google writes it. Composite objects have no ``md5Hash``."""
    created = stored.created.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    version = f"{stored.generation}/{stored.metageneration}"
    found = {
        "kind": "storage#object",
        "id": f"{bucket.name}/{stored.name}/{stored.generation}",
        "name": stored.name,
        "bucket": bucket.name,
        "generation": str(stored.generation),
        "metageneration": str(stored.metageneration),
        "contentType": stored.content_type,
        "storageClass": "STANDARD",
        "size": str(stored.content.size_bytes),
        "crc32c": stored.content.crc32c,
        "md5Hash": stored.content.md5,
        "etag": base64.b64encode(version.encode()).decode(),
        "timeCreated": created,
        "updated": created,
        "componentCount": stored.component_count,
        "metadata": dict(stored.metadata) or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _list(bucket: Bucket, query: Mapping[str, str]) -> dict[str, Any]:
    asked = number(query.get("maxResults"), "maxResults")
    found = page(
        bucket,
        prefix=query.get("prefix", ""),
        delimiter=query.get("delimiter", ""),
        start=query.get("startOffset", ""),
        end=query.get("endOffset", ""),
        token=query.get("pageToken", ""),
        max_results=min(asked or PAGE_RESULTS, PAGE_RESULTS),
    )
    listed: dict[str, Any] = {"kind": "storage#objects"}
    if found.items:
        listed["items"] = [resource(bucket, stored) for stored in found.items]
    if found.prefixes:
        listed["prefixes"] = found.prefixes
    if found.next_token:
        listed["nextPageToken"] = found.next_token
    return listed


def _object(bucket: Bucket, name: str, call: Call) -> dict[str, Any] | None:
    generation = number(call.query.get("generation"), "generation")
    conditions = Conditions.of_query(call.query)
    if call.method == "DELETE":
        bucket.delete(name, generation, conditions)
        return None
    stored = bucket.live(name, generation)
    conditions.check(stored, reading=call.method == "GET")
    if call.method == "PATCH":
        stored = replace(
            stored,
            content_type=call.resource.get("contentType", stored.content_type),
            metadata={**stored.metadata, **(call.resource.get("metadata") or {})},
            metageneration=stored.metageneration + 1,
        )
        bucket.objects[name] = stored
    return resource(bucket, stored)


def _compose(bucket: Bucket, name: str, call: Call) -> dict[str, Any]:
    sources = call.resource.get("sourceObjects") or []
    if not 0 < len(sources) <= _COMPOSE_LIMIT:
        raise invalid(f"The number of source components provided ({len(sources)}) must be 1 to 32.")
    found = []
    for source in sources:
        stored = bucket.live(source["name"], number(source.get("generation"), "generation"))
        Conditions.of_query(source.get("objectPreconditions") or {}).check(stored)
        found.append(stored)
    about = call.resource.get("destination") or {}
    composed = bucket.put(
        name,
        Content.of((piece for stored in found for piece in stored.content.pieces), with_md5=False),
        content_type=about.get("contentType", found[0].content_type),
        metadata=about.get("metadata") or {},
        conditions=Conditions.of_query(call.query),
        component_count=sum(stored.component_count or 1 for stored in found),
    )
    return resource(bucket, composed)


def _copy(source: Bucket, name: str, target: Bucket, target_name: str, call: Call) -> dict[str, Any]:
    stored = source.live(name, number(call.query.get("sourceGeneration"), "sourceGeneration"))
    match = number(call.query.get("ifSourceGenerationMatch"), "ifSourceGenerationMatch")
    Conditions(generation_match=match).check(stored)
    copied = target.put(
        target_name,
        stored.content,
        content_type=call.resource.get("contentType", stored.content_type),
        metadata=call.resource.get("metadata", stored.metadata),
        conditions=Conditions.of_query(call.query),
        component_count=stored.component_count,
    )
    return resource(target, copied)


def _rewritten(copied: dict[str, Any]) -> dict[str, Any]:
    sizes = {"totalBytesRewritten": copied["size"], "objectSize": copied["size"]}
    return {"kind": "storage#rewriteResponse", "done": True, "resource": copied, **sizes}


def error_body(refusal: Refusal) -> dict[str, Any]:
    """A refusal as the JSON API writes it."""
    reason = {"domain": "global", "reason": refusal.reason, "message": refusal.message}
    return {"error": {"code": refusal.status, "message": refusal.message, "errors": [reason]}}


def batch(state: State, content_type: str, body: bytes) -> tuple[str, bytes]:
    """Many calls in one request: the content type and the body of the answer.

    Source: https://cloud.google.com/storage/docs/batch
    """
    message = BytesParser().parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    parts = message.get_payload()
    if not isinstance(parts, list) or len(parts) > _BATCH_LIMIT:
        raise invalid(f"A batch is multipart/mixed and holds at most {_BATCH_LIMIT} calls.")
    lines: list[str] = []
    for part in parts:
        status, found = _batched(state, part.get_payload(decode=True))
        lines += ["--batch_answers", "Content-Type: application/http"]
        if content_id := part["Content-ID"]:
            lines.append(f"Content-ID: <response-{content_id.strip('<>')}>")
        text = json.dumps(found) if found is not None else ""
        lines += ["", f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "Content-Type: application/json"]
        lines += [f"Content-Length: {len(text)}", "", text]
    return "multipart/mixed; boundary=batch_answers", "\r\n".join([*lines, "--batch_answers--", ""]).encode()


def _batched(state: State, text: bytes) -> tuple[int, dict[str, Any] | None]:
    head, _, body = text.replace(b"\r\n", b"\n").partition(b"\n\n")
    method, url, *_ = head.decode().split()
    parts = urlsplit(url)
    call = Call(method, parts.path.removeprefix(PREFIX), query_of(parts.query), body.strip())
    try:
        found = answer(state, call)
    except Refusal as refusal:
        return refusal.status, error_body(refusal)
    return (204 if found is None else 200), found
