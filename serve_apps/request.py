"""What an app takes of the cluster, as the ledger is asked for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cluster.placement import Request
from cluster.placement.request import ANY
from serve_apps.defaults import workers

if TYPE_CHECKING:
    from serve_apps.plan import ServePlan


NO_WAIT = "TANDEM_NO_WAIT"
"""In the environment of an app that is refused where there is no room for its first replicas now. Not among
its ``args``: those are the spec, and this is of one deployment only."""


def as_asked_for(application: Mapping[str, Any], no_wait: bool, there: Mapping[str, Any]) -> dict[str, Any]:
    """The application, told whether it may wait for room.

    One that runs and is otherwise unchanged stays as it was told: Serve takes another environment for new
    code, and would replace all its replicas.

    Args:
        application: An entry of ``applications``, with its ``runtime_env``.
        there: What Serve says of the app of this name; empty where there is none.
    """
    env_vars = application["runtime_env"]["env_vars"]
    deployed = there.get("deployed_app_config") or {}
    deployed_vars = (deployed.get("runtime_env") or {}).get("env_vars") or {}
    is_unchanged = deployed.get("args") == application["args"] and env_vars == {
        name: value for name, value in deployed_vars.items() if name != NO_WAIT
    }
    if is_unchanged and there["status"] in ("RUNNING", "UNHEALTHY"):
        no_wait = NO_WAIT in deployed_vars
    told = env_vars | ({NO_WAIT: "1"} if no_wait else {})
    return dict(application) | {"runtime_env": {"env_vars": told}}


def request(plan: ServePlan) -> Request:
    """A place for its first replicas: ``min_replicas``, and one where that is 0."""
    spec = plan.spec
    gpus = spec.resources.gpus or 0.0
    refuses = spec.memory_check == "refuse"
    count = workers(plan.engine) if gpus else 1
    return Request(
        name=spec.name,
        kind="serve",
        groups=max(1, spec.autoscaling.min_replicas),
        workers_per_group=count,
        gpus_per_worker=gpus,
        cpus_per_worker=spec.resources.cpus / count,
        memory_bytes_per_worker=(spec.resources.memory_bytes or 0) // count,
        card_bytes_per_worker=plan.memory.on_card if refuses and plan.memory and gpus else 0,
        # The plan says one product wherever there is a choice to make and none was left to Serve.
        accelerator_type=plan.accelerator_type or ANY,
    )
