"""The alert rules, for Prometheus' rule files and for PrometheusRules of Kubernetes alike."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any


def rule_groups(*, hold_s: float | None = None) -> list[dict[str, Any]]:
    """``groups`` of a rule file: what is recorded and what is an alert, in Prometheus' own words.

    Args:
        hold_s: How long a thing must last before its alert is raised. Default: each rule's own time.
    """
    groups: list[dict[str, Any]] = json.loads(_text())["groups"]
    if hold_s is not None:
        for rule in [rule for group in groups for rule in group["rules"] if "alert" in rule]:
            rule["for"] = f"{round(hold_s * 1000)}ms"
    return groups


@cache
def _text() -> str:
    return (resources.files("cluster.monitoring") / "rules.json").read_text(encoding="utf-8")
