"""What tests of a plain cluster's parts share: a TANDEM_HOME of their own, a cluster spec, taken ports."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from cluster.plain import state
from cluster.plain.state import PlainNode


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A TANDEM_HOME of this test's own."""
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def taken_port() -> Iterator[Callable[[str], int]]:
    """Ports at an address of this machine that somebody listens on until the test ends."""
    with ExitStack() as open_sockets:

        def take(host: str) -> int:
            other = open_sockets.enter_context(socket.socket())
            other.bind((host, 0))
            other.listen()
            return int(other.getsockname()[1])

        yield take


@pytest.fixture
def running_node(own_home: Path, tmp_path: Path) -> Callable[..., PlainNode]:
    """Writes the state file of a node that runs; this process stands for its supervisor."""
    own_home.mkdir()

    def run(**fields: object) -> PlainNode:
        common = {
            "role": "head",
            "pid": os.getpid(),
            "create_time": psutil.Process().create_time(),
            "address": "10.0.0.1:6379",
            "node_ip": "10.0.0.1",
            "dashboard_url": "http://10.0.0.1:8265",
            "http_url": "http://10.0.0.1:8000",
            "token_file": None,
            "store": str(tmp_path / "store"),
            "temp_dir": str(own_home / "ray"),
        }
        return state.keep(PlainNode.model_validate(common | fields))

    return run
