"""Passing a request on to its app, and the answer back, both as they come."""

from __future__ import annotations

from collections.abc import Iterable

import httpx
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from cluster.haproxy_rules import ROUTE_HEADER
from serve_apps.refusal import Refused

# Of one connection, not of the request (RFC 9110, 7.6.1); the length is the client library's to say.
_HOP_BY_HOP = {
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"host", b"content-length",
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

    async def pass_on(self, request: Request, body: bytes, *, port: int, prefix: str) -> Response:
        """The app's answer.

        Args:
            request: What came.
            body: Its body.
            port: Serve's HTTP port on this node.
            prefix: The app's ``route_prefix``.

        Raises:
            Refused: 503: the connection broke before an answer came.
        """
        url = httpx.URL(
            f"http://127.0.0.1:{port}{prefix}{request.url.path}", query=request.url.query.encode()
        )
        headers = _without_hops(request.headers.raw)
        asked = self._client.build_request(request.method, url, headers=headers, content=body)
        try:
            reply = await self._client.send(asked, stream=True)
        except httpx.TransportError as error:
            raise Refused(
                503,
                f"The app did not answer ({type(error).__name__}). Try again.",
                type="server_error",
                code="no_answer",
                retry_after_s=1,
            ) from None
        response = StreamingResponse(
            reply.aiter_raw(), status_code=reply.status_code, background=BackgroundTask(reply.aclose)
        )
        response.raw_headers = [*_answer_headers(reply), (ROUTE_HEADER.encode(), prefix.encode())]
        return response


def _without_hops(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name.lower() not in _HOP_BY_HOP]


def _answer_headers(reply: httpx.Response) -> list[tuple[bytes, bytes]]:
    """Serve puts the request's id into every answer, the front's own too: once is enough."""
    return [pair for pair in _without_hops(reply.headers.raw) if pair[0].lower() != b"x-request-id"]
