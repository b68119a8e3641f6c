"""What a selector chooses, and what a PodDisruptionBudget keeps, in the Kubernetes stand-in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tests.servers.kubernetes_state import State
from tests.servers.kubernetes_status import budget_refusal

_SET = re.compile(r"^(\S+)\s+(in|notin)\s+\(([^)]*)\)$")
_COMMA = re.compile(r",(?![^(]*\))")


def selected(body: dict[str, Any], query: Mapping[str, str]) -> bool:
    """Whether a list or a watch with this query has the object."""
    labels = body["metadata"].get("labels") or {}
    wanted = [one.strip() for one in _COMMA.split(query.get("labelSelector", "")) if one.strip()]
    return all(_has(labels, one) for one in wanted) and all(
        _field(body, one) for one in query.get("fieldSelector", "").split(",") if one
    )


def _has(labels: Mapping[str, str], term: str) -> bool:
    if found := _SET.match(term):
        values = [one.strip() for one in found[3].split(",")]
        return (labels.get(found[1]) in values) == (found[2] == "in")
    if "!=" in term:
        key, _, value = term.partition("!=")
        return labels.get(key.strip()) != value.strip()
    if "=" in term:
        key, _, value = term.replace("==", "=").partition("=")
        return labels.get(key.strip()) == value.strip()
    return term[1:] not in labels if term.startswith("!") else term in labels


def _field(body: dict[str, Any], term: str) -> bool:
    path, _, value = term.replace("==", "=").partition("=")
    place: Any = body
    for part in path.removesuffix("!").split("."):
        place = place.get(part) if isinstance(place, dict) else None
    return (str(place or "") != value) if path.endswith("!") else (str(place or "") == value)


def evict(state: State, namespace: str | None, name: str) -> None:
    """End a pod, where the budgets that select it have a disruption left (``status.disruptionsAllowed``)."""
    pod = state.get(state.named("Pod"), namespace, name)
    for budget in state.all(state.named("PodDisruptionBudget"), namespace):
        chosen = budget.body["spec"].get("selector", {}).get("matchLabels", {})
        labels = pod.body["metadata"].get("labels") or {}
        if all(labels.get(key) == value for key, value in chosen.items()):
            left = (budget.body.get("status") or {}).get("disruptionsAllowed", 0)
            if left < 1:
                raise budget_refusal(budget.body["metadata"]["name"])
            budget.body["status"]["disruptionsAllowed"] = left - 1
    state.delete(pod)
