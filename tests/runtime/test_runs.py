"""A run from outside: how it ended, what can be waited for, and how it is stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import jobs
from runtime.core.errors import ClusterError, RunFailed, WaitTimeout
from runtime.run import Run
from storage.runs import RunFolder
from tests.conftest import ROOT, TestCluster, wait_for
from tests.runtime.conftest import BEGAN_AT, MakeRun, commit_checkpoint, log_steps


def test_a_stopped_run_says_how_to_go_on(make_run: MakeRun):
    folder = make_run()
    folder.write_result(
        {"status": "stopped", "error": "stopped on request, with a checkpoint at step 7", "step": 7}
    )
    run = Run(folder)
    assert (run.status, run.describe()["error"]) == (
        "STOPPED",
        "stopped on request, with a checkpoint at step 7",
    )
    assert run.wait_until_ended(timeout_s=5) == "STOPPED"
    with pytest.raises(RunFailed, match=f"step 7. Go on with: tandem train --resume {run.run_id}"):
        run.wait(timeout_s=5)
    assert not run.stop(), "it has ended"


def test_attempts_and_checkpoints_are_there_for_programs(recovered: RunFolder):
    run = Run(recovered)
    assert [one.manifest.step for one in run.checkpoints()] == [20, 40]
    assert [attempt["ended"] for attempt in run.attempts()] == ["failed", "succeeded"]
    assert list(run.metrics()["loss"].dropna())[-1] == 0.2


def test_there_is_something_to_save_after_the_first_step_of_an_attempt(make_run: MakeRun):
    folder = make_run()
    run = Run(folder)
    said = [run.is_training()]
    for part in ("began", "first-step", "ended"):
        fields = {"began": {"began_at": BEGAN_AT}, "first-step": {"first_step_at": BEGAN_AT}}
        folder.write_attempt(1, part, **fields.get(part, {"ended": "failed"}))
        said.append(run.is_training())
    assert said == [False, False, True, False]
    older = make_run(name="older")
    log_steps(older, 1, 2)
    assert Run(older).is_training(), "runs of earlier versions have no attempts"


def test_a_run_whose_cluster_does_not_answer_cannot_be_stopped(make_run: MakeRun):
    folder = make_run()
    folder.update_record(dashboard_url="http://localhost:9")
    with pytest.raises(ClusterError, match="cannot be stopped: Ray's dashboard at http://localhost:9"):
        Run(folder).stop(now=True)
    assert folder.result() is None
    with pytest.raises(WaitTimeout):
        Run(folder).wait_until_ended(timeout_s=0.1)


Submit = Callable[[], RunFolder]


@pytest.fixture
def submitted(cluster: TestCluster) -> Submit:
    """A run whose job is a shell that waits for the end of the world."""

    def submit() -> RunFolder:
        run = cluster.store.new_run("stopped", '{"name": "stopped"}')
        run.update_record(dashboard_url=cluster.dashboard_url, submission_id=run.run_id)
        jobs.submit(cluster.dashboard_url, "sleep 1000", submission_id=run.run_id, env_vars={}, metadata={})
        wait_for(lambda: Run(run).status == "RUNNING", "the job")
        return run

    return submit


def stop_command(run: RunFolder, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "runtime", "stop", run.run_id, *words],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.engine
def test_stop_asks_for_a_checkpoint_and_waits_for_the_end(cluster: TestCluster, submitted: Submit):
    run = submitted()
    run.write_attempt(1, "began", began_at=BEGAN_AT, num_workers=2, from_step=0)
    run.write_attempt(1, "first-step", first_step_at=BEGAN_AT)
    command = stop_command(run)
    stop = wait_for(run.stop_request, "the request")
    assert (stop.reason, stop.ended) == ("stopped on request", "stopped")
    assert command.poll() is None, "it waits"
    # What the driver does.
    run.write_result({"status": "stopped", "error": "stopped on request, with a checkpoint at step 3"})
    said, _ = command.communicate(timeout=60)
    assert (
        f"Run {run.run_id} stopped on request, with a checkpoint at step 3. Go on with: tandem train" in said
    )
    assert command.returncode == 0
    assert jobs.stop(cluster.dashboard_url, run.run_id), "the job was left to end by itself"


@pytest.mark.engine
@pytest.mark.parametrize("words", [[], ["--now"]])
def test_a_run_with_nothing_to_save_and_one_in_a_hurry_end_at_once(
    cluster: TestCluster, submitted: Submit, tmp_path: Path, words: list[str]
):
    run = submitted()
    if words:
        run.write_attempt(1, "began", began_at=BEGAN_AT, num_workers=2, from_step=0)
        run.write_attempt(1, "first-step", first_step_at=BEGAN_AT)
        commit_checkpoint(run, 20, tmp_path / "checkpoint")
    said, _ = stop_command(run, *words).communicate(timeout=60)
    kept = "its last checkpoint is of step 20" if words else "it has no checkpoint yet"
    assert f"Run {run.run_id} stopped on request; {kept}. Go on with: tandem train --resume" in said
    assert run.stop_request() is None
    wait_for(
        lambda: (jobs.details(cluster.dashboard_url, run.run_id) or {})["status"] == "STOPPED", "Ray's word"
    )
    assert Run(run).status == "STOPPED"
    assert "has ended already: STOPPED" in stop_command(run).communicate(timeout=60)[0]
