"""Ray's dashboard over HTTP: reachable or not, what it holds, and its errors in our words."""

from __future__ import annotations

import socket
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from cluster.auth import auth_headers, token_refused
from cluster.inventory import Inventory
from cluster.nodes import inventory_of
from runtime.core.errors import ClusterError, ConfigError

_TIMEOUT_S = 60.0


def answers(url: str) -> bool:
    """Whether ``url`` gives a 200 within two seconds."""
    try:
        return httpx.get(url, headers=auth_headers(), timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def call(method: str, dashboard_url: str, path: str, *, body: Any = None) -> Any:
    """The JSON that the dashboard answers.

    Raises:
        ClusterError: it cannot be reached, or refuses; says which and what it said. Of a missing or wrong
            token it says how to give one.
    """
    try:
        reply = httpx.request(
            method,
            f"{dashboard_url}{path}",
            json=body,
            headers=auth_headers(),
            timeout=_TIMEOUT_S,
            trust_env=is_remote(dashboard_url),
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ClusterError(
            f"Ray's dashboard at {dashboard_url} does not answer ({type(error).__name__}: {error}). "
            "Check the address, or start a local cluster with `tandem up`."
        ) from None
    if reply.status_code in (401, 403):
        raise token_refused(dashboard_url, reply.status_code)
    if reply.is_error:
        raise ClusterError(
            f"Ray's dashboard refused {method} {path} ({reply.status_code}): {reply.text[:2000]}"
        )
    try:
        return reply.json() if reply.content else None
    except ValueError:
        raise _another_server(dashboard_url) from None


def _another_server(dashboard_url: str) -> ClusterError:
    return ClusterError(
        f"{dashboard_url} answers, but not as Ray's dashboard does. Check the address: the dashboard's "
        "port is 8265 unless it was started with another (--dashboard-port)."
    )


def checked_url(address: str) -> str:
    """A dashboard's address as the other functions take it.

    Raises:
        ConfigError: it is no http URL.
    """
    if not address.startswith(("http://", "https://")):
        raise ConfigError(
            f"address is {address!r}. Give the dashboard's URL, such as http://head:8265, or nothing for "
            "the local cluster."
        )
    return address.rstrip("/")


def has_joined(dashboard_url: str) -> bool:
    """Whether a cluster that is starting has its head: a job sent earlier would find no place."""
    # The dashboard answers before the node has joined, and one of its parts before the others.
    try:
        nodes = _living_nodes(dashboard_url) if answers(f"{dashboard_url}/api/version") else []
        return any(node["resources_total"] for node in nodes)
    except ClusterError:
        return False


def cluster_resources(dashboard_url: str) -> dict[str, float]:
    """What all living nodes have together: ``{"CPU": 2.0, "GPU": 0.0, ...}``."""
    total: dict[str, float] = {"CPU": 0.0, "GPU": 0.0}
    for node in _living_nodes(dashboard_url):
        for resource, amount in node["resources_total"].items():
            total[resource] = total.get(resource, 0.0) + amount
    return total


def inventory(dashboard_url: str) -> Inventory:
    """The living nodes and their cards."""
    return inventory_of(_living_nodes(dashboard_url))


def head_node_id(dashboard_url: str) -> str:
    """Ray's id of the head node."""
    return str(next(node["node_id"] for node in _living_nodes(dashboard_url) if node["is_head_node"]))


def head_ip(dashboard_url: str) -> str:
    """The head node's address, as Ray's other processes reach it."""
    return str(next(node["node_ip"] for node in _living_nodes(dashboard_url) if node["is_head_node"]))


def ray_version(dashboard_url: str) -> str:
    """The version of Ray that the cluster runs.

    Raises:
        ClusterError: as :func:`call` does, and where something else than Ray's dashboard answers.
    """
    reply = call("GET", dashboard_url, "/api/version")
    if not isinstance(reply, dict) or "ray_version" not in reply:
        raise _another_server(dashboard_url)
    return str(reply["ray_version"])


def _living_nodes(dashboard_url: str) -> list[dict[str, Any]]:
    reply = call("GET", dashboard_url, "/api/v0/nodes?detail=1&limit=10000")
    try:
        return [node for node in reply["data"]["result"]["result"] if node["state"] == "ALIVE"]
    except (KeyError, TypeError):
        raise _another_server(dashboard_url) from None


def is_remote(url: str) -> bool:
    """A proxy from the environment is for other machines, never for this one."""
    return (urlsplit(url).hostname or "") not in _own_addresses()


@cache
def _own_addresses() -> frozenset[str]:
    found = psutil.net_if_addrs().values()
    own = {one.address for addresses in found for one in addresses if one.family == socket.AF_INET}
    return frozenset({"localhost", "127.0.0.1", *own})
