"""A real cluster whose cards Ray calls A100, and which NVML (a recorded reading) knows better."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import ray

from cluster import local
from cluster.environments import interpreter
from cluster.inventory import Inventory
from cluster.ledger.actor import ledger
from cluster.ledger.client import as_read
from cluster.ledger.shown import at_its_largest
from cluster.nodes import node_of
from tests.conftest import ROOT, wait_for
from tests.train.living import kill_tree

GIB = 1 << 30
SMALL = [
    {"uuid": f"GPU-{n}", "product": "NVIDIA A100-SXM4-40GB", "memory_bytes": 40 * GIB, "used_bytes": 0,
     "used_by": {}}
    for n in range(2)
]  # fmt: skip
LIVING_NODES = """
import json
from train_jobs.__main__ import living_nodes
print(json.dumps([card.memory_bytes for node in living_nodes().nodes for card in node.cards]))
"""


@pytest.fixture(scope="module")
def two_a100(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[local.LocalCluster]:
    """A head without cards, and a node with two of which Ray was told the product, as on Kubernetes."""
    own = tmp_path_factory.mktemp("cards")
    reading = own / "a100.json"
    reading.write_text(json.dumps(SMALL))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANDEM_HOME", str(own))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        cluster = local.up(local.LocalClusterSpec(num_cpus=1, num_gpus=0, dashboard_port=0, http_port=0))
        try:
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            with node_with_cards(cluster, own / "node.log", reading):
                yield cluster
        finally:
            ray.shutdown()
            local.down()


@contextmanager
def node_with_cards(cluster: local.LocalCluster, log: Path, reading: Path) -> Iterator[None]:
    command = [str(interpreter("core").with_name("ray")), "start", "--address", cluster.address, "--block"]
    command += ["--num-cpus", "1", "--num-gpus", "2", "--resources", '{"accelerator_type:A100": 1}']
    env = psutil.Process(cluster.pid).environ() | {"TANDEM_NVML_READING": str(reading)}
    with log.open("w") as out:
        started = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: ray.cluster_resources().get("GPU") == 2, "the node has joined", 60)
        yield
    finally:
        kill_tree(psutil.Process(started.pid))
        started.wait()


def sizes(inventory: Inventory) -> list[int | None]:
    return [card.memory_bytes for node in inventory.nodes for card in node.cards]


def job_sees(cluster: local.LocalCluster) -> list[int]:
    """The cards as a training's job plans with them."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": cluster.address}
    command = [sys.executable, "-c", LIVING_NODES]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=True)
    found: list[int] = json.loads(done.stdout)
    return found


def test_plans_go_by_the_largest_product_until_the_ledger_has_read_the_cards(two_a100: local.LocalCluster):
    url = two_a100.dashboard_url
    assert sizes(at_its_largest(url)) == job_sees(two_a100) == [80 * GIB] * 2
    ray.get(ledger().pid.remote(), timeout=60)
    wait_for(lambda: sizes(at_its_largest(url)) == [40 * GIB] * 2, "the ledger has read the node", 60)
    assert job_sees(two_a100) == [40 * GIB] * 2
    # As an app sees them where it is built.
    living = Inventory.of(node_of(node["NodeID"], node["Resources"]) for node in ray.nodes())
    assert sizes(living) == [80 * GIB] * 2
    assert sizes(as_read(living)) == [40 * GIB] * 2
