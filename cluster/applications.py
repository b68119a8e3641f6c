"""Ray Serve's REST API: deploy one application beside the others, look, delete.

Serve's PUT states the whole set of applications, so adding one means sending the others again.
Source: https://docs.ray.io/en/latest/serve/api/index.html#serve-rest-api
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.rest import call
from runtime.core.errors import ConfigError

_PATH = "/api/serve/applications/"


def applications(dashboard_url: str) -> dict[str, dict[str, Any]]:
    """Serve's details of every application, by name; empty when Serve has not started."""
    return dict(call("GET", dashboard_url, _PATH).get("applications") or {})


def deploy(dashboard_url: str, application: Mapping[str, Any], *, http_port: int | None) -> None:
    """Add ``application``, or replace the one of the same name.

    Args:
        application: One entry of a Serve config file's ``applications``.
        http_port: Port for the HTTP proxy on 127.0.0.1, should Serve not run yet; None leaves Serve's own
            settings alone (a cluster that somebody else configured).

    Raises:
        ConfigError: another application answers at the same ``route_prefix``.
        ClusterError: the dashboard cannot be reached or refuses.
    """
    others = _configs(dashboard_url, without=str(application["name"]))
    for other in others:
        if other.get("route_prefix") == application["route_prefix"]:
            raise ConfigError(
                f"route_prefix is {application['route_prefix']!r}, where the app {other['name']!r} answers. "
                f"Set another route_prefix, or end that app: tandem stop {other['name']}."
            )
    _put(dashboard_url, [*others, dict(application)], http_port)


def delete(dashboard_url: str, name: str) -> None:
    """Take the application out of the set; Serve ends its replicas."""
    _put(dashboard_url, _configs(dashboard_url, without=name), None)


def _configs(dashboard_url: str, *, without: str) -> list[dict[str, Any]]:
    """Configs of the running applications, ``without`` one and those on their way out."""
    found = applications(dashboard_url).items()
    kept = [d for name, d in found if name != without and d["status"] != "DELETING"]
    return [dict(details["deployed_app_config"]) for details in kept if details.get("deployed_app_config")]


def _put(dashboard_url: str, configs: list[dict[str, Any]], http_port: int | None) -> None:
    body: dict[str, Any] = {"applications": configs}
    if http_port is not None:
        body["http_options"] = {"host": "127.0.0.1", "port": http_port}
    call("PUT", dashboard_url, _PATH, body=body)
