"""Waiting until the cluster has room for an app's first replicas."""

from __future__ import annotations

from cluster.ledger.client import NeverFits, Place
from runtime.core.errors import ConfigError
from runtime.core.log import get_logger
from serve_apps.plan import ServePlan
from serve_apps.request import request

_log = get_logger(__name__)
_FOR_EVER_S = float("inf")


def wait_for_room(plan: ServePlan) -> None:
    """Return when there is room. An app that runs already keeps its own: Serve replaces its replicas.

    Raises:
        ConfigError: the cluster can never hold it.
    """
    wanted = request(plan)
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
