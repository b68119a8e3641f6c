"""The admin route of adapters inside a replica: look at, attach and detach them over HTTP.

Whoever gets here may administer: the door has checked that. A change is a record in the store, which this and
every other replica follow within a second or two.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runtime.core.config import load_spec
from runtime.core.errors import ConfigError, StorageError
from serve_apps.adapters import Limits, attach, detach, references
from serve_apps.spec import ServeSpec
from storage import attached
from storage.store import open_store

PATH = "/admin/adapters"
_Work = Callable[[Request], Awaitable[Response]]


def adapter_routes(plan: Mapping[str, Any]) -> list[Route]:
    """``GET`` and ``POST {"name": ..., "model": ...}`` at ``/admin/adapters``, ``DELETE`` below it by name.

    Args:
        plan: A :class:`serve_apps.plan.ServePlan` as plain data.
    """
    admin = _Admin(plan)
    return [
        Route(PATH, _told(admin.list), methods=["GET"]),
        Route(PATH, _told(admin.add), methods=["POST"]),
        Route(PATH + "/{name}", _told(admin.remove), methods=["DELETE"]),
    ]


class _Admin:
    def __init__(self, plan: Mapping[str, Any]) -> None:
        self._spec = load_spec(ServeSpec, plan["spec"])
        self._limits = Limits.of(plan["engine"])
        self._store = open_store(self._spec.store)

    async def list(self, _: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._list))

    async def add(self, request: Request) -> Response:
        try:
            body = await request.json()
            name, model = body["name"], body["model"]
        except (ValueError, KeyError, TypeError):
            raise ConfigError('the body must be JSON: {"name": "helper", "model": "helper/v2"}.') from None
        if not (isinstance(name, str) and isinstance(model, str)):
            raise ConfigError(f"name and model are {name!r} and {model!r}; both must be texts.")
        return JSONResponse(await run_in_threadpool(self._add, name, model), status_code=202)

    async def remove(self, request: Request) -> Response:
        name = request.path_params["name"]
        await run_in_threadpool(self._remove, name)
        return JSONResponse({"name": name, "removed": True}, status_code=202)

    def _list(self) -> dict[str, Any]:
        wanted = references(self._spec, attached.listing(self._store, self._spec.name))
        return {
            "app": self._spec.name,
            "adapters": [{"name": name, "model": reference} for name, reference in wanted.items()],
            "replicas": attached.reports(self._store, self._spec.name),
        }

    def _add(self, name: str, reference: str) -> dict[str, Any]:
        change = attach(self._store, self._spec, name, reference, limits=self._limits)
        return {"name": name, "model": reference, "version": change.adapter.version.ref}

    def _remove(self, name: str) -> None:
        detach(self._store, self._spec, name)


def _told(work: _Work) -> _Work:
    """``work`` with our errors in OpenAI's shape."""

    async def handle(request: Request) -> Response:
        try:
            return await work(request)
        except ConfigError as error:
            return _error(400, "invalid_request_error", str(error))
        except StorageError as error:
            return _error(503, "service_unavailable", str(error))

    return handle


def _error(status_code: int, kind: str, message: str) -> Response:
    return JSONResponse(
        {"error": {"message": message, "type": kind, "param": None, "code": status_code}},
        status_code=status_code,
    )
