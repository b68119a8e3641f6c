"""The supervisor ends everything below it, whatever is signalled and whoever was orphaned."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cluster.processes import descendants
from tests.conftest import ROOT, wait_for

# The head leaves a grandchild in a session of its own, as vLLM and Ray do, and ends when its input does.
HEAD = (
    "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], "
    "stdin=subprocess.DEVNULL, start_new_session=True); sys.stdin.read()"
)


def supervise(state: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "cluster.supervisor", str(state), sys.executable, "-c", HEAD]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE)


def below(pid: int, count: int) -> list[psutil.Process]:
    return wait_for(
        lambda: found if len(found := descendants(pid)) >= count else [], f"{count} processes", 30
    )


def gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_head_and_its_orphans(tmp_path: Path, number: signal.Signals):
    with supervise(tmp_path / "state.json") as supervisor:
        processes = below(supervisor.pid, 2)
        wait_for((tmp_path / "state.json").exists, "the state file", 30)
        assert json.loads((tmp_path / "state.json").read_text())["pid"] == supervisor.pid
        supervisor.send_signal(number)
        assert supervisor.wait(30) == 0
    assert gone(processes)
    assert not (tmp_path / "state.json").exists()


def test_signals_during_the_clean_up_do_not_interrupt_it(tmp_path: Path):
    with supervise(tmp_path / "state.json") as supervisor:
        head, orphan = below(supervisor.pid, 2)
        assert supervisor.stdin
        supervisor.stdin.close()
        wait_for(lambda: gone([head]), "the head has ended, the orphan is adopted", 30)
        for _ in range(3):
            supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(30) == 0
    assert gone([orphan])
    assert not (tmp_path / "state.json").exists()
