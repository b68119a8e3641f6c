"""The Serve application of the front: ``import_path: serve_apps.front.build:build_front``."""

from __future__ import annotations

import asyncio
from typing import Any

from ray import serve

from serve_apps.front.app import Front
from serve_apps.front.known import KnownApp, KnownApps

_ASK_TIMEOUT_S = 2.0


class _Lengths:
    """Context lengths of running apps; the last answer stands while an app sleeps."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, int]] = {}

    async def of(self, app: KnownApp) -> int | None:
        """Tokens of prompt and answer together; None until the app has run once."""
        name = app.spec.name
        stated = app.spec.to_json()
        if app.running and self._known.get(name, ("", 0))[0] != stated:
            handle = serve.get_deployment_handle(name, app_name=name)
            try:
                told = await asyncio.wait_for(handle.describe.remote(), _ASK_TIMEOUT_S)
                self._known[name] = (stated, told["max_model_len"])
            except Exception:  # a replica that is just ending: another time
                return None
        return self._known[name][1] if name in self._known else None


class _Replica:
    """One front."""

    def __init__(self) -> None:
        self._front = Front(KnownApps(), _Lengths().of)

    def __serve_build_asgi_app__(self) -> Any:
        """The application that Serve puts behind its proxy."""
        return self._front.app()


# As in serve_apps.deployment: Serve pickles the class by its module and name.
_Replica.__name__ = _Replica.__qualname__ = "FrontReplica"
FrontReplica = serve.ingress()(_Replica)


def build_front(args: dict[str, Any]) -> serve.Application:
    """The front's Serve application; ``args`` is empty."""
    return (
        serve.deployment(FrontReplica)
        .options(
            name="front",
            num_replicas=1,
            max_ongoing_requests=100_000,
            logging_config={"enable_access_log": False},
            ray_actor_options={"num_cpus": 0},
        )
        .bind()
    )
