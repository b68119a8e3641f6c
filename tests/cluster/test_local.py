"""The local cluster: started once, found again, and gone without a trace, however it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster import local
from cluster.code import PACKAGES, code_snapshot
from cluster.processes import descendants, free_port, is_alive
from cluster.rest import call, cluster_resources
from runtime.core.errors import ClusterError, ConfigError
from runtime.sdk import Tandem
from tests.conftest import wait_for

SMALL = local.LocalClusterSpec(num_cpus=3, num_gpus=2, dashboard_port=0, http_port=0)


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A TANDEM_HOME of this test's own, with no cluster left in it at the end."""
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    local.down()


def family(pid: int) -> list[psutil.Process]:
    """The process and all below it."""
    return [psutil.Process(pid), *descendants(pid)]


def all_gone(processes: list[psutil.Process]) -> bool:
    # Not is_running() and then status(): one that ends between the two would raise.
    return not any(is_alive(process.pid, process.create_time()) for process in processes)


@pytest.mark.engine
def test_up_finds_the_running_cluster_and_down_leaves_no_process(own_home: Path):
    first = local.up(SMALL)
    assert local.up() == first == local.current()
    assert cluster_resources(first.dashboard_url)["CPU"] == 3
    # Fractions are schedulable without a card: two logical GPUs.
    assert cluster_resources(first.dashboard_url)["GPU"] == 2
    processes = family(first.pid)
    assert len(processes) > 8
    assert local.down()
    assert all_gone(processes)
    assert local.current() is None
    assert not local.down()


@pytest.mark.engine
def test_a_killed_supervisor_takes_the_cluster_with_it(own_home: Path):
    cluster = local.up(SMALL)
    processes = family(cluster.pid)
    os.kill(cluster.pid, signal.SIGKILL)
    wait_for(lambda: all_gone(processes), "Ray ends when its supervisor is killed", 60)
    assert local.current() is None
    assert not local.down()


@pytest.mark.engine
def test_an_interrupted_start_leaves_nothing(own_home: Path):
    command = [
        sys.executable,
        "-c",
        "from cluster import local; local.up(local.LocalClusterSpec(dashboard_port=0, http_port=0))",
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as starting:
        state = own_home / "supervisor.json"
        wait_for(state.exists, "the supervisor has begun", 30)
        wait_for(lambda: len(descendants(starting.pid)) > 3, "Ray has begun to start", 30)
        processes = descendants(starting.pid)
        starting.send_signal(signal.SIGINT)
        assert starting.wait(60) != 0
    assert all_gone(processes)
    assert not state.exists()


def test_a_port_in_use_is_refused_with_the_remedy(own_home: Path, home: Path):
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(
            ClusterError, match=rf"dashboard_port is {port}.*--dashboard-port 0 takes any free"
        ):
            local.up(local.LocalClusterSpec(dashboard_port=port))
    assert not (own_home / "supervisor.json").exists()


def test_a_state_file_of_a_dead_cluster_counts_for_nothing(own_home: Path):
    own_home.mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        began = psutil.Process(process.pid).create_time()
        assert is_alive(process.pid, began)
        assert not is_alive(process.pid, began - 100), "the id belongs to another process now"
        process.kill()
    assert not is_alive(process.pid, began)
    cluster = local.LocalCluster(
        pid=process.pid, create_time=began, address="a", dashboard_url="b", http_url="c", temp_dir="d"
    )
    (own_home / "cluster.json").write_text(cluster.to_json())
    assert local.current() is None


def test_an_address_that_nobody_answers_says_what_to_do(home: Path):
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ClusterError, match=rf"{url} does not answer.*tandem up"):
        call("GET", url, "/api/version")
    with pytest.raises(ClusterError, match="does not answer"):
        Tandem(url)
    with pytest.raises(ConfigError, match=r"address is 'head:8265'. Give the dashboard's URL"):
        Tandem("head:8265")


def test_the_code_snapshot_holds_our_packages_and_nothing_else():
    snapshot = code_snapshot()
    assert {entry.name for entry in snapshot.iterdir()} == set(PACKAGES)
    assert code_snapshot() == snapshot, "the same content is the same folder"
    found = subprocess.run(
        [sys.executable, "-c", "import train_jobs.plan, os; print(os.path.dirname(train_jobs.__file__))"],
        env=os.environ | {"PYTHONPATH": str(snapshot)},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == str(snapshot / "train_jobs")
