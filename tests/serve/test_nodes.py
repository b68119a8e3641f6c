"""A replica over several nodes: its model is on each before the engine starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tests.conftest import TestCluster

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

MODEL = "docstrings-base/v1"
BUNDLES = [{"CPU": 0.1}, {"CPU": 0.1}, {"CPU": 0.1}]


@pytest.fixture
def keep(inputs: TestCluster) -> Iterator[Any]:
    """Calls ``keep_on_other_nodes`` where a replica would, in the first bundle; how many keep the model."""
    ray.init(address=inputs.address, log_to_driver=False)
    group = placement_group(BUNDLES)
    ray.get(group.ready(), timeout=60)
    plan = {"spec": {"store": inputs.store.uri, "model": MODEL}, "placement_group_bundles": BUNDLES}

    # Nested, so that it travels to the cluster by its code: the tests are not there.
    def in_the_replica(path: str) -> int:
        from serve_apps.engine.nodes import keep_on_other_nodes

        return len(keep_on_other_nodes(plan, Path(path)))

    where = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
    task: Any = ray.remote(num_cpus=0)(in_the_replica)
    yield lambda path: ray.get(task.options(scheduling_strategy=where).remote(str(path)), timeout=120)
    remove_placement_group(group)
    ray.shutdown()


def test_every_node_of_a_replica_has_the_model_at_one_path(inputs: TestCluster, keep: Any):
    with inputs.store.model(MODEL).fetch() as model:
        assert keep(model.path) == 2


def test_a_node_with_its_cache_elsewhere_is_told(keep: Any):
    with pytest.raises(RayTaskError, match="Set TANDEM_FILE_CACHE to the same folder on all nodes"):
        keep("/elsewhere/model")
