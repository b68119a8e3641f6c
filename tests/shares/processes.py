"""Other processes that tell shares, take locks and memory: started here, ended here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.shares.holding import Holding, holdings_in
from tests.conftest import ROOT, wait_for

FIELDS = {
    "holder": "lesson-1",
    "worker": "rank 0",
    "kind": "train",
    "node_id": "node",
    "cards": ("0",),
    "fraction": 0.5,
    "cpus": 1.0,
    "memory_bytes": 0,
    "promised_bytes": 1 << 30,
    "on": "host",
}
"""Of a share that a process of a test tells."""


@contextmanager
def running(program: str, *arguments: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process of this program; killed at the end, if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    """The next line that it prints."""
    assert process.stdout
    return process.stdout.readline().strip()


@contextmanager
def holder(folder: Path, *, more: str = "", **fields: object) -> Iterator[subprocess.Popen[str]]:
    """A process that tells a share for as long as its input is open.

    Args:
        more: What it does before it says that it is there.
    """
    program = f"""
import sys
from pathlib import Path
from cluster.shares.holding import told
with told(Path(sys.argv[1]), **{FIELDS | fields!r}):
    {more}
    print("told", flush=True)
    sys.stdin.read()
print("ended", flush=True)
"""
    with running(program, str(folder)) as process:
        assert line(process) == "told"
        yield process


def told_by(folder: Path) -> dict[int, Holding]:
    """What is told, by process."""
    return {one.pid: one for one in holdings_in(folder)}


def wait_until_gone(folder: Path, pid: int) -> None:
    """Return when the process's share counts no more."""
    wait_for(lambda: pid not in told_by(folder), f"the share of {pid} is gone", 10)
