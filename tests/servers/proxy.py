"""A reverse proxy that breaks what passes through it, as networks and servers do: for tests of transfers."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Literal
from xml.sax.saxutils import escape

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

Kind = Literal["reset", "status", "truncate_lying", "truncate_short", "flip", "flip_up", "trickle", "stall"]

TRICKLE_BYTES = 10
TRICKLE_S = 0.05
_WRITE_BYTES = 64 * 1024
_START_S = 10.0
# They concern one connection, not the request.
_HOP_HEADERS = (
    "connection", "expect", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
    "te", "trailer", "transfer-encoding", "upgrade",
)  # fmt: skip
# What aiohttp's client would add where our client sent none.
_AUTO_HEADERS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


@dataclass
class Fault:
    """One thing that goes wrong with the next requests that match.

    - ``reset``: the connection is reset after ``after_bytes`` of the answer's body; with ``direction="up"``
      after so many of the request's, and the server never sees that request. As in any network, a client may
      lose what had arrived but was not read yet.
    - ``status``: answered with ``status``, without the server.
    - ``truncate_lying``: the headers promise the whole body, the connection is closed after half of it.
    - ``truncate_short``: half of the body, and a Content-Length that agrees; Content-Range stays as it was.
    - ``flip``: one bit in the middle of the answer's body is turned over.
    - ``flip_up``: one bit in the middle of the request's body is turned over.
    - ``trickle``: the answer's body comes at 10 bytes per 50 ms.
    - ``stall``: no answer, until the proxy ends.

    Args:
        kind: What goes wrong.
        times: With how many requests; None: with all. It counts down: at 0 everything has happened.
        method: Only with these, such as ``GET``.
        path: Only where this regular expression is found in path and query, percent-encoded as they came.
        after_bytes: For ``reset``; None or 0: before the answer's headers, or the request's body.
        status: For ``status``.
        body: For ``status``.
        code: For ``status`` without a body: the store's word for it, said as the API that was asked says it
            (JSON below ``/storage/v1/``, else XML).
        min_body_bytes: Only where the request's body, or if it has none the answer's, is at least this large.
            To learn how large the answer is, the server is asked, whatever happens then.
        direction: For ``reset``: ``down`` is the answer, ``up`` is the request.
        retry_after_s: For ``status``: when the client is told to try again.
    """

    kind: Kind
    times: int | None = 1
    method: str | None = None
    path: str | None = None
    after_bytes: int | None = None
    status: int | None = None
    body: bytes = b""
    code: str | None = None
    min_body_bytes: int = 0
    direction: Literal["down", "up"] = "down"
    retry_after_s: int | None = None

    def __post_init__(self) -> None:
        if (self.kind == "status") != (self.status is not None):
            raise ValueError(
                f"kind {self.kind!r} with status {self.status!r}: kind='status' needs one, no other."
            )

    def matches(self, method: str, path_qs: str) -> bool:
        """Whether it can happen to such a request, if that is large enough."""
        return (
            self.times != 0
            and self.method in (None, method)
            and (self.path is None or re.search(self.path, path_qs) is not None)
        )


@dataclass
class _Answer:
    """What the server answered, whole."""

    status: int
    headers: CIMultiDict[str]
    body: bytes


class FaultProxy:
    """Passes requests on to one server and does to them what faults say. Use it with ``with``.

    It listens on a free port of 127.0.0.1, in a thread of its own, and holds whole bodies in memory.

    Args:
        upstream_url: The server, such as ``http://127.0.0.1:9000``.

    Attributes:
        url: Where it listens.
        requests: Method, path with query, and the status that was passed on or the kind of the fault; in the
            order of the answers, each before its answer is sent.
        bytes_up: Bytes of request bodies that the server got.
        bytes_down: Bytes of answers' bodies that were sent to clients.
    """

    def __init__(self, upstream_url: str) -> None:
        self.url = ""
        self.requests: list[tuple[str, str, int | str]] = []
        self.bytes_up = 0
        self.bytes_down = 0
        self._upstream_url = upstream_url
        self._faults: list[Fault] = []

    def add(self, *faults: Fault) -> None:
        """From the next request on. Where several match, the one that was added first happens."""
        self._faults.extend(faults)

    def __enter__(self) -> FaultProxy:
        started: Future[str] = Future()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(started),), daemon=True)
        self._thread.start()
        self.url = started.result(_START_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()

    async def _serve(self, started: Future[str]) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=0)
        app.router.add_route("*", "/{path:.*}", self._handle)
        # Without auto_decompress bodies stay as they came. A client that goes away takes its request with it.
        runner = web.AppRunner(
            app, access_log=None, auto_decompress=False, handler_cancellation=True, shutdown_timeout=0.1
        )
        try:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
        except OSError as error:
            started.set_exception(error)
            return
        async with aiohttp.ClientSession(
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            connector=aiohttp.TCPConnector(limit=0),
            skip_auto_headers=_AUTO_HEADERS,
            timeout=aiohttp.ClientTimeout(total=None),
        ) as self._client:
            started.set_result(f"http://127.0.0.1:{runner.addresses[0][1]}")
            await self._ending.wait()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        fault, answer = await self._take(request)
        if fault and fault.kind == "stall":
            self._note(request, fault.kind)
            await self._ending.wait()
            return self._reset(request)
        if fault and fault.kind == "reset" and fault.direction == "up":
            await _skip(request, fault.after_bytes or 0)
            self._note(request, fault.kind)
            return self._reset(request)
        body = await request.read()
        if fault and fault.kind == "status":
            self._note(request, fault.kind)
            return _refusal(request, fault)
        if fault and fault.kind == "flip_up":
            body = _flipped(body)
        answer = answer or await self._ask(request, body)
        return await self._pass_on(request, answer, fault)

    async def _take(self, request: web.Request) -> tuple[Fault | None, _Answer | None]:
        """The fault for this request, counted down; the answer, too, where its size was needed for that."""
        answer = None
        fitting = [fault for fault in self._faults if fault.matches(request.method, request.raw_path)]
        size_bytes = request.content_length or 0
        if request.can_read_body and request.content_length is None:
            size_bytes = len(await request.read())
        if not size_bytes and any(fault.min_body_bytes for fault in fitting):
            answer = await self._ask(request, b"")
            size_bytes = len(answer.body)
            # Somebody else may have had them meanwhile.
            fitting = [fault for fault in fitting if fault.times != 0]
        fault = next((fault for fault in fitting if size_bytes >= fault.min_body_bytes), None)
        if fault and fault.times:
            fault.times -= 1
        return fault, answer

    def _note(self, request: web.Request, what: int | str) -> None:
        self.requests.append((request.method, request.raw_path, what))

    async def _ask(self, request: web.Request, body: bytes) -> _Answer:
        """The server's answer, or a 502 of ours."""
        headers = _passing(request.headers)
        has_length = headers.popall("Content-Length", None) is not None
        try:
            async with self._client.request(
                request.method,
                # As it came: nothing is decoded and encoded again.
                URL(self._upstream_url + request.raw_path, encoded=True),
                headers=headers,
                data=body if body or has_length else None,
                allow_redirects=False,
            ) as response:
                self.bytes_up += len(body)
                return _Answer(response.status, _passing(response.headers), await response.read())
        except aiohttp.ClientError as error:
            text = f"{self._upstream_url} did not answer ({error})".encode()
            return _Answer(502, CIMultiDict({"Content-Type": "text/plain"}), text)

    async def _pass_on(
        self, request: web.Request, answer: _Answer, fault: Fault | None
    ) -> web.StreamResponse:
        """Sends the answer, spoilt where a fault says so."""
        kind = fault.kind if fault else None
        self._note(request, kind or answer.status)
        if fault and kind == "reset" and not fault.after_bytes:
            return self._reset(request)
        if answer.body:
            answer.headers["Content-Length"] = str(len(answer.body))
        body = _spoilt(answer.body, fault)
        if kind == "truncate_short":
            answer.headers["Content-Length"] = str(len(body))
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        await response.prepare(request)
        step_bytes, pause_s = (TRICKLE_BYTES, TRICKLE_S) if kind == "trickle" else (_WRITE_BYTES, 0.0)
        for start in range(0, len(body), step_bytes):
            piece = body[start : start + step_bytes]
            self.bytes_down += len(piece)
            await response.write(piece)
            await asyncio.sleep(pause_s)
        if kind == "reset":
            await self._flush(request)
            return self._reset(request, response)
        if kind == "truncate_lying" and request.transport:
            request.transport.close()
            return response
        await response.write_eof()
        return response

    async def _flush(self, request: web.Request) -> None:
        """Waits until the kernel has all that was written: a reset would drop the rest."""
        while request.transport and request.transport.get_write_buffer_size():  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    def _reset(self, request: web.Request, response: web.StreamResponse | None = None) -> web.StreamResponse:
        """Resets the connection; what is returned goes nowhere."""
        if request.transport:
            # To linger for no time makes the kernel send RST, not FIN.
            connection = request.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.transport.abort()
        return response or web.Response()


