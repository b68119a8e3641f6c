"""One cluster and one store for all tests that need them; each ends with the session."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from cluster import local
from cluster.processes import descendants
from runtime.demo import add_demo_inputs
from runtime.sdk import Tandem
from storage.store import Store, open_store

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 180.0
T = TypeVar("T")


@dataclass(frozen=True)
class TestCluster:
    """The shared local cluster and its store."""

    __test__ = False

    dashboard_url: str
    address: str
    http_url: str
    store: Store
    home: Path

    def tandem(self) -> Tandem:
        """The SDK on this cluster."""
        return Tandem(store=self.store.uri)


def wait_for(condition: Callable[[], T], what: str, timeout_s: float = DEADLINE_S) -> T:
    """The first true value of ``condition``; fails the test when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.05)
    return value


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A TANDEM_HOME and TANDEM_STORE for this session: a test never touches the user's own."""
    folder = tmp_path_factory.mktemp("home")
    settings = {
        "TANDEM_HOME": str(folder),
        "TANDEM_STORE": str(folder / "store"),
        "TANDEM_FILE_CACHE": str(folder / "files"),
        "PYTHONPATH": str(ROOT),
        # As a user has them: in the environment that the cluster is started with.
        "AWS_ACCESS_KEY_ID": "tandem-tests",
        "AWS_SECRET_ACCESS_KEY": "tandem-tests-secret",
        # The tests' clusters have no GPU, whatever the machine has.
        "TANDEM_FLAVOUR": "cpu",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    yield folder
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="session")
def cluster(home: Path) -> Iterator[TestCluster]:
    """The shared local cluster: two logical CPUs, whatever the machine has; free ports."""
    spec = local.LocalClusterSpec(num_cpus=2, num_gpus=0, dashboard_port=0, http_port=0)
    running = local.up(spec)
    yield TestCluster(
        running.dashboard_url, running.address, running.http_url, open_store(str(home / "store")), home
    )
    # Whatever the tests left running, engines included, `down` ends; by process id, not by name.
    processes = [psutil.Process(running.pid), *descendants(running.pid)]
    local.down()
    left = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not left, f"still alive after down: {left}"


@pytest.fixture(scope="session")
def inputs(cluster: TestCluster) -> TestCluster:
    """The cluster, with the demo's dataset and untrained base model in its store."""
    add_demo_inputs(cluster.store)
    return cluster


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store of this test's own, and a node cache of its own."""
    monkeypatch.setenv("TANDEM_FILE_CACHE", str(tmp_path / "files"))
    return open_store(str(tmp_path / "store"))


@pytest.fixture(scope="session")
def tandem_command() -> list[str]:
    """The command line, run by the interpreter of the tests."""
    return [sys.executable, "-m", "runtime"]
