"""The Serve application of the front: ``import_path: serve_apps.front.build:build_front``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ray import serve

from serve_apps.front.app import Front
from serve_apps.front.known import KnownApps


def _details() -> Mapping[str, Any]:
    """Serve's details, from its controller."""
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None
    return client.get_serve_details()


async def _describe(app: str) -> Mapping[str, Any]:
    """What one replica of an app says of itself."""
    # Finding the handle asks the controller and blocks.
    handle = await asyncio.to_thread(serve.get_app_handle, app)
    return await handle.describe.remote()


class _Replica:
    """One front."""

    def __init__(self) -> None:
        self._front = Front(KnownApps(_details, _describe))

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
