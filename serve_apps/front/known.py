"""What apps and models there are, as Ray Serve and the store tell; looked at when somebody asks."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.applications import FRONT
from runtime.core.config import load_spec
from runtime.core.errors import TandemError
from runtime.core.log import get_logger
from serve_apps.adapters import references
from serve_apps.plan import IMPORT_PATH
from serve_apps.refusal import Refused
from serve_apps.spec import ServeSpec
from serve_apps.status import why
from storage import attached
from storage.location import side_by_side
from storage.patience import patience
from storage.store import open_store

_log = get_logger(__name__)
_FRESH_S = 1.0
_FRESHER_S = 0.2
"""For what is not there or not ready: it must not become a request to Serve's controller each time."""
_WAIT_S = 0.5
_ASK_TIMEOUT_S = 2.0
_PATIENCE_S = 3.0
_UNKNOWN_WAIT_S = _PATIENCE_S + _ASK_TIMEOUT_S
"""Who asks for an app that is not known or not ready waits for a whole look, slow as it may be: to say of an
app that was deployed just now that there is none would be wrong."""


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
    version: str
    """The model version or address that it serves."""
    deployed_at: Any = None
    """Another one after every deployment."""
    max_model_len: int | None = None
    """Tokens of prompt and answer together; None until the app has run once."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Served name to reference."""

    @property
    def is_asleep(self) -> bool:
        """Scaled to zero: a request wakes it."""
        return self.status == "RUNNING" and self.running == 0

    @property
    def answers(self) -> bool:
        """Whether a request to it will be answered, be it after a while."""
        # One that has answered before and is just being replaced: Ray keeps the request until it is there.
        comes_back = self.status in ("DEPLOYING", "UNHEALTHY") and self.max_model_len is not None
        return self.running > 0 or self.is_asleep or comes_back

    def names(self) -> Iterator[str]:
        """Every ``model`` that it answers to, once each."""
        yield from dict.fromkeys([self.spec.name, self.version, *self.adapters])


class KnownApps:
    """All apps; a look is as old as a second at most, or what was seen last while Serve is silent.

    Args:
        details: Serve's details, as its REST API gives them; called in a thread.
        describe: Asks a running app, by its name, for ``model`` and ``max_model_len``.
    """

    def __init__(
        self,
        details: Callable[[], Mapping[str, Any]],
        describe: Callable[[str], Awaitable[Mapping[str, Any]]],
    ) -> None:
        self.base_url = "http://127.0.0.1:8000"
        self._details, self._describe = details, describe
        self._apps: list[KnownApp] | None = None
        self._told: dict[str, tuple[Any, Mapping[str, Any]]] = {}
        self._adapters: dict[str, Mapping[str, str]] = {}
        self._looked_at = float("-inf")
        self._look: asyncio.Task[None] | None = None

    async def all(self, *, fresh_s: float = _FRESH_S) -> list[KnownApp]:
        """Every app, by name, as it was ``fresh_s`` ago or later.

        Raises:
            Refused: 503: Serve did not tell yet.
        """
        return await self._seen(fresh_s, _WAIT_S)

    async def _seen(self, fresh_s: float, wait_s: float) -> list[KnownApp]:
        """The same; for a look that takes longer than ``wait_s`` the one before must do."""
        if self._look is None and time.monotonic() - self._looked_at > fresh_s:
            self._look = asyncio.create_task(self._look_now(), name="tandem-front-look")
        if self._look is not None:
            # A store or a controller that is silent must not hold up those whose app is known.
            await asyncio.wait([self._look], timeout=wait_s if self._apps is not None else None)
        if self._apps is None:
            raise Refused(
                503, "The apps are not known yet. Try again.", type="server_error", code="starting",
                retry_after_s=1,
            )  # fmt: skip
        return self._apps

    async def answering_to(self, model: str) -> KnownApp | None:
        """The app that ``model`` means: an app's own names come before others' adapters."""
        found = _answering(await self.all(), model)
        if found is not None and found.answers:
            return found
        # It may have changed within the second: who deployed an app and saw it ready asks at once.
        return _answering(await self._seen(_FRESHER_S, _UNKNOWN_WAIT_S), model)

    async def _look_now(self) -> None:
        try:
            details = await asyncio.to_thread(self._details)
            http = details.get("http_options") or {}
            host = str(http.get("host") or "")
            host = "127.0.0.1" if host in ("", "0.0.0.0", "::", "localhost") else host
            self.base_url = f"http://{host}:{http.get('port') or 8000}"
            entries = [(name, app) for name, app in sorted(details["applications"].items()) if name != FRONT]
            found = [app for entry in entries if (app := _known(*entry))]
            await asyncio.to_thread(self._look_for_adapters, found)
            self._apps = list(await asyncio.gather(*(self._completed(app) for app in found)))
        except Exception as error:
            _log.warning("Serve does not tell what runs; the last known holds: %r", error)
        finally:
            self._looked_at = time.monotonic()
            self._look = None

    def _look_for_adapters(self, apps: Iterable[KnownApp]) -> None:
        for app, adapters in side_by_side(lambda app: (app, _adapters(app.spec)), apps):
            if adapters is not None:
                self._adapters[app.spec.name] = adapters

    async def _completed(self, app: KnownApp) -> KnownApp:
        """With what only the store and the app itself can tell; the last answer stands while it sleeps."""
        name = app.spec.name
        if app.running and self._told.get(name, (None, {}))[0] != app.deployed_at:
            with contextlib.suppress(Exception):  # a replica that is just ending: another time
                told = await asyncio.wait_for(self._describe(name), _ASK_TIMEOUT_S)
                self._told[name] = (app.deployed_at, told)
        _, told = self._told.get(name, (None, {}))
        return replace(
            app,
            adapters=self._adapters.get(name, app.spec.adapters),
            version=told.get("model", app.spec.model),
            max_model_len=told.get("max_model_len"),
        )


def _answering(apps: list[KnownApp], model: str) -> KnownApp | None:
    own = (app for app in apps if model in (app.spec.name, app.version))
    return next(own, None) or next((app for app in apps if model in app.adapters), None)


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
        version=spec.model,
        deployed_at=details.get("last_deployed_time_s"),
    )


def _adapters(spec: ServeSpec) -> Mapping[str, str] | None:
    """Served names and references; None where the store does not tell."""
    try:
        with patience(_PATIENCE_S):
            return references(spec, attached.listing(open_store(spec.store), spec.name))
    except TandemError as error:
        _log.warning("the adapters of %s cannot be looked up: %s", spec.name, error)
        return None
