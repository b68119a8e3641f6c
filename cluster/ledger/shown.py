"""The ledger as anybody sees it who may look at the cluster's dashboard, from any machine."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlencode

from cluster.ledger.picture import FILE, draw
from cluster.rest import call, head_node_id, inventory
from runtime.core.errors import ClusterError

_OLD_S = 60.0
"""What is older says nothing about now. The clocks of the head and of whoever reads may differ by less."""


def picture(dashboard_url: str) -> dict[str, Any]:
    """The newest picture, as :func:`cluster.ledger.picture.draw` makes it.

    Where no ledger has begun yet, which the first training or app starts, all cards are shown as free, and
    ``at`` is None.

    Raises:
        ClusterError: the dashboard does not answer.
    """
    asked = urlencode({"node_id": head_node_id(dashboard_url), "filename": FILE, "lines": -1})
    try:
        found: dict[str, Any] = call("GET", dashboard_url, f"/api/v0/logs/file?{asked}") or {}
    except ClusterError:
        found = {}
    if abs(time.time() - found.get("at", 0.0)) <= _OLD_S:
        return found
    return draw(inventory(dashboard_url), [], [], [], time.time()) | {"at": None}
