"""Ray below our supervisor (``cluster.supervisor``): started, waited for, and ended by process ids."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from cluster.environments import interpreter
from cluster.processes import descendants, is_alive, kill_all
from runtime.core.errors import ClusterError
from runtime.core.places import home


def start(
    command: Sequence[str], env: Mapping[str, str], log: Path, *, beside: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """The supervisor of a new Ray, in a session of its own: it outlives who started it.

    Args:
        command: ``ray start --block`` and its options.
        env: Its whole environment, which Ray's workers inherit.
        log: Gets what all print.
        beside: A program that runs as long as Ray does.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    supervisor = [str(interpreter("core")), "-m", "cluster.supervisor", str(supervisor_file())]
    with log.open("wb") as output:
        return subprocess.Popen(
            [*supervisor, *command, *(["--beside", *beside] if beside else [])],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env),
            cwd=home(),
            start_new_session=True,
        )


def wait_until_up(
    process: subprocess.Popen[bytes], is_up: Callable[[], bool], *, where: str, timeout_s: float, log: Path
) -> None:
    """Return when ``is_up`` says so.

    Raises:
        ClusterError: Ray ended, or did not answer at ``where`` in time; holds the log's last lines.
    """
    deadline = time.monotonic() + timeout_s
    while not is_up():
        if process.poll() is not None:
            raise ClusterError(f"Ray ended while starting. Last lines of {log}:\n{_tail(log)}")
        if time.monotonic() > deadline:
            raise ClusterError(
                f"Ray did not answer at {where} within {timeout_s:.0f} s. Last lines of {log}:\n{_tail(log)}"
            )
        time.sleep(0.1)


def supervisor_id() -> tuple[int, float]:
    """Process id of the supervisor that runs here, and when it began, in seconds since 1970."""
    state = json.loads(supervisor_file().read_text())
    return state["pid"], state["create_time"]


def companion_lives(state_file: Path) -> bool:
    """Whether the program beside Ray still runs, by what their supervisor wrote."""
    try:
        state = json.loads(state_file.read_text())
    except FileNotFoundError:
        return False
    return is_alive(state["companion_pid"], state["companion_create_time"])


def give_up(process: subprocess.Popen[bytes]) -> None:
    """End a Ray that did not come up: a cluster that nobody knows of must not stay."""
    process.terminate()
    process.wait()
    supervisor_file().unlink(missing_ok=True)


def end(*, timeout_s: float) -> bool:
    """End what the supervisor of this TANDEM_HOME holds, every process of it; whether there was anything.

    Raises:
        ClusterError: it still runs after ``timeout_s``.
    """
    try:
        state = json.loads(supervisor_file().read_text())
    except FileNotFoundError:
        return False
    alive = is_alive(state["pid"], state["create_time"])
    if alive:
        os.kill(state["pid"], signal.SIGTERM)
        _wait_until_gone(state["pid"], state["create_time"], timeout_s=timeout_s)
    elif is_alive(state["head_pid"], state["head_create_time"]):
        # Somebody killed the supervisor. Ray is ending by itself; we do not wait for it.
        kill_all([psutil.Process(state["head_pid"]), *descendants(state["head_pid"])])
        _wait_until_gone(state["head_pid"], state["head_create_time"], timeout_s=timeout_s)
        alive = True
    supervisor_file().unlink(missing_ok=True)
    return alive


def supervisor_file() -> Path:
    """Where the supervisor writes who it is. One TANDEM_HOME has one Ray."""
    return home() / "supervisor.json"


def _wait_until_gone(pid: int, create_time: float, *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while is_alive(pid, create_time):
        if time.monotonic() > deadline:
            raise ClusterError(
                f"process {pid} did not end within {timeout_s:.0f} s. End it with kill -9 {pid}."
            )
        time.sleep(0.05)


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
