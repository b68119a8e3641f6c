"""PodDisruptionBudgets as Kubernetes tells of them: which of them keep a pod where it is. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cluster.kubernetes.workloads import Manifest


def blocking(budgets: Iterable[Manifest], labels: Mapping[str, str]) -> list[str]:
    """Names of the budgets that select a pod with these labels and allow no disruption now."""
    return [
        budget["metadata"]["name"]
        for budget in budgets
        if _selects((budget.get("spec") or {}).get("selector") or {}, labels)
        and (budget.get("status") or {}).get("disruptionsAllowed", 0) < 1
    ]


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    plain = selector.get("matchLabels") or {}
    terms = selector.get("matchExpressions") or []
    return all(labels.get(key) == value for key, value in plain.items()) and all(
        _meets(term, labels) for term in terms
    )


def _meets(term: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value, values = labels.get(term["key"]), term.get("values") or []
    return {
        "In": value in values,
        "NotIn": value not in values,
        "Exists": value is not None,
        "DoesNotExist": value is None,
    }[term["operator"]]
