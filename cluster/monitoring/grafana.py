"""Grafana dashboards as plain data: rows of panels become the JSON that Grafana imports.

Source: https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

_COLUMNS = 24
_PANEL_HEIGHT, _ROW_HEIGHT = 8, 1
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_SCHEMA = 39
"""Of Grafana 10.4; newer ones bring it up to theirs by themselves."""


def dashboard(
    *, uid: str, title: str, rows: Sequence[Mapping[str, Any]], variables: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """One dashboard.

    Args:
        rows: Each with ``title`` and ``panels``; a panel has ``title``, ``type``, ``unit``, ``description``,
            ``width`` (of 24 columns), ``targets`` (``expr`` and ``legend`` each), and maybe ``stacked``.
        variables: Grafana's own, after ``datasource`` and ``cluster``, which every one has.
    """
    return {
        "uid": uid,
        "title": title,
        "tags": ["tandem"],
        "schemaVersion": _SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "",
        "annotations": {"list": []},
        "templating": {"list": [_datasource(), _cluster(), *variables]},
        "panels": _laid_out(rows),
    }


def textbox(name: str, label: str, value: str, description: str) -> dict[str, Any]:
    """A variable that whoever looks at the dashboard types in."""
    chosen = {"text": value, "value": value}
    return {
        "name": name,
        "label": label,
        "type": "textbox",
        "description": description,
        "query": value,
        "current": chosen,
        "options": [{"selected": True, **chosen}],
        "hide": 0,
        "skipUrlSync": False,
    }


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "hide": 0,
        "multi": False,
        "includeAll": False,
    }


def _cluster() -> dict[str, Any]:
    query = "label_values(ray_node_cpu_count, ray_io_cluster)"
    return {
        "name": "cluster",
        "label": "Cluster",
        "type": "query",
        "datasource": _DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": "cluster"},
        # When the time range changes: clusters come and go.
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _laid_out(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Panels from left to right, line by line, below the title of their row."""
    ids, top, found = count(1), 0, []
    for row in rows:
        found.append(_row(row["title"], next(ids), top))
        left, top, height = 0, top + _ROW_HEIGHT, 0
        for panel in row["panels"]:
            if left + panel["width"] > _COLUMNS:
                left, top, height = 0, top + height, 0
            found.append(_panel(panel, next(ids), left, top))
            left, height = left + panel["width"], _PANEL_HEIGHT
        top += height
    return found


def _row(title: str, number: int, top: int) -> dict[str, Any]:
    place = {"x": 0, "y": top, "w": _COLUMNS, "h": _ROW_HEIGHT}
    return {"id": number, "type": "row", "title": title, "gridPos": place, "collapsed": False, "panels": []}


def _panel(panel: Mapping[str, Any], number: int, left: int, top: int) -> dict[str, Any]:
    instant = panel["type"] != "timeseries"
    return {
        "id": number,
        "type": panel["type"],
        "title": panel["title"],
        "description": panel["description"],
        "datasource": _DATASOURCE,
        "gridPos": {"x": left, "y": top, "w": panel["width"], "h": _PANEL_HEIGHT},
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _OPTIONS[panel["type"]],
        "targets": [
            {
                "refId": letter,
                "datasource": _DATASOURCE,
                "expr": target["expr"],
                "legendFormat": target["legend"],
                "instant": instant,
                "range": not instant,
            }
            for letter, target in zip(string.ascii_uppercase, panel["targets"], strict=False)
        ],
    }


def _defaults(panel: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"unit": panel["unit"]}
    if panel["unit"] == "percentunit":
        found |= {"min": 0, "max": 1}
    if panel["type"] == "timeseries":
        stacking = {"mode": "normal" if panel.get("stacked") else "none", "group": "A"}
        found["custom"] = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 10, "stacking": stacking}
    return found


_REDUCED = {"reduceOptions": {"values": False, "calcs": ["lastNotNull"], "fields": ""}}
_OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {**_REDUCED, "colorMode": "value", "graphMode": "none", "textMode": "value_and_name"},
    "bargauge": {**_REDUCED, "displayMode": "basic", "orientation": "horizontal", "showUnfilled": True},
}
"""Of each type of panel."""
