"""Training that survives: processes, nodes and clusters are killed, and the run goes on, for real."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from runtime.core.errors import ConfigError
from runtime.demo import add_demo_inputs
from runtime.sdk import Tandem
from storage.manifest import FileEntry
from storage.store import Store, open_store
from tests.conftest import TestCluster, wait_for
from tests.servers.small_disk import small_disk
from tests.train.living import (
    all_cpus_taken,
    another_cluster,
    began,
    driver,
    ended,
    kill_tree,
    lesson,
    node,
    saved,
    steps,
    worker,
    workers,
)

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

LONG = {"max_steps": 120, "save_steps": 10, "lr_scheduler_type": "cosine", "warmup_steps": 5}
"""Long enough to be interrupted where a test wants it, across epochs: 13 steps are one."""


def weights(cluster: TestCluster, ref: str) -> list[FileEntry]:
    manifest = cluster.store.model(ref).manifest
    assert manifest is not None
    return [entry for entry in manifest.files if entry.path.endswith(".safetensors")]


def add_spoiled_rows(store: Store) -> None:
    """A dataset in good form, of which one row is nothing for a model of text."""
    rows: list[dict[str, Any]] = [
        {"instruction": f"What is the {number}th?", "output": "A number.", "images": []}
        for number in range(60)
    ]
    rows[17]["images"] = ["seventeen.png"]
    columns = {"prompt": "instruction", "response": "output", "images": "images"}
    store.add_dataset("spoiled", rows, info={"columns": columns})


def test_a_run_that_loses_a_worker_a_driver_and_its_node_ends_with_the_very_weights_of_one_that_does_not(
    inputs: TestCluster,
):
    tandem = inputs.tandem()
    checkpoints = {"keep_last": 3}
    calm = tandem.train(lesson("calm", LONG, publish={"name": "calm"}, checkpoints=checkpoints))
    assert ended(calm) == "SUCCEEDED", calm.error

    rough = tandem.train(lesson("rough", LONG, publish={"name": "rough"}, checkpoints=checkpoints))
    saved(rough, 10)
    workers()[0].kill()
    lost = began(rough, 2)
    assert 0 < lost["recovery_s"] < 180
    saved(rough, lost["from_step"] + 10)
    # A node that is taken back tells its processes so.
    worker(rough, rank=1).send_signal(signal.SIGTERM)
    taken_back = began(rough, 3)
    driver(rough).kill()
    assert ended(rough) == "FAILED"
    again = tandem.resume(rough.run_id)
    assert ended(again) == "SUCCEEDED", again.error

    attempts = again.folder.attempts()
    assert [attempt.get("ended") for attempt in attempts] == ["failed", "preempted", None, "succeeded"]
    assert "the worker's process died" in attempts[0]["reason"]
    assert attempts[1]["reason"] == "SIGTERM to rank 1"
    # It left with a checkpoint of the step at which it was told, not of the last multiple of ten.
    assert taken_back["from_step"] == attempts[1]["step"] > lost["from_step"]
    assert steps(again) == steps(calm) == list(range(1, 121))
    curves = [[(line["loss"], line["grad_norm"]) for line in run.folder.metrics()] for run in (calm, again)]
    assert curves[0] == curves[1]
    assert weights(inputs, "rough/v1") == weights(inputs, "calm/v1")
    assert [one.manifest.step for one in again.folder.checkpoints()] == [100, 110, 120]
    with pytest.raises(ConfigError, match="has succeeded: there is nothing to go on with"):
        tandem.resume(rough.run_id)


def test_an_elastic_run_goes_on_with_fewer_workers_when_a_node_goes_and_with_more_when_one_joins(
    inputs: TestCluster, tmp_path: Path
):
    scaling = {
        "num_workers": [1, 2],
        "gpus_per_worker": 0,
        "cpus_per_worker": 1,
        "placement_strategy": "STRICT_SPREAD",
        "elastic_resize_monitor_interval_s": 3,
    }
    tandem = inputs.tandem()
    with node(inputs, tmp_path / "first.log", num_cpus=1) as first:
        run = tandem.train(lesson("elastic", LONG | {"max_steps": 2000}, scaling=scaling))
        assert began(run, 1)["num_workers"] == 2
        saved(run, 10)
        kill_tree(first)
        alone = began(run, 2)
        assert alone["num_workers"] == 1
        assert alone["from_step"] >= 10
    with node(inputs, tmp_path / "second.log", num_cpus=1) as second:
        together = began(run, 3)
        assert together["num_workers"] == 2
        # No step was lost: it was told to save, and saved at the end of the step.
        assert run.folder.attempts()[1]["ended"] == "resized"
        assert together["from_step"] == run.folder.attempts()[1]["step"]
        # As a cloud takes back a machine: Ray drains the node, and its processes have a while to leave.
        second.send_signal(signal.SIGTERM)
        assert began(run, 4)["num_workers"] == 1
        noticed = run.folder.attempts()[2]
        assert (noticed["ended"], noticed["reason"][-20:]) == ("preempted", " is being taken back")
        assert run.stop()
        assert ended(run) == "STOPPED"
    done = steps(run)
    assert done == list(range(1, len(done) + 1))
    losses = [line["loss"] for line in run.folder.metrics()]
    # The optimizer's state came along: a fresh one would throw the loss back. Medians, since batches differ.
    before, after = losses[: together["from_step"]][-10:], losses[together["from_step"] :]
    assert median(after) < median(before) * 1.2
    assert {one.manifest.num_workers for one in run.folder.checkpoints()} == {1, 2}


def test_a_stopped_run_keeps_a_checkpoint_and_is_resumed_with_another_number_of_workers(
    inputs: TestCluster,
):
    tandem = inputs.tandem()
    run = tandem.train(lesson("halves", LONG | {"report_to": "tensorboard"}))
    saved(run, 10)
    assert run.stop()
    assert ended(run) == "STOPPED"
    stopped_at = run.folder.checkpoints()[-1].manifest.step
    assert steps(run)[-1] == stopped_at < 120
    assert f"with a checkpoint at step {stopped_at}" in str(run.error)

    with pytest.raises(ConfigError, match="global batch"):
        tandem.resume(run.run_id, num_workers=3)
    again = tandem.resume(run.run_id, num_workers=1)
    assert ended(again) == "SUCCEEDED", again.error
    assert [attempt["num_workers"] for attempt in again.folder.attempts()] == [2, 1]
    assert steps(again) == list(range(1, 121))
    assert sorted(place.name for place in Path(run.uri).glob("tensorboard/*")) == ["attempt-1", "attempt-2"]
    # As far as 16-bit sums in another order allow.
    after = [line["loss"] for line in again.folder.metrics() if line["step"] > stopped_at]
    assert after[-1] < 0.7 * max(after[0], 2.0)


def test_faults_that_would_come_again_end_the_run_with_their_reason_and_keep_the_last_checkpoint(
    inputs: TestCluster,
):
    tandem = inputs.tandem()
    alone = {"num_workers": 1, "gpus_per_worker": 0}
    blown_up = {"learning_rate": 1e30, "lr_scheduler_type": "constant", "save_steps": 1}
    too_large = {"finetuning_type": "lora", "lora_rank": 100_000_000}
    add_spoiled_rows(inputs.store)
    runs = [
        tandem.train(lesson("nan", blown_up, deepspeed=None, scaling=alone)),
        # The estimate would refuse it.
        tandem.train(lesson("memory", too_large, deepspeed=None, scaling=alone, memory_check="warn")),
        tandem.train(lesson("row", dataset="spoiled", deepspeed=None, scaling=alone)),
    ]
    nan, memory, row = runs
    assert [ended(run) for run in runs] == ["FAILED"] * 3
    assert "is inf at step" in str(nan.error) or "is nan at step" in str(nan.error)
    assert "Lower learning_rate" in str(nan.error)
    assert [one.manifest.step for one in nan.folder.checkpoints()] == [1]
    assert "out of memory" in str(memory.error)
    assert "lora_rank" in str(memory.error)
    assert "bad data" in str(row.error)
    assert "does not support image input" in str(row.error)
    assert "What is the 17th?" in str(row.error)
    # Once each: trying again would change nothing.
    assert [len(run.folder.attempts()) for run in runs] == [1, 1, 1]


def test_a_run_that_finds_no_room_says_what_it_waits_for_and_gives_up_in_time(inputs: TestCluster):
    scaling = {"num_workers": 2, "gpus_per_worker": 0, "cpus_per_worker": 1}
    with all_cpus_taken(inputs):
        run = inputs.tandem().train(lesson("patient", scaling=scaling, failure={"start_timeout_s": 8}))
        told = "number 1 in the queue: 0 of 2 workers find "
        wait_for(lambda: (run.folder.waiting() or "").startswith(told), "it says what it waits for")
        assert ended(run) == "FAILED"
    assert re.match(rf"no room within [678]\S* s; {told}.* \(failure\.start_timeout_s\)\.", str(run.error))


def test_workers_whose_run_another_driver_has_taken_up_leave_it_alone(inputs: TestCluster):
    run = inputs.tandem().train(lesson("taken", LONG | {"max_steps": 2000, "save_steps": 1000}))
    began(run, 1)
    run.folder.take_up("somebody else")
    wait_for(lambda: not workers(), "the workers have left")
    assert run.folder.result() is None
    assert run.folder.checkpoints() == []


def test_a_run_whose_whole_cluster_is_lost_goes_on_on_another_one(
    inputs: TestCluster, tandem_command: list[str], tmp_path: Path
):
    with another_cluster(tandem_command, tmp_path / "elsewhere") as (dashboard_url, supervisor):
        run = Tandem(dashboard_url, store=inputs.store.uri).train(lesson("moved", LONG))
        saved(run, 10)
        kill_tree(supervisor)
        assert ended(run) == "STOPPED"
        assert run.error == "the cluster that ran it is gone"
    again = inputs.tandem().resume(run.run_id)
    assert ended(again) == "SUCCEEDED", again.error
    first, second = again.folder.attempts()
    assert "ended" not in first
    assert second["from_step"] >= 10
    assert steps(again) == list(range(1, 121))


def test_a_full_disk_ends_the_run_with_that_reason_and_keeps_the_last_checkpoint(
    inputs: TestCluster, tmp_path: Path
):
    with small_disk(tmp_path / "disk", size_bytes=90 << 20) as disk:
        store = open_store(str(disk / "store"))
        add_demo_inputs(store)
        # Each checkpoint is 36 MB, and nothing is removed.
        recipe = LONG | {"save_steps": 5, "max_steps": 60}
        run = Tandem(store=store.uri).train(lesson("full", recipe, deepspeed=None))
        assert ended(run) == "FAILED"
        assert "disk full" in str(run.error)
        assert "make room and resume the run" in str(run.error)
        kept = [one.manifest.step for one in run.folder.checkpoints()]
        assert kept == list(range(5, 5 * len(kept) + 1, 5))
        assert kept
        assert len(run.folder.attempts()) == 1
