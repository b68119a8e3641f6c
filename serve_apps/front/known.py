"""What apps and models there are, as Ray Serve and the store tell; looked at when somebody asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.applications import FRONT
from runtime.core.config import load_spec
from runtime.core.errors import TandemError
from runtime.core.log import get_logger
from serve_apps.adapters import references
from serve_apps.plan import IMPORT_PATH
from serve_apps.spec import ServeSpec
from serve_apps.status import why
from storage import attached
from storage.patience import patience
from storage.store import open_store

_log = get_logger(__name__)
_FRESH_S = 1.0
_PATIENCE_S = 3.0


@dataclass(frozen=True)
class KnownApp:
    """One serve app."""

    spec: ServeSpec
    prefix: str
    status: str
    """Serve's word."""
    message: str
    """Why, where something is wrong."""
    running: int
    """Replicas that answer."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Served name to reference."""

    @property
    def is_asleep(self) -> bool:
        """Scaled to zero: a request wakes it."""
        return self.status == "RUNNING" and self.running == 0

    def names(self) -> Iterator[str]:
        """Every ``model`` that it answers to."""
        yield self.spec.name
        yield self.spec.model
        yield from self.adapters


class KnownApps:
    """All apps; a look is as old as a second at most."""

    def __init__(self) -> None:
        self._apps: list[KnownApp] = []
        self.http_port = 8000
        self._looked_at = float("-inf")
        self._lock = asyncio.Lock()

    async def all(self) -> list[KnownApp]:
        """Every app, by name."""
        async with self._lock:
            if time.monotonic() - self._looked_at > _FRESH_S:
                await asyncio.to_thread(self._look)
                self._looked_at = time.monotonic()
        return self._apps

    async def answering_to(self, model: str) -> KnownApp | None:
        """The app that ``model`` means: an app's own names come before others' adapters."""
        apps = await self.all()
        own = (app for app in apps if model in (app.spec.name, app.spec.model))
        return next(own, None) or next((app for app in apps if model in app.adapters), None)

    def _look(self) -> None:
        from ray.serve.context import _get_global_client

        client = _get_global_client()
        assert client is not None
        details = client.get_serve_details()
        self.http_port = int((details.get("http_options") or {}).get("port") or 8000)
        found = [_known(name, app) for name, app in sorted(details["applications"].items()) if name != FRONT]
        self._apps = [app for app in found if app]


def _known(name: str, details: Mapping[str, Any]) -> KnownApp | None:
    config = details.get("deployed_app_config") or {}
    if config.get("import_path") != IMPORT_PATH:
        return None  # somebody's own Serve app: it answers below its prefix
    try:
        spec = load_spec(ServeSpec, config["args"])
    except TandemError:
        return None  # Serve shows why in its status
    replicas = [r for d in (details.get("deployments") or {}).values() for r in d["replicas"]]
    return KnownApp(
        spec=spec,
        prefix=str(details.get("route_prefix") or config.get("route_prefix") or f"/{name}"),
        status=str(getattr(details["status"], "value", details["status"])),
        message=why(details),
        running=sum(str(getattr(r["state"], "value", r["state"])) == "RUNNING" for r in replicas),
        adapters=_adapters(spec),
    )


def _adapters(spec: ServeSpec) -> Mapping[str, str]:
    try:
        with patience(_PATIENCE_S):
            return references(spec, attached.listing(open_store(spec.store), spec.name))
    except TandemError as error:
        _log.warning("the adapters of %s cannot be looked up: %s", spec.name, error)
        return spec.adapters
