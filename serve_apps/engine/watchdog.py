"""End a replica's processes when the replica is gone, however it went.

vLLM's EngineCore and workers outlive a replica that is killed with SIGKILL and keep their memory. This small
process (standard library only, in a session of its own) holds the read end of a pipe from the replica. Each
second it notes the replica's descendants; at the pipe's end it kills those that still live, and removes the
folder of their sockets: whoever is killed leaves them.

Run as ``python watchdog.py <replica pid> <mark> <folder>``: ``mark`` is in the environment of every process
that the replica starts, which finds those younger than the last look.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

MARK = "TANDEM_REPLICA_MARK"
_LOOK_EVERY_S = 1.0
_GIVE_UP_AFTER_S = 10.0
_LONGEST_TEMP_DIR_BYTES = 48
"""Of 107 that a UNIX socket's path may have; vLLM names its sockets with 36."""
_NOT_ITS_END = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # only the replica's end ends the watchdog

Process = tuple[int, int]
"""A process id and its start time: together they never name a later process that got the same id."""


def watch_over_children() -> Path:
    """Start a watchdog for the calling process; call before the children start.

    Returns:
        A folder with a short path for the children's sockets; it goes when they do.
    """
    folder = _socket_dir()
    mark = os.environ[MARK] = uuid.uuid4().hex
    read_end, write_end = os.pipe()
    # The write end stays open, and in this process only, until the kernel closes it at this process's end.
    command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), mark, str(folder)]
    environment = {k: v for k, v in os.environ.items() if k != MARK}
    # Born with these signals blocked: one that came before it could ignore them would end it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_ITS_END)
    try:
        subprocess.Popen(command, stdin=read_end, start_new_session=True, env=environment)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(read_end)
    _KEPT_OPEN.append(write_end)
    return folder


_KEPT_OPEN: list[int] = []


def _socket_dir() -> Path:
    temp_dir = tempfile.gettempdir()
    # A job's own TMPDIR may be long; /tmp never is.
    short = temp_dir if len(os.fsencode(temp_dir)) <= _LONGEST_TEMP_DIR_BYTES else "/tmp"
    return Path(tempfile.mkdtemp(prefix="tandem-", dir=short))


def kill_children() -> None:
    """Kill what the calling process started, the watchdog excepted."""
    for pid, _ in family(set(), os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == os.getsid(0):
                os.kill(pid, signal.SIGKILL)


def main(replica: int, mark: str, folder: str) -> None:
    """Wait for the end of standard input, then kill what the replica left and remove the folder."""
    for number in _NOT_ITS_END:
        signal.signal(number, signal.SIG_IGN)
    noted: set[Process] = set()
    while not select.select([sys.stdin], [], [], _LOOK_EVERY_S)[0]:
        noted = family(noted, replica)
    _kill(noted, mark)
    shutil.rmtree(folder, ignore_errors=True)


def family(noted: set[Process], replica: int | None = None) -> set[Process]:
    """Those of ``noted`` that still live, and all descendants of theirs and of the replica.

    A process stays in the family when its parent dies before it: nobody else would end it.
    """
    processes = _all()
    found = noted & set(processes)
    parents = {pid for pid, _ in found} | ({replica} if replica else set())
    while more := {p for p, parent in processes.items() if parent in parents} - found:
        found |= more
        parents |= {pid for pid, _ in more}
    return {process for process in found if process[0] != os.getpid()}


def _kill(noted: set[Process], mark: str) -> None:
    deadline = time.monotonic() + _GIVE_UP_AFTER_S
    while time.monotonic() < deadline:
        noted = family(noted | _marked(mark))
        if not noted:
            return
        for pid, _ in noted:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _all() -> dict[Process, int]:
    """Every living process and its parent."""
    found: dict[Process, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, _Gone):
                start, parent = _start_and_parent(int(entry))
                found[int(entry), start] = parent
    return found


class _Gone(Exception):
    """The process has ended; only its entry is left."""


def _start_and_parent(pid: int) -> tuple[int, int]:
    # The name in parentheses may hold anything, spaces and parentheses too.
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    if fields[0] == b"Z":
        raise _Gone
    return int(fields[19]), int(fields[1])


def _marked(mark: str) -> set[Process]:
    """Processes that carry the mark. A process that renames itself loses it, but is noted by then."""
    wanted = f"{MARK}={mark}".encode()
    found = set()
    for process in _all():
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{process[0]}/environ").read_bytes().split(b"\0"):
                found.add(process)
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
