"""Ray Serve's fast path: HAProxy on every node sends a request straight to a replica's own HTTP port.

Ray reads all of this from the environment of its processes, so it is set when a cluster starts.
Source: ray/serve/_private/constants.py, the RAY_SERVE_HAPROXY_* variables.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cluster.processes import free_port

DRAIN_S = 3.0
"""A replica that ends stays reachable this long, until every HAProxy has heard of it. Ray's 30 s are for
load balancers outside; HAProxy's own reload follows within a second."""

FOLDER_BYTES = 38
"""Longest folder: HAProxy takes socket paths of 97 bytes, and Ray puts the node's id (56) before the name."""

BODY_BYTES = 256 * 1024
"""So much of a body HAProxy reads to find its ``model``; what has a longer one goes to the front app."""


def haproxy_env(folder: Path) -> Mapping[str, str]:
    """Variables for a cluster whose HAProxy keeps its files below ``folder``, on ports of its own.

    With Ray's fixed paths and ports a second cluster on the machine would take over the first one's HAProxy.
    """
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "a"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "m"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, max(1, (os.cpu_count() or 1) // 2))),
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BODY_BYTES),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_S),
    }
