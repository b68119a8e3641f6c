"""What dashboards and alerts ask Prometheus, with Grafana's variables filled in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_VALUES = {
    "__rate_interval": "1m",
    "__interval": "15s",
    "__range": "1h",
    "window": "5m",
    "interval": "5m",
    "price_per_gpu_hour": "2.5",
}
"""All others stand for values of labels."""

_NOT_METRICS = frozenset(
    ["by", "without", "on", "ignoring", "group_left", "group_right", "or", "and", "unless", "offset", "bool"]
)


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every panel, those inside of folded rows too."""
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def queries(dashboard: dict[str, Any]) -> list[str]:
    """What it asks Prometheus."""
    return [filled(target["expr"]) for panel in panels(dashboard) for target in panel.get("targets", [])]


def filled(query: str) -> str:
    """The query as Grafana sends it when all of everything is chosen."""

    def value(found: re.Match[str]) -> str:
        return _VALUES.get(found[1] or found[2], ".*")

    # "$1" is Prometheus' own, in label_replace.
    return re.sub(r"\$(?:\{(\w+)(?::\w+)?\}|([A-Za-z_]\w*))", value, query)


def metrics_of(query: str) -> set[str]:
    """The names of the metrics that a query asks for; one of ours gives its names in full."""
    found: set[str] = set()
    for names in re.findall(r'__name__=~"([^"]*)"', query):
        found |= set(names.split("|"))
    bare = re.sub(r'"(?:[^"\\]|\\.)*"|\b(?:by|without|on|ignoring)\s*\([^)]*\)|\[[^\]]*\]', " ", query)
    bare = re.sub(r"\{[^}]*\}", " ", bare)
    words = re.findall(r"(?<![\w.:])([A-Za-z_][\w:]*)(?!\s*\()(?![\w:])", bare)
    return found | {word for word in words if word not in _NOT_METRICS}
