"""The model on every node of a replica whose workers are on several: vLLM's workers open it by its path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from runtime.core.errors import ServeError
from storage.store import open_store


class _Keeper:
    """Has the model in its node's cache for as long as it lives, which is as long as its replica does."""

    def __init__(self, store: str, model: str) -> None:
        self._folder = open_store(store).model(model).fetch()

    def path(self) -> str:
        return str(self._folder.path)


def keep_on_other_nodes(plan: Mapping[str, Any], path: Path) -> list[Any]:
    """Bring the plan's model to the nodes of all workers, side by side.

    Args:
        plan: A :class:`serve_apps.plan.ServePlan` as plain data.
        path: Where it is on this node.

    Returns:
        What keeps it there; hold on to it. Empty for a replica on one node.

    Raises:
        ServeError: a node has its cache elsewhere, so that its workers would look in vain.
    """
    group = get_current_placement_group()
    others = range(1, len(plan["placement_group_bundles"]))
    actor: Any = ray.remote(num_cpus=0)(_Keeper)
    keepers = [
        actor.options(
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
        ).remote(plan["spec"]["store"], plan["spec"]["model"])
        for index in others
    ]
    for elsewhere in set(ray.get([keeper.path.remote() for keeper in keepers])) - {str(path)}:
        raise ServeError(
            f"the model is at {path} on this node and at {elsewhere} on another, but vLLM's workers open it "
            "by one path. Set TANDEM_FILE_CACHE to the same folder on all nodes."
        )
    return keepers
