"""Waiting until the cluster has room for an app's least number of replicas."""

from __future__ import annotations

from cluster.ledger.client import NeverFits, Place
from cluster.placement import Request
from runtime.core.errors import ConfigError
from runtime.core.log import get_logger
from serve_apps.defaults import workers
from serve_apps.plan import ServePlan

_log = get_logger(__name__)
_FOR_EVER_S = float("inf")


def request(plan: ServePlan) -> Request | None:
    """What the app's least number of replicas takes; None where it may begin without any."""
    spec = plan.spec
    if not spec.autoscaling.min_replicas:
        return None
    gpus = spec.resources.gpus or 0.0
    count = workers(plan.engine) if gpus else 1
    return Request(
        name=spec.name,
        kind="serve",
        groups=spec.autoscaling.min_replicas,
        workers_per_group=count,
        gpus_per_worker=gpus,
        cpus_per_worker=spec.resources.cpus / count,
        memory_bytes_per_worker=(spec.resources.memory_bytes or 0) // count,
        card_bytes_per_worker=plan.memory.needed_bytes if plan.memory and gpus else 0,
        accelerator_type=None,
    )


def wait_for_room(plan: ServePlan) -> None:
    """Return when there is room. An app that runs already keeps its own: Serve replaces its replicas.

    Raises:
        ConfigError: the cluster can never hold it.
    """
    wanted = request(plan)
    if wanted is None:
        return
    place = Place([wanted], priority=plan.spec.priority)
    if place.is_held_already():
        return
    try:
        place.wait(timeout_s=_FOR_EVER_S, tell=lambda why: _log.warning("%s waits: %s", wanted.name, why))
    except NeverFits as error:
        raise ConfigError(f"app {wanted.name} has no room: {error}") from None
    except BaseException:
        place.close()  # the app was taken back
        raise
    place.starts()
