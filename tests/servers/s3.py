"""moto's S3 server in a process of its own, behind a gate that does what Amazon S3 does and moto does not.

The gate refuses a body that is not whole or not what its checksums say, keeps and repeats a CRC-32C that it
was given, knows which uploads there are and since when, and lets one request change things at a time, so that
of several which may only create an object one wins. It is still not Amazon S3: it checks no signatures, say.

Run: python -m tests.servers.s3 --port 0. Prints its URL when it listens (port 0: any that is free) and ends
when its standard input is closed.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import re
import sys
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs
from xml.etree import ElementTree

import crc32c
from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from moto.s3.models import FakeBucket, s3_backends
from werkzeug.serving import make_server

Environ = dict[str, Any]
_WRITING = ("PUT", "POST", "DELETE")
_CRC32C = "HTTP_X_AMZ_CHECKSUM_CRC32C"
_UPLOAD_ID = re.compile(rb"<UploadId>(.*?)</UploadId>")


class Refusal(Exception):
    """A request that is answered with an error: status, S3's code, and a sentence."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Gate:
    """A WSGI application around moto's."""

    def __init__(self, app: Callable[[Environ, Any], Iterable[bytes]]) -> None:
        self._app = app
        # moto looks whether a key exists and then writes it: between the two, another request could.
        self._writing = threading.Lock()
        self._begun: dict[bytes, bytes] = {}
        """When each upload was begun, by its id."""

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        try:
            body = _take_body(environ)
            if environ["REQUEST_METHOD"] not in _WRITING:
                return self._with_times(environ, self._app(environ, start_response))
            _check_sums(environ, body)
            with self._writing:
                _check_upload(environ, body)
                return self._with_times(environ, self._app(environ, start_response))
        except Refusal as refusal:
            root = ElementTree.Element("Error")
            ElementTree.SubElement(root, "Code").text = refusal.code
            ElementTree.SubElement(root, "Message").text = refusal.message
            status = f"{refusal.status} {HTTPStatus(refusal.status).phrase}"
            start_response(status, [("Content-Type", "application/xml")])
            return [ElementTree.tostring(root)]

    def _with_times(self, environ: Environ, answer: Iterable[bytes]) -> Iterable[bytes]:
        """Uploads with the time they were begun: in moto's lists they are all from 2010."""
        if "uploads" not in parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True):
            return list(answer) if environ["REQUEST_METHOD"] in _WRITING else answer
        text = b"".join(answer)
        if environ["REQUEST_METHOD"] == "POST":
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z").encode()
            self._begun.update(dict.fromkeys(_UPLOAD_ID.findall(text), now))
        # As long as what it replaces: Content-Length stays right.
        return [re.sub(rb"<Upload>.*?</Upload>", self._with_time, text, flags=re.DOTALL)]

    def _with_time(self, upload: re.Match[bytes]) -> bytes:
        begun = b"<Initiated>%s</Initiated>" % self._begun[_UPLOAD_ID.findall(upload[0])[0]]
        return re.sub(rb"<Initiated>.*?</Initiated>", begun, upload[0])


def _take_body(environ: Environ) -> bytes:
    """The whole body, which moto can then read again."""
    if environ.get("wsgi.input_terminated"):
        body = environ["wsgi.input"].read()
    else:
        size_bytes = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(size_bytes)
        if len(body) < size_bytes:
            message = "You did not provide the number of bytes specified by the Content-Length HTTP header."
            raise Refusal(400, "IncompleteBody", message)
    environ["wsgi.input"] = io.BytesIO(body)
    environ["CONTENT_LENGTH"] = str(len(body))
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    return body


def _check_sums(environ: Environ, body: bytes) -> None:
    """Compares what came with its checksums, and has moto keep and repeat a CRC-32C."""
    if environ["REQUEST_METHOD"] != "PUT" or "aws-chunked" in environ.get("HTTP_CONTENT_ENCODING", ""):
        # A chunked body holds the chunks' sizes, and its checksum at its end.
        return
    given = environ.get(_CRC32C)
    if given:
        environ.setdefault("HTTP_X_AMZ_SDK_CHECKSUM_ALGORITHM", "CRC32C")
        _refuse_unless(given == _base64(crc32c.crc32c(body)), "The CRC32C")
    md5 = environ.get("HTTP_CONTENT_MD5")
    if md5:
        found = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        _refuse_unless(md5 == found, "The Content-MD5")


def _check_upload(environ: Environ, body: bytes) -> None:
    """Refuses to go on with an upload that is not there, and a whole that is not what its checksum says."""
    upload_id = parse_qs(environ.get("QUERY_STRING", "")).get("uploadId", [""])[0]
    bucket_name, _, key = environ["PATH_INFO"].encode("latin-1").decode().lstrip("/").partition("/")
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    bucket: FakeBucket | None = backend.buckets.get(bucket_name)
    if not upload_id or bucket is None:
        return
    if upload_id not in bucket.multiparts:
        found = backend.get_object(bucket_name, key)
        made_of = found.multipart.id if found and found.multipart else None
        # moto lets a client complete once more what is complete: its first answer may have been lost.
        if environ["REQUEST_METHOD"] != "POST" or made_of != upload_id:
            raise Refusal(404, "NoSuchUpload", "The specified upload does not exist.")
    elif environ["REQUEST_METHOD"] == "POST" and (given := environ.get(_CRC32C)):
        crc = 0
        for number in ElementTree.fromstring(body).iterfind("{*}Part/{*}PartNumber"):
            part = bucket.multiparts[upload_id].parts.get(int(number.text or 0))
            crc = crc32c.crc32c(part.value, crc) if part else crc
        _refuse_unless(given == _base64(crc), "The CRC32C")


def _refuse_unless(same: bool, name: str) -> None:
    if not same:
        raise Refusal(400, "BadDigest", f"{name} you specified did not match what we received.")


def _base64(crc: int) -> str:
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


class _QuietHandler(MotoRequestHandler):
    """Does not log every request."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        return


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="moto's S3 server with Amazon's checks, for tests.")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0: any that is free")
    gate = Gate(DomainDispatcherApplication(create_backend_app))
    server = make_server(
        "127.0.0.1", parser.parse_args().port, gate, threaded=True, request_handler=_QuietHandler
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    # Until whoever started this closes it, or ends.
    sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
