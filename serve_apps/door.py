"""The door of a replica: keys, scopes, limits, waiting, request log and usage, around any ASGI application.

It looks at a request once, before the application does, and at the first message of the answer. Tokens are
counted in the engine's client (see ``tally``), so a stream passes without being parsed or copied.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any

from serve_apps.admission import Admission, ClientLeft, Replay
from serve_apps.keyring import Keyring
from serve_apps.limits import Limits
from serve_apps.refusal import ASGI, Refused
from serve_apps.request_log import log_request
from serve_apps.scopes import allowed_model, check_permission, header, is_inference
from serve_apps.tally import CURRENT, Tally
from serve_apps.usage import Usage

_OPEN = {"/health", "/ping"}
"""Balancers and kubelets ask these, and have no key."""

_REQUEST_ID = b"x-request-id"
_MAX_LOGGED_BYTES = 64 << 10
_CLIENT_LEFT = 499
"""No answer was sent: the client was gone. nginx's number."""


class Door:
    """An ASGI application that lets some requests through to ``app``.

    Args:
        app: The application behind the door.
        name: Name of the app: the model that a request without one means, and that usage is booked under.
        keyring: Whose requests come in; None: everybody's.
        limits: Requests and tokens per key; None: they are counted elsewhere.
        max_ongoing_requests: Requests that may be behind the door at a time.
        max_queued_requests: Requests that may wait for that; one more is refused with 429.
        retry_after_s: When a client refused for overload should try again.
        log_requests: Write a line per request.
        log_prompts: Put the request's body into it, its first 64 KiB.
        usage: Where usage is counted; None: elsewhere.
    """

    def __init__(
        self,
        app: ASGI,
        *,
        name: str,
        keyring: Keyring | None,
        limits: Limits | None,
        max_ongoing_requests: int,
        max_queued_requests: int,
        retry_after_s: float = 1.0,
        log_requests: bool = True,
        log_prompts: bool = False,
        usage: Usage | None = None,
    ) -> None:
        self._app, self._name = app, name
        self._keyring, self._limits, self._usage = keyring, limits, usage
        self._log_requests, self._log_prompts = log_requests, log_prompts
        self.admission = Admission(
            max_ongoing=max_ongoing_requests, max_queued=max_queued_requests, retry_after_s=retry_after_s
        )

    async def __call__(self, scope: ASGI, receive: ASGI, send: ASGI) -> None:
        """Answer one request, or let it through."""
        if scope["type"] not in ("http", "websocket") or _is_preflight(scope):
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in _OPEN:
            await self._app(scope, receive, send)
            return
        visit = _Visit(scope, path, send, Tally(self._name))
        receive = visit.watching(receive)
        if self._log_requests and self._log_prompts:
            receive = visit.listening(receive)
        token = CURRENT.set(visit.tally)
        try:
            await self._pass(visit, receive)
        except Refused as refused:
            visit.status = refused.status
            await refused.answer(visit.scope, visit.send)
        except (ClientLeft, asyncio.CancelledError) as error:
            visit.status = visit.status or _CLIENT_LEFT
            if not isinstance(error, ClientLeft):
                raise
        except BaseException:
            visit.status = visit.status or 500
            raise
        finally:
            CURRENT.reset(token)
            if self._log_requests:
                log_request(visit.tally, app=self._name, **visit.fields())

    async def _pass(self, visit: _Visit, receive: ASGI) -> None:
        scope, tally = visit.scope, visit.tally
        key = await self._keyring.key_of(scope["headers"]) if self._keyring else None
        if key is not None:
            tally.key_id = key.id
            check_permission(key, visit.path)
        if not _is_work(scope, visit.path):
            await self._app(scope, receive, visit.send)
            return
        if key is not None and not key.opens_all_models:
            receive = Replay(receive)
            tally.model = await allowed_model(key, scope, receive, default=self._name)
        if self._limits and key is not None:
            await self._limits.know(key)
        # Nothing may be awaited between these and the place that is taken.
        self.admission.check_room()
        if self._limits and key is not None:
            self._limits.admit(key, tally)
        try:
            await self._enter(visit, receive)
        finally:
            if self._limits and key is not None:
                self._limits.done(key, tally)

    async def _enter(self, visit: _Visit, receive: ASGI) -> None:
        tally = visit.tally
        receive = await self.admission.enter(receive)
        visit.entered_at = time.monotonic()
        try:
            await self._app(visit.scope, receive, visit.send)
        finally:
            self.admission.leave()
            if isinstance(receive, Replay):
                receive.close()
            if self._usage:
                self._usage.add(
                    tally.key_id,
                    tally.model,
                    prompt_tokens=tally.prompt_tokens,
                    completion_tokens=tally.completion_tokens,
                )


