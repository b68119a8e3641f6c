"""Ray Serve's REST API: deploy one application beside the others, look, delete.

Serve's PUT states the whole set of applications, so adding one means sending the others again.
Source: https://docs.ray.io/en/latest/serve/api/index.html#serve-rest-api
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from cluster.lock import locked
from cluster.rest import call
from runtime.core.errors import ClusterError, ConfigError
from runtime.core.places import cache_root

FRONT = "tandem-front"
"""The app at ``/`` that knows all others. It is Tandem's own and no listing shows it."""

_PATH = "/api/serve/applications/"
_GONE_TIMEOUT_S = 60.0


def details(dashboard_url: str) -> dict[str, Any]:
    """All that Serve says: ``applications`` by name, ``http_options``, ``proxies``, ..."""
    return dict(call("GET", dashboard_url, _PATH))


def applications(dashboard_url: str) -> dict[str, dict[str, Any]]:
    """Serve's details of every application but the front, by name; empty when Serve has not started."""
    return {name: app for name, app in _all(dashboard_url).items() if name != FRONT}


def http_host(dashboard_url: str) -> str | None:
    """Where Serve's HTTP server listens; None where Serve has not started or nobody said."""
    host = (details(dashboard_url).get("http_options") or {}).get("host")
    return str(host) if host else None


def start_serve(dashboard_url: str, *, host: str, port: int) -> None:
    """Start Serve on a new cluster, without an app: where it listens is settled before the first one.

    Raises:
        ClusterError: the dashboard cannot be reached or refuses.
    """
    options = {"host": host, "port": port}
    call("PUT", dashboard_url, _PATH, body={"applications": [], "http_options": options})


def deploy(
    dashboard_url: str,
    application: Mapping[str, Any],
    *,
    http_port: int | None,
    front: Mapping[str, Any] | None = None,
) -> None:
    """Add ``application``, or replace the one of the same name.

    Args:
        application: One entry of a Serve config file's ``applications``.
        front: The entry of the front, which runs beside every app; None leaves it as it is.
        http_port: Port for the HTTP proxy on 127.0.0.1, should Serve not run yet; None leaves Serve's own
            settings alone (a cluster that somebody else configured).

    Raises:
        ConfigError: another application answers at the same ``route_prefix``.
        ClusterError: the dashboard cannot be reached or refuses.
    """
    name = str(application["name"])
    with _lock(dashboard_url):
        others = _configs(dashboard_url, without=name)
        _check_route(application, others)
        # Serve takes an unchanged config for one that needs no work, so a failed app would stay failed.
        if applications(dashboard_url).get(name, {}).get("status") == "DEPLOY_FAILED":
            _put(dashboard_url, others, None)
            _wait_until_gone(dashboard_url, name)
        _put(dashboard_url, [*_with_front(others, front), dict(application)], http_port)


def _with_front(others: list[dict[str, Any]], front: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The other apps and the front, in its newest form; somebody's own app at ``/`` keeps its place."""
    if front is None:
        return others
    kept = [app for app in others if app["name"] != FRONT]
    taken = any(app.get("route_prefix") == front["route_prefix"] for app in kept)
    return kept if taken else [*kept, dict(front)]


def delete(dashboard_url: str, name: str) -> None:
    """Take the application out of the set; Serve ends its replicas."""
    with _lock(dashboard_url):
        _put(dashboard_url, _configs(dashboard_url, without=name), None)


def _lock(dashboard_url: str) -> AbstractContextManager[int]:
    """One change at a time from this machine: what comes between our look and our PUT would be lost."""
    mark = hashlib.sha256(dashboard_url.encode()).hexdigest()[:16]
    return locked(cache_root() / "locks" / mark, waiting_for="it deploys or ends an app")


def _check_route(application: Mapping[str, Any], others: list[dict[str, Any]]) -> None:
    for other in others:
        if other.get("route_prefix") == application["route_prefix"]:
            raise ConfigError(
                f"route_prefix is {application['route_prefix']!r}, where the app {other['name']!r} answers. "
                f"Set another route_prefix, or end that app: tandem stop {other['name']}."
            )


def _wait_until_gone(dashboard_url: str, name: str) -> None:
    deadline = time.monotonic() + _GONE_TIMEOUT_S
    while name in applications(dashboard_url):
        if time.monotonic() > deadline:
            raise ClusterError(f"the failed app {name} did not go within {_GONE_TIMEOUT_S:.0f} s. Try again.")
        time.sleep(0.2)


def _all(dashboard_url: str) -> dict[str, dict[str, Any]]:
    return dict(details(dashboard_url).get("applications") or {})


def _configs(dashboard_url: str, *, without: str) -> list[dict[str, Any]]:
    """Configs of the running applications, ``without`` one and those on their way out."""
    found = _all(dashboard_url).items()
    kept = [d for name, d in found if name != without and d["status"] != "DELETING"]
    return [dict(d["deployed_app_config"]) for d in kept if d.get("deployed_app_config")]


def _put(dashboard_url: str, configs: list[dict[str, Any]], http_port: int | None) -> None:
    body: dict[str, Any] = {"applications": configs}
    if http_port is not None:
        body["http_options"] = {"host": "127.0.0.1", "port": http_port}
    call("PUT", dashboard_url, _PATH, body=body)
