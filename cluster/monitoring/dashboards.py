"""All Grafana dashboards: Ray's own, made by the installed Ray, and ours."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from cluster.monitoring.grafana import dashboard, textbox

_RAYS = ("default", "serve", "serve_deployment", "serve_llm", "train")
"""Those of Ray's that say something about a cluster of ours."""


def dashboards() -> dict[str, dict[str, Any]]:
    """What Grafana imports, by name: ``tandem``, ``ray-default``, ``ray-serve``, ``ray-serve-deployment``,
    ``ray-serve-llm``, ``ray-train``. Needs Ray, so the core environment."""
    return {"tandem": tandem_dashboard(), **rays_dashboards()}


def rays_dashboards() -> dict[str, dict[str, Any]]:
    """Those that the installed Ray generates: they fit its metrics, which change from release to release."""
    from ray.dashboard.modules.metrics import grafana_dashboard_factory as factory

    found = {}
    for name in _RAYS:
        text, _uid = getattr(factory, f"generate_{name}_grafana_dashboard")()
        found[f"ray-{name.replace('_', '-')}"] = json.loads(text)
    return found


def tandem_dashboard() -> dict[str, Any]:
    """Ours: cards and shares, runs, apps, tokens, cost, and what lies beneath."""
    text = (resources.files("cluster.monitoring") / "dashboard_tandem.json").read_text(encoding="utf-8")
    price = textbox(
        "price_per_gpu_hour",
        "Price of a GPU-hour",
        "2.50",
        "What one card costs for an hour, in any currency. Costs are cards held, times hours, times this.",
    )
    return dashboard(uid="tandem", title="Tandem", rows=json.loads(text)["rows"], variables=[price])
