"""Serve apps without an engine, for tests of what an app waits for before it is there."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

from ray import serve

from serve_apps.engine.share import share
from serve_apps.plan import ServePlan
from serve_apps.room import wait_for_room
from serve_apps.spec import ServeSpec


@serve.deployment
class Idle:
    """Holds its share as a replica does, and tells its process."""

    def __init__(self, plan: dict[str, Any]) -> None:
        context = serve.get_replica_context()
        self._held = ExitStack()
        self._held.enter_context(share(plan, replica_id=context.replica_id.unique_id))

    async def __call__(self) -> int:
        return os.getpid()


def build(args: dict[str, Any]) -> serve.Application:
    """An app that waits for its room as all do, and then holds it with Ray.

    Args:
        args: A serve spec's fields.
    """
    spec = ServeSpec.model_validate(args)
    options = {"num_cpus": spec.resources.cpus, "num_gpus": spec.resources.gpus}
    plan = ServePlan(
        spec=spec,
        served_model_name=[],
        engine={},
        env_vars={},
        ray_actor_options=options,
        max_ongoing_requests=1,
    )
    wait_for_room(plan)
    return Idle.options(name=spec.name, ray_actor_options=options).bind(plan.model_dump(mode="json"))
