"""The only node with a card is lost: its run waits for it to come back, instead of being refused for ever."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cluster import local
from cluster.environments import interpreter
from cluster.rest import cluster_resources
from runtime.demo import add_demo_inputs
from runtime.sdk import Tandem
from storage.store import open_store
from tests.conftest import wait_for
from tests.train.living import ended, kill_tree, lesson, saved

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

ALONE = {"num_workers": 1, "cpus_per_worker": 0.5, "gpus_per_worker": 0.5, "memory_bytes_per_worker": "4GiB"}


@pytest.fixture
def cluster(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[local.LocalCluster]:
    """A head without a card, and a store of its own."""
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TANDEM_STORE", str(tmp_path / "store"))
    yield local.up(local.LocalClusterSpec(num_cpus=1, num_gpus=0, dashboard_port=0, http_port=0))
    local.down()


@contextmanager
def node_with_a_card(cluster: local.LocalCluster, log: Path) -> Iterator[psutil.Process]:
    command = [str(interpreter("core").with_name("ray")), "start", "--address", cluster.address, "--block"]
    command += ["--num-cpus", "1", "--num-gpus", "1"]
    env = psutil.Process(cluster.pid).environ()
    with log.open("w") as out:
        started = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
    process = psutil.Process(started.pid)
    try:
        wait_for(lambda: cluster_resources(cluster.dashboard_url)["GPU"] == 1, "the node has joined", 120)
        yield process
    finally:
        kill_tree(process)
        started.wait()


def test_a_run_whose_node_is_lost_waits_for_it_to_come_back(cluster: local.LocalCluster, tmp_path: Path):
    store = open_store(os.environ["TANDEM_STORE"])
    add_demo_inputs(store)
    recipe = {"max_steps": 60, "save_steps": 10}
    with node_with_a_card(cluster, tmp_path / "first.log") as node:
        run = Tandem(store=store.uri).train(lesson("lost", recipe, deepspeed=None, scaling=ALONE))
        saved(run, 10)
        kill_tree(node)
        lost_at = time.time()
        # For half a minute Ray may take the node for alive, and the ledger grants it once more.
        told = "for a node to come back: "
        wait_for(lambda: (run.folder.waiting() or "").startswith(told), "it waits for the node", 180)
    with node_with_a_card(cluster, tmp_path / "second.log"):
        wait_for(lambda: run.folder.attempts()[-1].get("first_step_at", 0) > lost_at, "it trains again", 180)
        assert run.folder.attempts()[-1]["from_step"] >= 10
        assert ended(run) == "SUCCEEDED", run.error
