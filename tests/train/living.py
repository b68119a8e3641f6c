"""Runs on the shared cluster while they live: wait for them, find their processes, give them another node."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from cluster import jobs, local
from cluster.environments import interpreter
from cluster.processes import descendants
from cluster.rest import call
from runtime.run import ENDED, Run
from tests.conftest import TestCluster, wait_for

LESSON: dict[str, Any] = {
    "name": "lesson",
    "model": "docstrings-base",
    "dataset": "docstrings",
    "llamafactory": {
        "stage": "sft",
        "finetuning_type": "full",
        "template": "qwen3_nothink",
        "max_samples": 100,
        "cutoff_len": 64,
        "max_steps": 12,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.001,
        "bf16": True,
        "logging_steps": 1,
        "save_steps": 4,
        "seed": 1,
    },
    "deepspeed": "zero2",
    "scaling": {"num_workers": 2, "gpus_per_worker": 0},
}
"""A dozen steps on two workers. A second of training; the start takes half a minute."""


def lesson(name: str, recipe: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """LESSON under another name, with other arguments of LLaMA-Factory and other fields."""
    return LESSON | {"name": name, "llamafactory": LESSON["llamafactory"] | (recipe or {})} | fields


def ended(run: Run, timeout_s: float = 240) -> str:
    """How the run ended."""
    return wait_for(lambda: (s := run.status) in ENDED and s, f"{run.run_id} ends", timeout_s)


def saved(run: Run, step: int, timeout_s: float = 180) -> None:
    """Return when a checkpoint of ``step`` or later is committed."""

    def look() -> bool:
        assert run.status not in ENDED, run.error
        return any(one.manifest.step >= step for one in run.folder.checkpoints())

    wait_for(look, f"a checkpoint of step {step}", timeout_s)


def began(run: Run, attempt: int, timeout_s: float = 180) -> dict[str, Any]:
    """The attempt with this number, from 1 on, once it has done a step."""

    def look() -> dict[str, Any] | None:
        found = run.folder.attempts()
        if len(found) >= attempt and "first_step_at" in found[attempt - 1]:
            return found[attempt - 1]
        assert run.status not in ENDED, run.error
        return None

    return wait_for(look, f"attempt {attempt} trains", timeout_s)


def steps(run: Run) -> list[int]:
    """The steps whose loss was logged, in order."""
    return [line["step"] for line in run.folder.metrics() if "loss" in line]


def workers() -> list[psutil.Process]:
    """The training workers of the shared cluster, and of no other on this machine."""
    return _processes("ray::RayTrainWorker")


def worker(run: Run, *, rank: int) -> psutil.Process:
    """The living worker of this rank; it says its process when it starts."""

    def look() -> psutil.Process | None:
        # Ray brings a worker's lines to the run's log later than the worker comes to its steps: what is there
        # last may still be of the attempt before.
        found = re.findall(rf"rank {rank} of \d+: pid (\d+) on", run.logs())
        living = {one.pid: one for one in workers()}
        return living.get(int(found[-1])) if found else None

    return wait_for(look, f"the process of rank {rank}")


def driver(run: Run) -> psutil.Process:
    """The run's driver."""
    found = _processes("train_jobs.engine.driver", run.run_id)
    # The shell that started it has the same words in its command line, and comes first.
    return found[-1]


def _processes(*marks: str) -> list[psutil.Process]:
    running = local.current()
    assert running is not None
    return [p for p in descendants(running.pid) if all(mark in _command_line(p) for mark in marks)]


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""  # it ended between the two looks


@contextmanager
def node(cluster: TestCluster, log: Path, *, num_cpus: float) -> Iterator[psutil.Process]:
    """One more node of the shared cluster, on this machine; gone afterwards, if a test has not killed it."""
    running = local.current()
    assert running is not None
    # Known by a mark of its own and not by the sum of CPUs: Ray counts those of a killed node for a while.
    mark = f"tests-{secrets.token_hex(4)}"
    ray = str(interpreter("core").with_name("ray"))
    command = [ray, "start", "--address", running.address, "--num-cpus", str(num_cpus), "--block"]
    command += ["--resources", json.dumps({mark: 1})]
    with log.open("w") as out:
        started = subprocess.Popen(
            command, env=psutil.Process(running.pid).environ(), stdout=out, stderr=subprocess.STDOUT
        )
    process = psutil.Process(started.pid)
    try:
        wait_for(lambda: cluster.tandem().resources().get(mark), "the node has joined")
        yield process
    finally:
        kill_tree(process)
        started.wait()


@contextmanager
def all_cpus_taken(cluster: TestCluster) -> Iterator[None]:
    """A job holds every CPU of the shared cluster."""
    cpus = cluster.tandem().resources()["CPU"]
    body = {"entrypoint": "sleep 600", "entrypoint_num_cpus": cpus}
    job = call("POST", cluster.dashboard_url, "/api/jobs/", body=body)["submission_id"]
    try:
        wait_for(lambda: (jobs.details(cluster.dashboard_url, job) or {})["status"] == "RUNNING", "it runs")
        yield
    finally:
        jobs.stop(cluster.dashboard_url, job)
        wait_for(
            lambda: (jobs.details(cluster.dashboard_url, job) or {})["status"] in jobs.ENDED, "it has ended"
        )


@contextmanager
def another_cluster(tandem_command: list[str], home: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A second local cluster, as a machine elsewhere: its dashboard, and its supervisor."""
    env = os.environ | {"TANDEM_HOME": str(home)}
    options = ["--num-cpus", "2", "--num-gpus", "0", "--dashboard-port", "0", "--http-port", "0", "--json"]
    up = subprocess.run(
        [*tandem_command, "up", *options], env=env, capture_output=True, text=True, check=True
    )
    cluster = json.loads(up.stdout)
    supervisor = psutil.Process(cluster["pid"])
    try:
        yield cluster["dashboard_url"], supervisor
    finally:
        kill_tree(supervisor)


def kill_tree(process: psutil.Process) -> None:
    """``kill -9`` of a process and all that it started: what a lost machine is to the others."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
