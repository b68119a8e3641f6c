"""Processes of ours: known by process id and start time, ended as a tree, never by name."""

from __future__ import annotations

import ctypes
import signal
import socket
from collections import deque
from collections.abc import Iterable

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Let descendants whose parent dies become our children, so that none is ever lost.

    Source: prctl(2), PR_SET_CHILD_SUBREAPER. Linux only, as all of Tandem's clusters are.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent() -> None:
    """In a child, between fork and exec: get SIGTERM when the parent dies, even by ``kill -9``."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def is_alive(pid: int, create_time: float) -> bool:
    """Whether the very process that began at ``create_time`` still runs: process ids are used again."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - create_time) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def descendants(pid: int) -> list[psutil.Process]:
    """All processes below ``pid``, those of the deepest level last; none when it is gone."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL each; one that is gone already is fine."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


_given: deque[int] = deque(maxlen=100)
"""Ports that were found lately: who asked for one may not listen there yet."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now, and that this process has not just been given."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _given:
            _given.append(port)
            return port


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether ``host:port`` can be listened on; ``host`` is an address of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
