"""The ledger's figures among Ray's own metrics: cards, shares, who waits, and the disks of node caches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from cluster.shares.reading import NodeReading

_CARD, _SHARE = ("node_id", "card"), ("node_id", "card", "holder")
METRICS: dict[str, tuple[tuple[str, ...], str]] = {
    "tandem_card_free": (_CARD, "Fraction of a card that nobody holds."),
    "tandem_card_used_bytes": (_CARD, "Memory in use on a card, as NVML says."),
    "tandem_card_memory_bytes": (_CARD, "Memory of a card."),
    "tandem_share_fraction": (_SHARE, "Cards that a holder holds, in fractions of them."),
    "tandem_share_promised_bytes": (_SHARE, "What a holder has promised to keep to."),
    "tandem_share_used_bytes": (_SHARE, "What a holder uses of its share."),
    "tandem_share_over_bytes": (_SHARE, "What a holder uses beyond its promise."),
    "tandem_waiting_requests": (("priority",), "Requests that wait for room."),
    "tandem_cache_disk_bytes": (("node_id",), "Size of the disk that holds a node's cache."),
    "tandem_cache_disk_free_bytes": (("node_id",), "What is free on the disk that holds a node's cache."),
}
"""Each with its labels and what it says. A share outside all cards has ``card=""``."""

Series = dict[str, dict[tuple[str, ...], float]]
"""The value of each metric for the values of its labels, in their order."""


def series(picture: Mapping[str, Any], readings: Iterable[NodeReading]) -> Series:
    """What the ledger tells.

    Args:
        picture: :func:`cluster.ledger.picture.draw`'s.
        readings: The looks at the nodes that it was drawn from.
    """
    # Several workers of one holder may share a card: what they hold is added up.
    found: Series = {name: defaultdict(float) for name in METRICS}
    for node in picture["nodes"]:
        for card in node["cards"]:
            _add_card(found, (node["node_id"], str(card["index"])), card)
        for place in (*node["cards"], {"index": "", "shares": node["shares"]}):
            for share in place["shares"]:
                _add_share(found, (node["node_id"], str(place["index"]), share["holder"]), share)
    for one in picture["waiting"]:
        found["tandem_waiting_requests"][one["priority"],] += 1
    for reading in readings:
        if reading.cache_disk:
            size_bytes, free_bytes = reading.cache_disk
            found["tandem_cache_disk_bytes"][reading.node_id,] = size_bytes
            found["tandem_cache_disk_free_bytes"][reading.node_id,] = free_bytes
    return found


def _add_card(found: Series, labels: tuple[str, ...], card: Mapping[str, Any]) -> None:
    found["tandem_card_free"][labels] = card["free"]
    found["tandem_card_used_bytes"][labels] = card["used_bytes"] or 0
    found["tandem_card_memory_bytes"][labels] = card["memory_bytes"] or 0


def _add_share(found: Series, labels: tuple[str, ...], share: Mapping[str, Any]) -> None:
    found["tandem_share_fraction"][labels] += share["fraction"]
    for field in ("promised_bytes", "used_bytes", "over_bytes"):
        found[f"tandem_share_{field}"][labels] += share[field] or 0


class LedgerMetrics:
    """Hands the series to Ray. Make it in a process that is connected to Ray."""

    def __init__(self) -> None:
        from ray.util.metrics import Gauge

        self._gauges = {name: Gauge(name, said, labels) for name, (labels, said) in METRICS.items()}
        self._told: dict[str, set[tuple[str, ...]]] = {name: set() for name in METRICS}

    def tell(self, picture: Mapping[str, Any], readings: Iterable[NodeReading]) -> None:
        """Set all, again and again: Ray drops a series that nobody has set for 20 s or so. What is gone is 0
        once, so that it is seen to end."""
        for name, values in series(picture, readings).items():
            for labels in self._told[name] | values.keys():
                tags = dict(zip(METRICS[name][0], labels, strict=True))
                self._gauges[name].set(values.get(labels, 0), tags)
            self._told[name] = set(values)
