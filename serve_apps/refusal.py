"""Refusals at the door, in the shape of OpenAI's errors, which its clients turn into their exceptions."""

from __future__ import annotations

import json
import math
from typing import Any

ASGI = Any
"""An ASGI scope, callable or message; the specification has no types of its own."""


class Refused(Exception):
    """A request that goes no further.

    Args:
        status: HTTP status.
        message: For people; holds nothing secret of the request.
        type: OpenAI's kind of error.
        code: OpenAI's word for this error.
        param: Field of the request that is at fault.
        retry_after_s: When another try makes sense.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        code: str,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error = {"message": message, "type": type, "param": param, "code": code}
        self.retry_after_s = retry_after_s

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The answer's headers, but its length."""
        headers = [(b"content-type", b"application/json")]
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if self.retry_after_s is not None:
            # The header has whole seconds; 0 would mean: at once.
            headers.append((b"retry-after", str(max(1, math.ceil(self.retry_after_s))).encode()))
        return headers

    async def answer(self, scope: ASGI, send: ASGI) -> None:
        """Send it: as an HTTP answer, or as the end of a WebSocket that was not accepted yet."""
        body = json.dumps({"error": self.error}).encode()
        headers = [*self.headers(), (b"content-length", str(len(body)).encode())]
        kind = "http"
        if scope["type"] == "websocket":
            if "websocket.http.response" not in (scope.get("extensions") or {}):
                await send({"type": "websocket.close", "code": 1008, "reason": self.error["code"]})
                return
            kind = "websocket.http"
        await send({"type": f"{kind}.response.start", "status": self.status, "headers": headers})
        await send({"type": f"{kind}.response.body", "body": body})
