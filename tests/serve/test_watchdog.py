"""A replica's processes end with it, however it ends. Real processes, a real SIGKILL, no vLLM needed."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from serve_apps.engine.watchdog import family
from tests.conftest import wait_for

ROOT = Path(__file__).resolve().parents[2]
GONE_S = 30
"""Even on a busy machine; the watchdog itself gives up after 10 s."""
Start = Callable[[str], tuple[subprocess.Popen[str], list[int]]]

# Stands for a replica: watched, with a child that has a child of its own. Both outlive their parent, as
# vLLM's EngineCore and Workers do. Prints its own id, then its child's, then its grandchild's.
REPLICA = """
import os, subprocess, sys, time
from serve_apps.engine.watchdog import watch_over_children
watch_over_children()
child = "import os, subprocess, sys; " \\
    "sleeper = [sys.executable, '-c', 'import time; time.sleep(600)']; " \\
    "p = subprocess.Popen(sleeper, start_new_session=True); " \\
    "print(os.getpid(), p.pid, flush=True); p.wait()"
print(os.getpid(), flush=True)
subprocess.Popen([sys.executable, "-c", child])
{then}
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def watchdog_of(replica: int) -> int:
    """The watchdog's process id; it is the replica's child that runs watchdog.py."""
    children = psutil.Process(replica).children()
    (watchdog,) = [child.pid for child in children if str(replica) in child.cmdline()]
    return watchdog


@pytest.fixture
def bystander() -> Iterator[int]:
    """A process of somebody else, which must survive."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process.pid
    process.kill()
    process.wait()


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a stand-in replica; gives it and the ids of its child and grandchild. Ends it after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(then: str) -> tuple[subprocess.Popen[str], list[int]]:
        replica = subprocess.Popen(
            [sys.executable, "-c", REPLICA.format(then=then)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(replica)
        assert replica.stdout
        assert int(replica.stdout.readline()) == replica.pid
        return replica, [int(pid) for pid in replica.stdout.readline().split()]

    yield start
    for replica in started:
        replica.kill()  # and with it, by its watchdog, whatever a failed test left
        replica.wait()


def test_after_kill_9_of_the_replica_nothing_of_it_is_left(start: Start, bystander: int):
    replica, children = start("time.sleep(600)")
    watchdog = watchdog_of(replica.pid)
    replica.send_signal(signal.SIGKILL)
    replica.wait()
    wait_for(lambda: not any(map(alive, [*children, watchdog])), "replica's processes gone", GONE_S)
    assert alive(bystander)


def test_a_normal_end_of_the_replica_ends_them_too(start: Start, bystander: int):
    # As a rule within the first second: the watchdog has noted nothing yet and finds both by their mark.
    replica, children = start("os._exit(0) if sys.stdin.read() == '' else None")
    assert len(children) == 2
    assert replica.stdin
    replica.stdin.close()
    replica.wait()
    wait_for(lambda: not any(map(alive, children)), "replica's processes gone", GONE_S)
    assert alive(bystander)


def test_the_watchdog_does_not_end_before_the_replica(start: Start):
    replica, children = start("time.sleep(600)")
    watchdog = watchdog_of(replica.pid)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(watchdog, number)
    assert all(map(alive, [*children, watchdog]))
    replica.kill()
    replica.wait()
    wait_for(lambda: not any(map(alive, [*children, watchdog])), "replica's processes gone", GONE_S)


def test_a_worker_whose_engine_died_first_is_not_forgotten(start: Start):
    replica, (child, grandchild) = start("time.sleep(600)")
    noted = family(set(), replica.pid)
    assert {child, grandchild} <= {pid for pid, _ in noted}
    os.kill(child, signal.SIGKILL)
    wait_for(lambda: not alive(child), "child gone", GONE_S)
    assert grandchild in {pid for pid, _ in family(noted, replica.pid)}
    assert child not in {pid for pid, _ in family(noted, replica.pid)}
    replica.kill()
    replica.wait()
    wait_for(lambda: not alive(grandchild), "grandchild gone", GONE_S)


@pytest.mark.parametrize("name", ["short", "long" * 20])
def test_the_sockets_of_its_children_have_short_paths_and_go_with_them(tmp_path: Path, name: str):
    program = (
        "from serve_apps.engine.watchdog import watch_over_children; print(watch_over_children()); input()"
    )
    (tmp_path / name).mkdir()
    env = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / name), "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", program], env=env, stdin=pipe, stdout=pipe, text=True
    ) as replica:
        assert replica.stdout
        folder = Path(replica.stdout.readline().strip())
        with socket.socket(socket.AF_UNIX) as server:
            # As vLLM names them. Nobody takes it away from the one that is killed.
            server.bind(str(folder / str(uuid.uuid4())))
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        replica.kill()
        replica.wait()
    wait_for(lambda: not folder.exists(), "the folder of the sockets is gone", GONE_S)
