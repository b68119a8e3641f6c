"""How many workers the cluster has room for, and which of its nodes are being taken back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import ray
from ray._private.state import available_resources_per_node, state

from train_jobs.plan import TrainPlan


def fitting(plan: TrainPlan, held: Mapping[str, int] | None = None) -> int:
    """Workers that would find room now.

    Args:
        held: Workers of this very run by node: what they hold counts as free.
    """
    needs = wanted(plan)
    free = free_by_node()
    for node, workers in (held or {}).items():
        if node in free:
            free[node] = {
                name: free[node].get(name, 0.0) + workers * needs.get(name, 0.0)
                for name in {*free[node], *needs}
            }
    return workers_in(list(free.values()), needs, plan.placement_strategy)


def missing(plan: TrainPlan, workers: int, free: int) -> str:
    """What so many workers find too little of, for people: ``room for 2 workers of 1 GPU; 1 would fit``."""
    each = ", ".join(f"{amount:g} {name}" for name, amount in plan.resources_per_worker.items())
    return f"room for {workers} workers of {each}; {free} would fit"


def wanted(plan: TrainPlan) -> dict[str, float]:
    """What one worker takes from its node."""
    found = {name: amount for name, amount in plan.resources_per_worker.items() if amount}
    if plan.accelerator_type:
        # Ray gives each node of a product 1 of this, and a worker takes a thousandth.
        found[f"accelerator_type:{plan.accelerator_type}"] = 0.001
    return found


def free_by_node() -> dict[str, dict[str, float]]:
    """What is free on each living node, by its id, but for those that are being taken back."""
    usable = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - draining()
    return {node: dict(free) for node, free in available_resources_per_node().items() if node in usable}


def workers_in(nodes: Sequence[Mapping[str, float]], needs: Mapping[str, float], strategy: str) -> int:
    """Workers that fit on nodes with so much free, under a placement strategy of Ray's."""
    by_node = [
        # Ray counts in ten-thousandths: what is left of 1 after ten times 0.1 is not quite 0.
        min(math.floor(node.get(name, 0.0) / amount + 1e-4) for name, amount in needs.items())
        for node in nodes
    ]
    if strategy == "STRICT_SPREAD":
        return sum(count > 0 for count in by_node)
    if strategy == "STRICT_PACK":
        return max(by_node, default=0)
    return sum(by_node)


def draining() -> set[str]:
    """Ids of the nodes that a cloud or an operator takes back."""
    return set(state.get_draining_nodes())
