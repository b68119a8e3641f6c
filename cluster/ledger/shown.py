"""The ledger as anybody sees it who may look at the cluster's dashboard, from any machine."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlencode

from cluster.inventory import Inventory, Share
from cluster.ledger.picture import FILE, as_read, draw
from cluster.nodes_to_come import joined
from cluster.placement import Free, NoRoom, Request, place
from cluster.priority import CLASSES
from cluster.rest import call, head_node_id, inventory
from cluster.waiting import Waiting, in_order, kept_for
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
    return newest(dashboard_url) or draw(inventory(dashboard_url), [], [], [], time.time()) | {"at": None}


def newest(dashboard_url: str) -> dict[str, Any]:
    """The newest picture; empty where no ledger has told one."""
    try:
        asked = urlencode({"node_id": head_node_id(dashboard_url), "filename": FILE, "lines": -1})
        found: dict[str, Any] = call("GET", dashboard_url, f"/api/v0/logs/file?{asked}") or {}
    except ClusterError:
        return {}
    return found if abs(time.time() - found.get("at", 0.0)) <= _OLD_S else {}


def at_its_largest(dashboard_url: str) -> Inventory:
    """The living nodes of a cluster, with what its ledger has read of their cards, and those that it may
    still get, as far as the ledger has told."""
    seen = newest(dashboard_url)
    return joined(as_read(inventory(dashboard_url), seen), seen.get("groups_to_come", []))


def refuse_without_room(dashboard_url: str, request: Request, *, priority: str) -> None:
    """Refuse what would have to wait, by what the ledger has shown last; the ledger itself has the last word.

    An app that runs already gets its own room back first.

    Args:
        priority: Class in the queue: what is kept for those ahead of it is no room.

    Raises:
        ClusterError: there is no room now; says what is missing, or for whom it is kept.
    """
    seen = picture(dashboard_url)
    living = as_read(inventory(dashboard_url), seen)
    taken, kept = _taken(seen, request.name), _kept_ahead(seen, request, priority)
    if isinstance(place(Free.of(living, [*taken, *kept]), request), NoRoom):
        found = place(Free.of(living, taken), request)
        names = dict.fromkeys(share.holder for share in kept)
        reason = found.reason if isinstance(found, NoRoom) else kept_for(names)
        raise ClusterError(
            f"there is no room for {request.name} now: {reason} Without --no-wait it waits for it; who "
            "holds what is shown by: tandem gpus."
        )


def _kept_ahead(seen: dict[str, Any], request: Request, priority: str) -> list[Share]:
    """What the ledger keeps for those that are ahead of one who asks now."""
    asks = Waiting(request, priority, 0.0)
    waiting = [
        Waiting(Request(one["name"]), one["priority"], -one["waiting_s"])
        for one in seen["waiting"]
        if one["name"] != request.name
    ]
    order = in_order([*waiting, asks], 0.0, seen.get("classes", CLASSES))
    ahead = {one.request.name for one in order[: order.index(asks)]}
    return [share for one in seen.get("kept", []) if (share := Share(**one)).holder in ahead]


def _taken(seen: dict[str, Any], but_for: str) -> list[Share]:
    return [
        Share(
            share["holder"],
            node["node_id"],
            card,
            share["fraction"],
            share["cpus"],
            share["memory_bytes"],
        )
        for node in seen["nodes"]
        for card, shares in (
            *((one["index"], one["shares"]) for one in node["cards"]),
            (None, node["shares"]),
        )
        for share in shares
        if share["holder"] != but_for
    ]
