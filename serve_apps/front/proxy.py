"""Passing a request on to its app, and the answer back, both as they come; ends when the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from starlette.requests import Request
from starlette.responses import Response

from serve_apps.admission import ClientLeft
from serve_apps.refusal import ASGI, Refused

T = TypeVar("T")

PASSED_HEADER = "x-tandem-front"
"""Marks a request that a front passed on. When a front gets it back, HAProxy does not know the app yet, or
not any more; it then says so with the same header."""

# Of one connection, not of the request (RFC 9110, 7.6.1); the length is the client library's to say.
_HOP_BY_HOP = {
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"host", b"content-length", b"expect",
    # The front's own server writes these too.
    b"date", b"server",
}  # fmt: skip


class Proxy:
    """Sends requests to apps through this node's own HAProxy."""

    def __init__(self) -> None:
        # No limits: how many may come is each app's business. A model may think long before it speaks.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
        self._client = httpx.AsyncClient(
            limits=limits, timeout=httpx.Timeout(None, connect=10), trust_env=False
        )

    async def ask(self, request: Request, body: bytes, *, base_url: str, prefix: str) -> httpx.Response:
        """The beginning of the app's answer; give it to :class:`Answer` or close it.

        Args:
            request: What came.
            body: Its body.
            base_url: Serve's HTTP server on this node.
            prefix: The app's ``route_prefix``.

        Raises:
            ClientLeft: before the app answered; its request has ended too.
            Refused: 503: the connection broke before an answer came.
        """
        path = request.scope.get("raw_path") or quote(request.url.path).encode()
        query = request.scope["query_string"]
        target = prefix.encode() + path + (b"?" + query if query else b"")
        headers = [*without_hops(request.headers.raw), (PASSED_HEADER.encode(), b"1")]
        # Not built by the client: it would add headers of its own, and keep cookies.
        url = httpx.URL(base_url).copy_with(raw_path=target)
        timeout = {"timeout": self._client.timeout.as_dict()}
        asked = httpx.Request(request.method, url, headers=headers, content=body, extensions=timeout)
        try:
            return await _while_connected(self._client.send(asked, stream=True), request.receive)
        except httpx.TransportError as error:
            raise Refused(
                503,
                f"The app did not answer ({type(error).__name__}). Try again.",
                type="server_error",
                code="no_answer",
                retry_after_s=1,
            ) from None


class Answer(Response):
    """What the app answers, as it comes. An app that breaks off breaks the client's connection off too.

    Args:
        reply: The app's.
        headers: To add.
    """

    def __init__(self, reply: httpx.Response, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self._reply = reply
        self.status_code = reply.status_code
        self.background = None
        # Serve puts the request's id into every answer, the front's own too: once is enough.
        kept = [pair for pair in without_hops(reply.headers.raw) if pair[0].lower() != b"x-request-id"]
        self.raw_headers = [*kept, *headers]

    async def __call__(self, scope: ASGI, receive: ASGI, send: ASGI) -> None:
        """Send it."""
        try:
            # Not Starlette's own: with newer servers it notices a client that left only when it sends.
            await _while_connected(self._stream(send), receive)
        finally:
            await self._reply.aclose()

    async def _stream(self, send: ASGI) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for piece in self._reply.aiter_raw():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def without_hops(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Headers that may go on to the next server."""
    given = [(name.lower(), value) for name, value in headers]
    named = b",".join(value for name, value in given if name == b"connection").lower().split(b",")
    dropped = _HOP_BY_HOP | {name.strip() for name in named}
    return [(name, value) for name, value in given if name not in dropped]


async def _while_connected(work: Coroutine[Any, Any, T], receive: ASGI) -> T:
    """What ``work`` gives.

    Raises:
        ClientLeft: the client did, and ``work`` was cancelled.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_until_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeft
    finally:
        for task in (working, leaving):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _until_left(receive: ASGI) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
