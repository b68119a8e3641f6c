"""Training and serving on two halves of one card, for real: shown, waited for, kept to, killed and found."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cluster import jobs, local
from cluster.ledger.shown import picture
from cluster.processes import descendants
from runtime.core.errors import ClusterError, ConfigError
from runtime.demo import BASE, add_demo_inputs
from runtime.run import ENDED, Run
from runtime.sdk import Tandem
from storage.store import open_store
from tests.conftest import ROOT, wait_for
from tests.train.living import began, ended, lesson

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

GIB = 1 << 30
HALF = {"num_workers": 1, "cpus_per_worker": 0.5, "gpus_per_worker": 0.5, "memory_bytes_per_worker": "4GiB"}
"""A worker on half a card, a logical one: the node's memory, and the kernel keeps the worker to its share."""
SERVED = {
    "name": "docstrings",
    "model": BASE,
    "auth": "none",
    "engine": {"max_model_len": 256, "max_num_seqs": 16},
    "resources": {"cpus": 0.5, "gpus": 0.5, "memory_bytes": "3GiB"},
}


@dataclass(frozen=True)
class Card:
    """A cluster with one card, and the SDK on it."""

    cluster: local.LocalCluster
    tandem: Tandem

    def train(self, name: str, recipe: dict[str, Any] | None = None, **scaling: Any) -> Run:
        return self.tandem.train(lesson(name, recipe, deepspeed=None, scaling=HALF | scaling))

    def shares(self) -> dict[str, dict[str, Any]]:
        """Those on the card, by holder."""
        (node,) = picture(self.cluster.dashboard_url)["nodes"]
        return {share["holder"]: share for share in node["cards"][0]["shares"]}

    def says(self, *words: str) -> str:
        """What ``tandem`` prints."""
        done = subprocess.run(
            [sys.executable, "-m", "runtime", *words],
            cwd=ROOT,
            env=os.environ | {"COLUMNS": "200"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def drawn_at(self) -> float:
        """When the newest picture was drawn, in seconds since 1970; 0 where none can be had."""
        return float(picture(self.cluster.dashboard_url)["at"] or 0)

    def kill_the_ledger(self) -> None:
        for process in descendants(self.cluster.pid):
            with suppress(psutil.Error):
                if "ray::Ledger" in " ".join(process.cmdline()):
                    process.kill()
                    return
        raise AssertionError("there is no ledger")


@pytest.fixture(scope="module")
def card(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Card]:
    own = tmp_path_factory.mktemp("card")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANDEM_HOME", str(own))
        patch.setenv("TANDEM_STORE", str(own / "store"))
        store = open_store(str(own / "store"))
        spec = local.LocalClusterSpec(num_cpus=2, num_gpus=1, dashboard_port=0, http_port=0, store=store.uri)
        cluster = local.up(spec)
        try:
            add_demo_inputs(store)
            yield Card(cluster, Tandem(store=store.uri))
        finally:
            local.down()


def test_training_and_serving_share_a_card_and_a_second_training_waits_for_its_half(card: Card):
    first = card.train("first", {"max_steps": 5000, "save_steps": 1000})
    app = card.tandem.serve(SERVED).wait()
    began(first, 1)
    both = {first.run_id, "docstrings"}
    wait_for(
        lambda: card.shares().keys() == both and all(s["used_bytes"] for s in card.shares().values()),
        "both",
        20,
    )
    training, serving = (card.shares()[name] for name in (first.run_id, "docstrings"))
    assert [(one["kind"], one["fraction"]) for one in (training, serving)] == [("train", 0.5), ("serve", 0.5)]
    # What each promised is what the spec gives it, and each keeps to it.
    assert (training["promised_bytes"], serving["promised_bytes"]) == (4 * GIB, 3 * GIB)
    for share in (training, serving):
        assert 0.1 * GIB < share["used_bytes"] < share["promised_bytes"]
        assert share["over_bytes"] == 0
    assert app.chat("What does len do?")
    assert kv_cache_bytes(card) < 3 * GIB - 0.5 * GIB
    shown = card.says("gpus")
    for word in (first.run_id, "docstrings", "0.5 GPU", "4.0 GiB", "3.0 GiB", "rank 0"):
        assert word in shown

    second = card.train("second")
    why = wait_for(second.folder.waiting, "the second one waits", 120)
    assert why.startswith("number 1 in the queue: ")
    # The run says it at once; the ledger's picture, which everybody is shown, is drawn once a second.
    row = rf"1 +│? *{second.run_id} +│? *training"
    wait_for(lambda: re.search(row, card.says("status")), "the status shows who waits", 30)
    seen_at = wait_for(card.drawn_at, "a picture", 30)
    card.kill_the_ledger()
    wait_for(lambda: card.drawn_at() > seen_at + 3, "a new ledger looks", 60)
    assert card.shares().keys() == both
    wait_for(
        lambda: [one["name"] for one in picture(card.cluster.dashboard_url)["waiting"]] == [second.run_id],
        "it still waits",
        30,
    )
    assert first.status not in ENDED
    assert second.folder.attempts() == []

    assert first.stop()
    assert ended(first) == "STOPPED"
    assert ended(second) == "SUCCEEDED", second.error
    assert second.folder.waiting() is None
    app.stop()
    wait_for(lambda: not card.shares(), "all is given back", 60)


def kv_cache_bytes(card: Card) -> float:
    """Of the app, as vLLM says."""
    text = httpx.get(f"{card.cluster.http_url}/docstrings/metrics", trust_env=False).text
    (config,) = re.findall(r"vllm:cache_config_info\{(.*?)\}", text)
    return float(re.search(r'kv_cache_memory_bytes="(\d+)"', config)[1])


def test_a_share_that_is_too_small_by_the_estimate_is_refused_with_both_numbers(card: Card):
    with pytest.raises(ConfigError) as refused:
        card.train("small", memory_bytes_per_worker="300MiB")
    needed, has = re.search(r"needs ([\d.]+) GiB and has ([\d.]+) GiB", str(refused.value)).groups()
    assert float(has) == 0.3
    assert float(needed) > 0.5
    assert card.tandem.runs("small") == []


FOOLED = """
import json, sys
from cluster.environments import interpreter
from storage.store import open_store
from train_jobs.__main__ import hand_over, living_nodes
from train_jobs.plan import plan_train
from train_jobs.spec import TrainSpec

store, spec = open_store(sys.argv[1]), TrainSpec.model_validate(json.loads(sys.argv[2]))
run = store.new_run(spec.name, spec.to_json())
plan = plan_train(spec, store=store, run=run, inventory=living_nodes())
hand_over(plan.model_copy(update={"share_bytes": int(sys.argv[3])}), run, interpreter("train"))
"""


@pytest.mark.parametrize("share_mib", [200, 700], ids=["less than an idle worker", "less than a step"])
def test_a_worker_that_needs_more_than_its_share_ends_out_of_memory_with_the_remedy_and_no_retry(
    card: Card, tmp_path: Path, share_mib: int
):
    # The estimate was wrong, then: the plan says more than the worker is given.
    program = tmp_path / "fooled.py"
    program.write_text(FOOLED)
    name = f"fooled-{share_mib}"
    recipe = {"cutoff_len": 512, "per_device_train_batch_size": 64, "packing": True}
    spec = lesson(name, recipe if share_mib > 500 else None, deepspeed=None, scaling=HALF)
    store = card.tandem.store
    jobs.submit(
        card.cluster.dashboard_url,
        f"python {program} {store.uri} '{json.dumps(spec)}' {share_mib << 20}",
        submission_id=name,
        env_vars={},
        metadata={},
    )
    run = wait_for(lambda: next(iter(store.runs(name)), None), "it has begun", 60)
    result = wait_for(run.result, "it has ended", 240)
    assert result["status"] == "failed"
    assert "out of memory" in result["error"], result
    assert "scaling.memory_bytes_per_worker" in result["error"]
    assert len(run.attempts()) == 1


def test_an_app_waits_for_its_card_keeps_it_when_its_replica_is_killed_and_leaves_the_queue_when_stopped(
    card: Card,
):
    whole = {**SERVED, "name": "whole", "resources": {"cpus": 0.5, "gpus": 0.6, "memory_bytes": "3GiB"}}
    first = card.train("holder", {"max_steps": 5000, "save_steps": 1000})
    began(first, 1)
    app = card.tandem.serve(whole)
    wait_for(lambda: app.message.startswith("number 1 in the queue: "), "it says what it waits for", 60)
    assert app.status == "DEPLOYING"
    # Taken back while it waits, it is in nobody's way.
    app.stop()
    wait_for(lambda: not picture(card.cluster.dashboard_url)["waiting"], "it has left the queue", 30)

    with pytest.raises(ClusterError, match=r"there is no room for whole now: .*tandem gpus"):
        card.tandem.serve(whole, no_wait=True)
    app = card.tandem.serve(whole)
    wait_for(lambda: app.message.startswith("number 1 in the queue: "), "it waits again", 60)
    assert first.stop()
    app.wait(300)
    assert app.chat("What does len do?")

    # Somebody waits for the card already when its replica dies.
    waiting = card.train("waiting")
    wait_for(waiting.folder.waiting, "the training waits", 120)
    (replica,) = app.replicas()
    psutil.Process(replica["pid"]).kill()
    wait_for(
        lambda: (
            [one["pid"] for one in app.replicas() if one["state"] == "RUNNING"] not in ([], [replica["pid"]])
        ),
        "another replica has come",
        240,
    )
    assert waiting.folder.attempts() == [], "the training has taken the card"
    app.stop()
    assert ended(waiting) == "SUCCEEDED", waiting.error
