"""`tandem logs`: every process or one rank, as it comes or afterwards, with and without the cluster."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import click
import pytest

from cluster import jobs
from runtime.core.errors import ClusterError, ConfigError
from runtime.run import Run
from runtime.run_logs import OfRank
from storage.runs import RunFolder
from tests.conftest import ROOT, TestCluster, wait_for
from tests.runtime.conftest import Command, MakeRun

HERE = "\x1b[36m(RayTrainWorker pid=10)\x1b[0m"
THERE = "\x1b[36m(RayTrainWorker pid=10, ip=10.0.0.2)\x1b[0m"
AGAIN = "\x1b[36m(RayTrainWorker pid=77)\x1b[0m"
LOG = [
    "run poems: the driver's own word",
    f"{HERE} an early warning of rank 0",
    f"{THERE} an early warning of rank 1",
    f"{HERE} rank 0 of 2: pid 10 on head",
    f"{THERE} rank 1 of 2: pid 10 on node-2",
    "(TrainController pid=9) Started training worker group of size 2",
    f"{HERE} loss of rank 0",
    f"{THERE} loss of rank 1",
    "run poems: a node was lost; going on from step 20",
    f"{AGAIN} rank 1 of 2: pid 77 on head",
    f"{AGAIN} more of rank 1",
    f"{HERE} last word of rank 0",
]
RANK_0 = [LOG[1], LOG[3], LOG[6], LOG[11]]
RANK_1 = [LOG[2], LOG[4], LOG[7], LOG[9], LOG[10]]


def plain(lines: list[str]) -> list[str]:
    """As they come through a pipe: without colours."""
    return [click.unstyle(line) for line in lines]


def test_a_rank_is_followed_through_its_processes_on_any_node():
    """Two nodes may have the same process id, and a rank has another process after a restart."""
    assert list(OfRank(0).lines(LOG)) == RANK_0
    assert list(OfRank(1).lines(LOG)) == RANK_1


def test_a_rank_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"rank is 2, but the run's ranks are 0 to 1\."):
        list(OfRank(2).lines(LOG))
    with pytest.raises(ConfigError, match="no worker has begun"):
        list(OfRank(0).lines(LOG[:1]))


@pytest.fixture
def gone(make_run: MakeRun) -> RunFolder:
    """A run of a local cluster that has ended."""
    run = make_run()
    run.update_record(dashboard_url="http://127.0.0.1:9", submission_id=run.run_id)
    return run


def test_the_log_outlives_the_cluster(tandem: Command, gone: RunFolder):
    (gone.place / "log.txt").write_bytes("".join(f"{line}\n" for line in LOG).encode())
    for words in ([], ["--follow"]):
        assert tandem("logs", gone.run_id, *words).stdout.splitlines() == plain(LOG)
        assert tandem("logs", gone.run_id, "--rank", "1", *words).stdout.splitlines() == plain(RANK_1)
    assert "ranks are 0 to 1" in tandem("logs", gone.run_id, "--rank", "5", code=2).stderr


def test_without_cluster_and_log_the_error_says_so(tandem: Command, gone: RunFolder):
    for words in ([], ["-f"]):
        assert "Ray's dashboard at http://127.0.0.1:9 does not answer" in tandem(
            "logs", gone.run_id, *words, code=1
        ).stderr.replace("\n", " ")
    # A cluster elsewhere may answer again: following it waits, but not before it ever did.
    gone.update_record(dashboard_url="http://localhost:9")
    with pytest.raises(ClusterError, match="cannot be followed"):
        next(Run(gone).follow_logs())


@pytest.mark.engine
def test_lines_come_while_the_job_runs_and_follow_ends_with_it(cluster: TestCluster, tmp_path: Path):
    run = cluster.store.new_run("followed", "{}")
    run.update_record(dashboard_url=cluster.dashboard_url, submission_id=run.run_id)
    gate, first, second = tmp_path / "gate", tmp_path / "first", tmp_path / "second"
    first.write_text("".join(f"{line}\n" for line in LOG[:7]))
    # The last line of a job that was killed has no end.
    second.write_text("\n".join(LOG[7:]))
    jobs.submit(
        cluster.dashboard_url,
        f"cat {first}; while [ ! -e {gate} ]; do sleep 0.1; done; cat {second}",
        submission_id=run.run_id,
        env_vars={},
        metadata={},
    )
    seen: dict[int | None, list[str]] = {None: [], 0: [], 1: []}

    def watch(rank: int | None) -> None:
        for line in Run(run).follow_logs(rank):
            seen[rank].append(line)

    threads = [threading.Thread(target=watch, args=(rank,)) for rank in seen]
    for thread in threads:
        thread.start()
    wait_for(lambda: seen[0] == RANK_0[:3] and seen[1] == RANK_1[:2], "the first lines of both ranks")
    gate.touch()
    for thread in threads:
        thread.join(60)
    # Ray says something of its own before that, and writes the shell line whenever it gets to it.
    of_the_job = [line for line in seen[None] if f"job {run.run_id}" not in line]
    assert of_the_job[of_the_job.index(LOG[0]) :] == LOG
    assert (seen[0], seen[1]) == (RANK_0, RANK_1)
    done = subprocess.run(
        [sys.executable, "-m", "runtime", "logs", run.run_id, "-f", "--rank", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == plain(RANK_1), done.stderr
