"""Ctrl-C at any point of the demo, then `tandem down`: no process of ours is left."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cluster.processes import descendants
from storage.store import open_store
from tests.conftest import ROOT, TestCluster, wait_for

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


def _cluster_begins(home: Path) -> bool:
    return (home / "supervisor.json").exists()


def _training_begins(home: Path) -> bool:
    return any(run.metrics() for run in open_store(str(home / "store")).runs())


def _replica_begins(home: Path) -> bool:
    return any("VLLM::EngineCore" in _command_line(process) for process in _cluster_processes(home))


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""  # it ended between the two looks


def _cluster_processes(home: Path) -> list[psutil.Process]:
    pid = json.loads((home / "supervisor.json").read_text())["pid"]
    found = [psutil.Process(pid), *descendants(pid)]
    return [process for process in found if process.is_running()]


@pytest.fixture
def env(tmp_path: Path, tandem_command: list[str]) -> Iterator[dict[str, str]]:
    """A home and a store of this test's own, with no cluster left in it, however the test ends."""
    variables = os.environ | {"TANDEM_HOME": str(tmp_path), "TANDEM_STORE": str(tmp_path / "store")}
    yield variables
    subprocess.run([*tandem_command, "down"], env=variables, cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("reached", [_cluster_begins, _training_begins, _replica_begins])
def test_ctrl_c_and_down_leave_no_process(
    cluster: TestCluster,
    tmp_path: Path,
    env: dict[str, str],
    tandem_command: list[str],
    reached: Callable[[Path], bool],
):
    # The shared cluster keeps the usual ports or any others: this one takes what is free.
    up = [*tandem_command, "up", "--dashboard-port", "0", "--http-port", "0", "--num-cpus", "2"]
    if reached is not _cluster_begins:
        subprocess.run(up, env=env, cwd=ROOT, check=True, capture_output=True)
    command = [*tandem_command, "demo"] if reached is not _cluster_begins else up
    with subprocess.Popen(
        command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as demo:
        wait_for(lambda: reached(tmp_path), reached.__name__.strip("_").replace("_", " "), 240)
        processes = _cluster_processes(tmp_path)
        # A terminal sends the signal to the whole foreground group.
        os.killpg(demo.pid, signal.SIGINT)
        output = demo.communicate(timeout=60)[0].decode()
    assert demo.returncode == 130, output
    assert "Traceback" not in output
    if (tmp_path / "supervisor.json").exists():
        processes += _cluster_processes(tmp_path)
    subprocess.run([*tandem_command, "down"], env=env, cwd=ROOT, check=True, capture_output=True)
    left = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not left, left
