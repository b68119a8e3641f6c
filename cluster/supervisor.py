"""The parent of a Ray node: starts Ray, adopts every orphan, and ends all of it.

    python -m cluster.supervisor STATE_FILE RAY_START_COMMAND... [--beside COMMAND...]

The command after ``--beside`` (Prometheus) is started as well; its end ends nothing else.

Ray's ``stop`` finds processes by name and would end other people's. Here each process of the node
is a descendant of this one (a subreaper, so orphans come back to it): ending the cluster means ending
our descendants. SIGTERM or SIGINT ends it; so does the death of Ray's head process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import psutil

from cluster.processes import become_subreaper, descendants, die_with_parent, kill_all
from storage.local_files import write_json

_HEAD_S = 6.0
"""Time for Ray to end its own processes before SIGKILL."""

_OTHERS_S = 1.0
"""Time for the rest, once Ray has ended: workers see it and go by themselves."""

_POLL_S = 0.05

_BESIDE = "--beside"

# A plain value: an Event's set() in the handler waits for ever when it interrupted the Event's wait(), which
# held the lock, and both are this thread's.
_told_to_stop = False


def _on_signal(_number: int, _frame: FrameType | None) -> None:
    # No exception: it could interrupt the clean-up, and orphan what is left.
    global _told_to_stop  # noqa: PLW0603
    _told_to_stop = True


def main(arguments: list[str]) -> int:
    """Run until told to stop or until Ray's head ends; returns the head's exit code, 0 when told."""
    state_file, command, beside = _read(arguments)
    become_subreaper()
    signal.signal(signal.SIGTERM, _on_signal)
    signal.signal(signal.SIGINT, _on_signal)
    # This process has one thread, so running code between fork and exec is safe.
    head = subprocess.Popen(command, preexec_fn=die_with_parent)  # noqa: PLW1509
    companion = subprocess.Popen(beside, preexec_fn=die_with_parent) if beside else None  # noqa: PLW1509
    write_json(state_file, _state(head.pid, companion.pid if companion else None))
    code = _wait_and_reap(head.pid)
    _end_everything(head.pid, companion.pid if companion else None)
    state_file.unlink(missing_ok=True)
    return code


def _read(arguments: list[str]) -> tuple[Path, list[str], list[str]]:
    """The state file, Ray's command, and the one beside it."""
    words = arguments[1:]
    split = words.index(_BESIDE) if _BESIDE in words else len(words)
    return Path(arguments[0]), words[:split], words[split + 1 :]


def _state(head_pid: int, companion_pid: int | None) -> dict[str, float]:
    """Who we are and who Ray's head is: should we be killed, `tandem down` waits for the head's end.

    Who its companion is, too: who started it may ask whether it still lives.
    """
    me, head = psutil.Process(), psutil.Process(head_pid)
    beside = psutil.Process(companion_pid) if companion_pid else None
    return {
        "pid": me.pid,
        "create_time": me.create_time(),
        "head_pid": head.pid,
        "head_create_time": head.create_time(),
        **({"companion_pid": beside.pid, "companion_create_time": beside.create_time()} if beside else {}),
    }


def _wait_and_reap(head_pid: int) -> int:
    """Reap adopted orphans as they end; return when told to stop or when Ray's head has ended."""
    while not _told_to_stop:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == head_pid:
            return os.waitstatus_to_exitcode(status)
        if pid == 0:
            time.sleep(_POLL_S)
    return 0


def _end_everything(head_pid: int, companion_pid: int | None) -> None:
    # The number of one that we have reaped may be another's by now.
    ours = {child.pid for child in psutil.Process().children()}
    for pid in ours & {head_pid, companion_pid}:
        os.kill(pid, signal.SIGTERM)
    _wait_while(lambda: _reap() and psutil.pid_exists(head_pid), timeout_s=_HEAD_S + _drain_s())
    _wait_while(_reap, timeout_s=_OTHERS_S)
    # New processes may be forked, and orphans adopted, while we kill: repeat until none is left.
    while _reap():
        kill_all(descendants(os.getpid()))
        time.sleep(_POLL_S)


def _drain_s() -> float:
    """How long Ray was told to wait for what still runs on this node; it goes earlier when that has ended."""
    return float(os.environ.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "0"))


def _wait_while(condition: Callable[[], bool], *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while condition() and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _reap() -> bool:
    """Collect ended children; whether any child still runs."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