class _Visit:
    """One request at the door, and what its log line will say."""

    def __init__(self, scope: ASGI, path: str, send: ASGI, tally: Tally) -> None:
        self.path, self.tally = path, tally
        self.status: int | None = None
        self.entered_at: float | None = None
        self._send = send
        self._traceparent = header(scope, b"traceparent")
        self._body: bytearray | None = None
        self._has_left = False
        given = header(scope, _REQUEST_ID)
        # Ray's server gives every request an id before it comes here, and adds it to the answer itself.
        self._adds_id = given is None
        self._request_id = given or secrets.token_hex(16)
        if given is None:
            # For vLLM too, which makes it part of its own id.
            scope = {**scope, "headers": [*scope["headers"], (_REQUEST_ID, self._request_id.encode())]}
        self.scope = scope

    # Not a coroutine itself: a message of a stream costs one call and one comparison more.
    def send(self, message: ASGI) -> Any:
        """ASGI's ``send``; notes the status, and adds the request id to the answer where nobody else does."""
        if message["type"] == "http.response.start":
            # vLLM answers a client that has left, too: with 200 and nothing.
            self.status = _CLIENT_LEFT if self._has_left else message["status"]
            if self._adds_id:
                headers = [*message.get("headers", ()), (_REQUEST_ID, self._request_id.encode())]
                message = {**message, "headers": headers}
        elif message["type"] == "websocket.accept":
            self.status = 101
        return self._send(message)

    def watching(self, receive: ASGI) -> ASGI:
        """``receive``, noting that the client has left."""

        async def watch() -> Any:
            message = await receive()
            if message["type"] == "http.disconnect":
                self._has_left = True
            return message

        return watch

    def listening(self, receive: ASGI) -> ASGI:
        """``receive``, keeping the beginning of the body for the log."""
        body = self._body = bytearray()

        async def listen() -> Any:
            message = await receive()
            if len(body) < _MAX_LOGGED_BYTES:
                body.extend(message.get("body", b"")[: _MAX_LOGGED_BYTES - len(body)])
            return message

        return listen

    def fields(self) -> dict[str, Any]:
        """What the log says beside the tally."""
        entered_at, body = self.entered_at, self._body
        return {
            "method": self.scope.get("method", "WEBSOCKET"),
            "path": self.path,
            "status": self.status,
            "queued_s": None if entered_at is None else round(entered_at - self.tally.began_at, 6),
            "request_id": self._request_id,
            "traceparent": self._traceparent,
            **({} if body is None else {"prompt": body.decode(errors="replace")}),
        }


def _is_preflight(scope: ASGI) -> bool:
    """A browser's question before it sends a key: vLLM's CORS middleware answers, no route hears of it."""
    wanted = (b"origin", b"access-control-request-method")
    return scope.get("method") == "OPTIONS" and all(header(scope, name) for name in wanted)


def _is_work(scope: ASGI, path: str) -> bool:
    """Whether it asks the engine for something: only then limits, places and usage are its business."""
    return scope["type"] == "websocket" or (scope["method"] == "POST" and is_inference(path))
