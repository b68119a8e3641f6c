"""The parent of a local cluster: starts Ray, adopts every orphan, and ends all of it.

    python -m cluster.supervisor STATE_FILE RAY_START_COMMAND...

Ray's ``stop`` finds processes by name and would end other people's. Here each process of the cluster
is a descendant of this one (a subreaper, so orphans come back to it): ending the cluster means ending
our descendants. SIGTERM or SIGINT ends it; so does the death of Ray's head process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import psutil

from cluster.processes import become_subreaper, descendants, die_with_parent, kill_all
from storage.commit import write_json

_POLITE_S = 6.0
"""Time for Ray and vLLM to end by themselves before SIGKILL."""


class _Stop(Exception):
    pass


def _on_signal(_number: int, _frame: FrameType | None) -> None:
    # Once is enough: a second signal must not interrupt the clean-up.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise _Stop


def main(arguments: list[str]) -> int:
    """Run until told to stop or until Ray's head ends; returns the head's exit code, 0 when told."""
    state_file, command = Path(arguments[0]), arguments[1:]
    become_subreaper()
    signal.signal(signal.SIGTERM, _on_signal)
    signal.signal(signal.SIGINT, _on_signal)
    code = 0
    head: subprocess.Popen[bytes] | None = None
    try:
        me = psutil.Process()
        write_json(state_file, {"pid": me.pid, "create_time": me.create_time()})
        # This process has one thread, so running code between fork and exec is safe.
        head = subprocess.Popen(command, preexec_fn=die_with_parent)  # noqa: PLW1509
        code = _wait_and_reap(head.pid)
    except _Stop:
        pass
    finally:
        _end_everything(head)
        state_file.unlink(missing_ok=True)
    return code


def _wait_and_reap(head_pid: int) -> int:
    """Reap adopted orphans as they end; return when Ray's head has ended."""
    while True:
        pid, status = os.wait()
        if pid == head_pid:
            return os.waitstatus_to_exitcode(status)


def _end_everything(head: subprocess.Popen[bytes] | None) -> None:
    if head is not None:
        _signal(head.pid, signal.SIGTERM)
    deadline = time.monotonic() + _POLITE_S
    while _reap() and time.monotonic() < deadline:
        time.sleep(0.05)
    # New processes may be forked, and orphans adopted, while we kill: repeat until none is left.
    while _reap():
        kill_all(descendants(os.getpid()))
        time.sleep(0.05)


def _reap() -> bool:
    """Collect ended children; whether any child still runs."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
