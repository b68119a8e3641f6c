"""The front's HTTP application: the list of all models, and every request whose app HAProxy did not know."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve_apps.front.body import model_in
from serve_apps.front.keys import FrontKeys
from serve_apps.front.known import KnownApp, KnownApps
from serve_apps.front.proxy import Proxy
from serve_apps.refusal import Refused

_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_RETRY_AFTER_S = 5.0

MaxModelLen = Callable[[KnownApp], Awaitable[int | None]]


class Front:
    """Answers for all apps.

    Args:
        apps: What there is.
        max_model_len: Asks an app for its context length.
    """

    def __init__(self, apps: KnownApps, max_model_len: MaxModelLen) -> None:
        self._apps, self._max_model_len = apps, max_model_len
        self._keys, self._proxy = FrontKeys(), Proxy()

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/health", lambda _: Response()),
            Route("/v1/models", self._models),
            Route("/v1/models/{model:path}", self._model),
            Route("/{path:path}", self._pass_on, methods=_METHODS),
        ]
        return Starlette(routes=routes, exception_handlers={Refused: _refusal})

    async def _models(self, request: Request) -> Response:
        visible = await self._keys.visible(await self._apps.all(), request.headers.raw)
        cards = [card for app in await self._apps.all() for card in await self._cards(app, visible)]
        return JSONResponse({"object": "list", "data": cards})

    async def _model(self, request: Request) -> Response:
        model = request.path_params["model"]
        visible = await self._keys.visible(await self._apps.all(), request.headers.raw)
        for app in await self._apps.all():
            for card in await self._cards(app, visible):
                if card["id"] == model:
                    return JSONResponse(card)
        raise _unknown(model, visible)

    async def _cards(self, app: KnownApp, visible: dict[str, list[str]]) -> list[dict[str, Any]]:
        names = visible.get(app.spec.name, [])
        length = await self._max_model_len(app) if names else None
        return [_card(app, name, length) for name in names if name != app.spec.model]

    async def _pass_on(self, request: Request) -> Response:
        body = await request.body()
        model = model_in(request.headers.get("content-type", ""), body)
        app = await self._apps.answering_to(model) if model is not None else None
        if app is None:
            # Who may not know what there is learns nothing from a wrong name either.
            visible = await self._keys.visible(await self._apps.all(), request.headers.raw)
            raise _unknown(model, visible) if model is not None else _no_model(request)
        _check_answers(app)
        return await self._proxy.pass_on(request, body, port=self._apps.http_port, prefix=app.prefix)


def _card(app: KnownApp, name: str, max_model_len: int | None) -> dict[str, Any]:
    is_adapter = name in app.adapters
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "tandem",
        "root": app.adapters[name] if is_adapter else app.spec.model,
        "parent": app.spec.name if is_adapter else None,
        "version": app.adapters[name] if is_adapter else app.spec.model,
        "max_model_len": max_model_len,
        "app": app.spec.name,
        "state": "SCALED_TO_ZERO" if app.is_asleep else app.status,
    }


def _check_answers(app: KnownApp) -> None:
    """Refuse for an app that cannot answer now. One that sleeps is woken by the request itself."""
    if app.running or app.is_asleep:
        return
    why = f": {app.message}" if app.message else ""
    raise Refused(
        503,
        f"The app {app.spec.name} is {app.status}{why}",
        type="server_error",
        code="model_not_ready",
        retry_after_s=_RETRY_AFTER_S,
    )


def _unknown(model: str, visible: dict[str, list[str]]) -> Refused:
    known = sorted({name for names in visible.values() for name in names})
    return Refused(
        404,
        f"The model {model!r:.200} does not exist here. Known: {', '.join(known) or 'none'}.",
        code="model_not_found",
        param="model",
    )


def _no_model(request: Request) -> Refused:
    if request.method != "POST":
        return Refused(404, f"Nothing answers at {request.url.path}.", code="not_found")
    return Refused(400, "The body names no model. Send a field 'model'.", code="model_missing", param="model")


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    return JSONResponse({"error": error.error}, status_code=error.status, headers=headers)
