"""The XML API of the Google Cloud Storage stand-in: objects, and uploads in parts.

Of multipart uploads Google's documentation says that "preconditions are not supported in the requests". Here
a generation-match on completing one is honoured: code that must be right at Google cannot rely on it.
Source: https://cloud.google.com/storage/docs/xml-api/reference-methods and
https://cloud.google.com/storage/docs/multipart-uploads
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from xml.etree import ElementTree

from aiohttp import web

from tests.servers.gcs_state import (
    Bucket,
    Conditions,
    Refusal,
    Upload,
    invalid,
    no_such_upload,
    number,
)
from tests.servers.gcs_transfer import given_hashes, object_headers, read_body, send, summed

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
MIN_PART_BYTES = 5 * 1024 * 1024
"""Every part but the last has at least this, at Google too."""
_MAX_PARTS = 10_000
_PAGE_RESULTS = 1000

Tree = list[tuple[str, "str | Tree"]]


async def answer(
    request: web.BaseRequest, bucket: Bucket, name: str, query: Mapping[str, str]
) -> web.StreamResponse:
    """One request to ``/BUCKET/OBJECT``; ``name`` is empty for those to ``/BUCKET``."""
    if not name:
        return _of_bucket(request.method, bucket, query)
    if "uploadId" in query or "uploads" in query:
        return await _of_upload(request, bucket, name, query)
    conditions = Conditions.of_headers(request.headers)
    generation = number(query.get("generation"), "generation")
    if request.method in ("GET", "HEAD"):
        stored = bucket.live(name, generation)
        conditions.check(stored, reading=True)
        return await send(request, stored)
    if request.method == "DELETE":
        bucket.delete(name, generation, conditions)
        return web.Response(status=204)
    if request.method == "PUT" and "x-goog-copy-source" not in request.headers:
        content = await summed([await read_body(request)])
        content.verify(**given_hashes(request.headers))
        stored = bucket.put(
            name,
            content,
            content_type=request.headers.get("Content-Type", "application/octet-stream"),
            metadata=_metadata(request.headers),
            conditions=conditions,
        )
        return web.Response(headers=_sent(object_headers(stored)))
    raise _unknown(request.method)


def error_body(refusal: Refusal) -> str:
    """A refusal as the XML API writes it."""
    return _xml("Error", [("Code", refusal.code), ("Message", refusal.message)], namespace=None)


def _unknown(method: str) -> Refusal:
    message = f"This stand-in does not know this {method} request of the XML API."
    return Refusal(501, "notImplemented", "NotImplemented", message)


def _metadata(headers: Mapping[str, str]) -> dict[str, str]:
    mark = "x-goog-meta-"
    return {key.lower()[len(mark) :]: value for key, value in headers.items() if key.lower().startswith(mark)}


def _sent(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of an object, of an answer that does not hold the object."""
    return {key: value for key, value in headers.items() if key.startswith("x-goog-") or key == "ETag"}


def _of_bucket(method: str, bucket: Bucket, query: Mapping[str, str]) -> web.Response:
    if method == "GET" and "uploads" in query:
        return _response("ListMultipartUploadsResult", _uploads(bucket, query))
    if method == "HEAD":
        return web.Response()
    raise _unknown(method)


async def _of_upload(
    request: web.BaseRequest, bucket: Bucket, name: str, query: Mapping[str, str]
) -> web.StreamResponse:
    if request.method == "POST" and "uploads" in query:
        content_type = request.headers.get("Content-Type", "application/octet-stream")
        upload = bucket.begin(name, content_type, _metadata(request.headers))
        tree: Tree = [("Bucket", bucket.name), ("Key", name), ("UploadId", upload.id)]
        return _response("InitiateMultipartUploadResult", tree)
    upload = bucket.upload(query.get("uploadId", ""), name)
    if request.method == "PUT":
        return await _put_part(request, upload, query)
    if request.method == "GET":
        return _response("ListPartsResult", _parts(bucket, upload, query))
    if request.method == "DELETE":
        del bucket.uploads[upload.id]
        return web.Response(status=204)
    if request.method == "POST":
        return await _complete(request, bucket, upload)
    raise _unknown(request.method)


async def _put_part(request: web.BaseRequest, upload: Upload, query: Mapping[str, str]) -> web.Response:
    part_number = number(query.get("partNumber"), "partNumber") or 0
    if not 1 <= part_number <= _MAX_PARTS:
        raise invalid(f"Part number must be an integer between 1 and {_MAX_PARTS}, inclusive.")
    part = await summed([await read_body(request)])
    part.verify(**given_hashes(request.headers))
    upload.parts[part_number] = part
    upload.part_times[part_number] = datetime.now(UTC)
    return web.Response(headers={"ETag": f'"{part.md5_hex}"', "x-goog-hash": part.goog_hash})


