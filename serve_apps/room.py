"""Waiting until the cluster has room for an app's first replicas."""

from __future__ import annotations

import os

from ray import serve

from cluster.ledger.client import NeverFits, Place, Stopped
from runtime.core.errors import ConfigError
from runtime.core.log import get_logger
from serve_apps.plan import ServePlan
from serve_apps.request import NO_WAIT, request

_log = get_logger(__name__)
_FOR_EVER_S = float("inf")


def wait_for_room(plan: ServePlan) -> None:
    """Return when there is room. An app that runs already keeps its own: Serve replaces its replicas.

    With ``TANDEM_NO_WAIT`` in the environment only now counts.

    Raises:
        ConfigError: the cluster can never hold it, or cannot now and it may not wait; or the app was taken
            back while it waited.
    """
    wanted = request(plan)
    place = Place([wanted], priority=plan.spec.priority)
    if place.is_held_already():
        return
    runs = False

    def should_stop() -> bool:
        # An older configuration that had its place was still on its way: now it runs.
        nonlocal runs
        runs = place.is_held_already()
        return runs or not _is_wanted(wanted.name)

    try:
        place.wait(
            timeout_s=_FOR_EVER_S,
            tell=lambda why: _log.warning("%s waits: %s", wanted.name, why),
            should_stop=should_stop,
            may_wait=NO_WAIT not in os.environ,
        )
    except NeverFits as error:
        raise ConfigError(f"app {wanted.name} has no room: {error}") from None
    except Stopped:
        if runs:
            return
        raise ConfigError(f"app {wanted.name} was ended while it waited for room.") from None
    finally:
        # What was granted stands for the replicas; what still waits does so no longer.
        place.starts()


def _is_wanted(name: str) -> bool:
    """Whether Serve still means to run the app; it does not end what builds one that is deleted."""
    apps = serve.status().applications
    if name in apps:
        return bool(apps[name].status != "DELETING")
    # With plain Ray tools the application may have another name than its spec.
    return any(app.status == "DEPLOYING" for app in apps.values())
