"""The front's HTTP application: the list of all models, and every request whose app HAProxy did not know."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cluster.haproxy_rules import ROUTE_HEADER
from serve_apps.admission import ClientLeft
from serve_apps.front.body import is_form, model_in
from serve_apps.front.keys import FrontKeys
from serve_apps.front.known import KnownApp, KnownApps
from serve_apps.front.proxy import PASSED_HEADER, Answer, Proxy
from serve_apps.refusal import Refused

_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_RETRY_AFTER_S = 5.0
_REACHABLE_S = 5.0
"""How long an app may be known to Serve and not yet to HAProxy."""
_AGAIN_S = 0.2
_WAKES_S = 1.0
"""How often to look whether an app is awake."""
_CLOSING: set[asyncio.Future[None]] = set()
"""The event loop itself keeps no task alive."""
_MOST_BODY_BYTES = 64 << 20
"""The front keeps a body until it has found the model in it."""


class Front:
    """Answers for all apps.

    Args:
        apps: What there is.
    """

    def __init__(self, apps: KnownApps) -> None:
        self._apps = apps
        self._keys, self._proxy = FrontKeys(), Proxy()

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/health", lambda _: Response()),
            Route("/v1/models", self._models),
            Route("/v1/models/{model:path}", self._model),
            Route("/{path:path}", self._pass_on, methods=_METHODS),
        ]
        handlers: Any = {Refused: _refusal, HTTPException: _http_error, ClientLeft: _nobody}
        # As vLLM's own server: browsers may ask from anywhere, with a key.
        cors = Middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])
        return Starlette(routes=routes, exception_handlers=handlers, middleware=[cors])

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": await self._cards(request)})

    async def _model(self, request: Request) -> Response:
        model = request.path_params["model"]
        cards = await self._cards(request)
        for card in cards:
            if model in (card["id"], card["version"]):
                return JSONResponse(card)
        raise _unknown(model, [card["id"] for card in cards])

    async def _cards(self, request: Request) -> list[dict[str, Any]]:
        apps = await self._apps.all()
        visible = await self._keys.visible(apps, request.headers.raw)
        pairs = [(app, name) for app in apps for name in visible.get(app.spec.name, [])]
        return [_card(app, name) for app, name in pairs if name == app.spec.name or name in app.adapters]

    async def _pass_on(self, request: Request) -> Response:
        if PASSED_HEADER in request.headers:
            return Response(status_code=503, headers={PASSED_HEADER: "1"})
        # Before the body is read: who may use nothing here sends nothing either.
        visible = await self._keys.visible(await self._apps.all(), request.headers.raw)
        body = await _body_of(request)
        content_type = request.headers.get("content-type", "")
        model = model_in(content_type, body)
        deadline = time.monotonic() + _REACHABLE_S
        while True:
            app = await self._app(model, request, visible)
            reply = await self._ask(app, request, body)
            if PASSED_HEADER not in reply.headers:
                break
            # It came back: HAProxy hears of a new app a moment after Serve, and of the end of one too.
            await reply.aclose()
            if time.monotonic() > deadline:
                raise _not_ready(app, "not reachable yet")
            await asyncio.sleep(_AGAIN_S)
        # Only what a key opened, and what HAProxy reads as we do: nobody else may teach it.
        learned = reply.status_code < 400 and not is_form(content_type)
        return Answer(reply, [(ROUTE_HEADER.encode(), app.prefix.encode())] if learned else [])

    async def _ask(self, app: KnownApp, request: Request, body: bytes) -> httpx.Response:
        """The beginning of the app's answer; of one that sleeps, once it is awake.

        Raises:
            Refused: it did not wake in time, or cannot.
        """
        url, prefix = self._apps.base_url, app.prefix
        asking = asyncio.ensure_future(self._proxy.ask(request, body, base_url=url, prefix=prefix))
        waking = asyncio.ensure_future(self._until_awake(app))
        try:
            await asyncio.wait({asking, waking}, return_when=asyncio.FIRST_COMPLETED)
            # An answer counts, whatever the other found at the same moment.
            if not asking.done():
                await waking
            return await asking
        except BaseException:
            asking.cancel()
            asking.add_done_callback(_drop)
            raise
        finally:
            waking.cancel()
            waking.add_done_callback(_drop)

    async def _until_awake(self, app: KnownApp) -> None:
        """Return once a replica of the app runs.

        Raises:
            Refused: there is none in time, or the app is gone or failed.
        """
        deadline = time.monotonic() + app.spec.wake_timeout_s
        while app.running == 0:
            await asyncio.sleep(_WAKES_S)
            apps = await self._apps.all()
            now = next((one for one in apps if one.spec.name == app.spec.name), None)
            if now is None:
                raise _not_ready(app, "gone")
            if not now.answers:
                raise _not_ready(now, now.status)
            if now.running == 0 and time.monotonic() > deadline:
                raise _not_ready(now, f"not awake after {now.spec.wake_timeout_s:g} s")
            app = now

    async def _app(self, model: str | None, request: Request, visible: dict[str, list[str]]) -> KnownApp:
        """The app that answers to the model, one that can answer now; one that sleeps the request wakes.

        Raises:
            Refused: there is none.
        """
        if model is None:
            raise _no_model(request)
        app = await self._apps.answering_to(model)
        # Who may not use it wakes nothing, and learns nothing from a wrong name, nor of an app's faults.
        if app is not None and app.answers and (app.running or model in visible.get(app.spec.name, ())):
            return app
        if app is None or app.spec.name not in visible:
            raise _unknown(model, [name for names in visible.values() for name in names])
        raise _not_ready(app, app.status)


def _card(app: KnownApp, name: str) -> dict[str, Any]:
    reference = None if name == app.spec.name else app.adapters[name]
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "tandem",
        "root": reference or app.version,
        "parent": app.spec.name if reference else None,
        "version": reference or app.version,
        "max_model_len": app.max_model_len,
        "app": app.spec.name,
        "state": "SCALED_TO_ZERO" if app.is_asleep else app.status,
    }


async def _body_of(request: Request) -> bytes:
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > _MOST_BODY_BYTES:
                raise Refused(
                    413,
                    f"The body has more than {_MOST_BODY_BYTES >> 20} MiB. Send it below its app's prefix.",
                    code="body_too_large",
                )
    except ClientDisconnect:
        raise ClientLeft from None
    return bytes(body)


def _not_ready(app: KnownApp, how: str) -> Refused:
    return Refused(
        503,
        f"The app {app.spec.name} is {how}{': ' if app.message else '.'}{app.message}",
        type="server_error",
        code="model_not_ready",
        retry_after_s=_RETRY_AFTER_S,
    )


def _drop(task: asyncio.Future[Any]) -> None:
    """What a task gave that nobody waits for any more: an answer is closed, an error is no news."""
    if task.cancelled() or task.exception() is not None:
        return
    if isinstance(answer := task.result(), httpx.Response):
        closing = asyncio.ensure_future(answer.aclose())
        _CLOSING.add(closing)
        closing.add_done_callback(_CLOSING.discard)


def _unknown(model: str, names: Iterable[str]) -> Refused:
    return Refused(
        404,
        f"The model {model!r:.200} does not exist here. Known: {', '.join(sorted(set(names))) or 'none'}.",
        code="model_not_found",
        param="model",
    )


def _no_model(request: Request) -> Refused:
    if request.method != "POST":
        return Refused(404, f"Nothing answers at {request.url.path}.", code="not_found")
    return Refused(
        400,
        "The body names no model. Send JSON with a field 'model', as content-type application/json.",
        code="model_missing",
        param="model",
    )


async def _refusal(request: Request, error: Any) -> Response:
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    return JSONResponse({"error": error.error}, status_code=error.status, headers=headers)


async def _http_error(request: Request, error: Any) -> Response:
    return await _refusal(request, Refused(error.status_code, f"{error.detail}.", code="invalid_request"))


async def _nobody(request: Request, error: Any) -> Response:
    return Response(status_code=499)  # nobody reads it