async def _complete(request: web.BaseRequest, bucket: Bucket, upload: Upload) -> web.Response:
    chosen = _chosen(bytes(await read_body(request)))
    if [at for at, _ in chosen] != sorted({at for at, _ in chosen}):
        raise invalid("The list of parts was not in ascending order.", "InvalidPartOrder")
    for at, etag in chosen:
        if at not in upload.parts or upload.parts[at].md5_hex != etag.strip('"'):
            raise invalid(f"Part {at} was not found, or its ETag is another one.", "InvalidPart")
    parts = [upload.parts[at] for at, _ in chosen]
    if any(part.size_bytes < MIN_PART_BYTES for part in parts[:-1]):
        message = f"A part but the last is smaller than {MIN_PART_BYTES} bytes."
        raise invalid(message, "EntityTooSmall")
    content = await summed((piece for part in parts for piece in part.pieces), with_md5=False)
    if upload.id not in bucket.uploads:
        # Somebody completed or aborted it while we made the sum.
        raise no_such_upload()
    stored = bucket.put(
        upload.name,
        content,
        content_type=upload.content_type,
        metadata=upload.metadata,
        conditions=Conditions.of_headers(request.headers),
    )
    del bucket.uploads[upload.id]
    tree: Tree = [("Bucket", bucket.name), ("Key", upload.name), ("ETag", f'"{stored.etag}"')]
    return _response("CompleteMultipartUploadResult", tree, _sent(object_headers(stored)))


def _chosen(body: bytes) -> list[tuple[int, str]]:
    """Number and ETag of the parts to put together."""
    try:
        root = ElementTree.fromstring(body)
        parts = [
            {child.tag.rpartition("}")[2]: child.text or "" for child in part}
            for part in root
            if part.tag.rpartition("}")[2] == "Part"
        ]
        chosen = [(int(part["PartNumber"]), part["ETag"]) for part in parts]
    except (ElementTree.ParseError, KeyError, ValueError):
        chosen = []
    if not chosen:
        raise invalid("The body names no parts.", "MalformedCompleteMultipartUploadRequest")
    return chosen


def _parts(bucket: Bucket, upload: Upload, query: Mapping[str, str]) -> Tree:
    limit = number(query.get("max-parts"), "max-parts") or _PAGE_RESULTS
    marker = number(query.get("part-number-marker"), "part-number-marker") or 0
    left = [at for at in sorted(upload.parts) if at > marker]
    shown = left[:limit]
    tree: Tree = [
        ("Bucket", bucket.name),
        ("Key", upload.name),
        ("UploadId", upload.id),
        ("StorageClass", "STANDARD"),
        ("PartNumberMarker", str(marker)),
        ("NextPartNumberMarker", str(shown[-1] if shown else 0)),
        ("MaxParts", str(limit)),
        ("IsTruncated", _truth(len(shown) < len(left))),
    ]
    for at in shown:
        part = upload.parts[at]
        about: Tree = [
            ("PartNumber", str(at)),
            ("LastModified", _time(upload.part_times[at])),
            ("ETag", f'"{part.md5_hex}"'),
            ("Size", str(part.size_bytes)),
        ]
        tree.append(("Part", about))
    return tree


def _uploads(bucket: Bucket, query: Mapping[str, str]) -> Tree:
    limit = number(query.get("max-uploads"), "max-uploads") or _PAGE_RESULTS
    prefix, key_marker, id_marker = (query.get(n, "") for n in ("prefix", "key-marker", "upload-id-marker"))

    def is_left(upload: Upload) -> bool:
        later = upload.name > key_marker or (
            upload.name == key_marker and id_marker != "" and upload.id > id_marker
        )
        return upload.name.startswith(prefix) and later

    left = sorted(filter(is_left, bucket.uploads.values()), key=lambda upload: (upload.name, upload.id))
    shown = left[:limit]
    tree: Tree = [
        ("Bucket", bucket.name),
        ("KeyMarker", key_marker),
        ("UploadIdMarker", id_marker),
        ("NextKeyMarker", shown[-1].name if shown else ""),
        ("NextUploadIdMarker", shown[-1].id if shown else ""),
        ("Prefix", prefix),
        ("MaxUploads", str(limit)),
        ("IsTruncated", _truth(len(shown) < len(left))),
    ]
    for upload in shown:
        about: Tree = [
            ("Key", upload.name),
            ("UploadId", upload.id),
            ("StorageClass", "STANDARD"),
            ("Initiated", _time(upload.begun)),
        ]
        tree.append(("Upload", about))
    return tree


def _truth(value: bool) -> str:
    return str(value).lower()


def _time(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%S.") + f"{when.microsecond // 1000:03d}Z"


def _response(tag: str, tree: Tree, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        text=_xml(tag, tree, namespace=NAMESPACE), content_type="application/xml", headers=headers
    )


def _xml(tag: str, tree: Tree, *, namespace: str | None) -> str:
    root = ElementTree.Element(tag, {"xmlns": namespace} if namespace else {})
    _fill(root, tree)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def _fill(element: ElementTree.Element, tree: Tree) -> None:
    for tag, value in tree:
        child = ElementTree.SubElement(element, tag)
        if isinstance(value, str):
            child.text = value
        else:
            _fill(child, value)