def _passing(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """The headers that go through a proxy."""
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in _HOP_HEADERS)


def _spoilt(body: bytes, fault: Fault | None) -> bytes:
    """What is sent of an answer's body."""
    match fault.kind if fault else None:
        case "flip":
            return _flipped(body)
        case "truncate_lying" | "truncate_short":
            return body[: len(body) // 2]
        case "reset":
            return body[: fault.after_bytes if fault else 0]
    return body


def _flipped(body: bytes) -> bytes:
    """With one bit in the middle turned over."""
    spoilt = bytearray(body)
    if spoilt:
        spoilt[len(spoilt) // 2] ^= 0x10
    return bytes(spoilt)


async def _skip(request: web.Request, size_bytes: int) -> None:
    """Reads so much of the request's body."""
    while size_bytes > 0 and (piece := await request.content.read(min(size_bytes, _WRITE_BYTES))):
        size_bytes -= len(piece)


def _refusal(request: web.Request, fault: Fault) -> web.Response:
    """What a fault of kind ``status`` answers."""
    assert fault.status is not None
    body, headers = fault.body, {}
    if fault.retry_after_s is not None:
        headers["Retry-After"] = str(fault.retry_after_s)
    if fault.code and not body:
        is_json = "/storage/v1/" in request.raw_path
        headers["Content-Type"] = "application/json" if is_json else "application/xml"
        body = (_json_error if is_json else _xml_error)(fault.status, fault.code)
    return web.Response(status=fault.status, body=body, headers=headers)


def _json_error(status: int, code: str) -> bytes:
    """As Google's JSON API writes it."""
    error = {"code": status, "message": code, "errors": [{"reason": code, "message": code}]}
    return json.dumps({"error": error}).encode()


def _xml_error(status: int, code: str) -> bytes:
    """As S3 and Google's XML API write it."""
    text = escape(f"{code} ({status})")
    return f"<Error><Code>{escape(code)}</Code><Message>{text}</Message></Error>".encode()
