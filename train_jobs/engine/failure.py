"""Which line of which worker says why an attempt failed, and whether another attempt could do better."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from train_jobs.engine.faults import KINDS, Fault, OutOfMemory, PeerLost, Superseded

_LOW_MEMORY = ("low on memory", "out of memory", "OutOfMemory")
_STARTUP = ("WorkerGroupStartupTimeoutError", "WorkerGroupStartupFailedError")
_OURS = re.compile(r"(?:[\w.]+\.)?(\w+): (.*)", re.S)


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended without a result."""

    reason: str
    """One line."""
    retry: bool = False
    """Whether the run may go on by itself."""
    no_room: bool = False
    """The workers never started: the cluster had no room for them, or lost it meanwhile."""
    superseded: bool = False
    """Another driver has the run now; this one must not touch it any more."""


def failure(error: BaseException) -> Failure:
    """What ``fit`` (or what came before and after it) failed of."""
    if isinstance(error, WorkerGroupError):
        return _of_workers(error.worker_failures)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ControllerError):
        kind = type(error.controller_failure).__name__
        return Failure(lines[-1] if lines else kind, retry=True, no_room=kind in _STARTUP)
    if isinstance(error, TrainingFailedError) and lines:
        return Failure(lines[-1], retry=True)
    return Failure(f"{type(error).__name__}: {lines[0] if lines else 'no message'}")


def _of_workers(worker_failures: Mapping[int, BaseException]) -> Failure:
    """The failure that the others followed from.

    Args:
        worker_failures: What Ray Train says of each failed worker, by world rank.
    """
    found = [_of_worker(rank, error) for rank, error in sorted(worker_failures.items())]
    if not found:
        return Failure("the workers failed without an error", retry=True)
    # A worker that only noticed the loss of another says nothing of the cause.
    return min(found, key=lambda pair: pair[0])[1]


def _of_worker(rank: int, error: BaseException) -> tuple[int, Failure]:
    """How little it explains (0: all), and the failure."""
    text = str(error).strip()
    if "worker process has died" in text or "actor died" in text or "ActorDiedError" in text:
        if any(mark in text for mark in _LOW_MEMORY):
            return 0, Failure(
                f"rank {rank}: out of memory: the node ran low on memory, and Ray ended the worker"
            )
        lost = "the worker's process died: it was killed, ran out of memory, or crashed"
        return 1, Failure(f"rank {rank}: {lost}", retry=True)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else f"{type(error).__name__} (no message)"
    # As the exception itself, or as its traceback, whose last line begins with the class.
    ours = _OURS.fullmatch(f"{type(error).__name__}: {text}" if isinstance(error, Fault) else last)
    kind = KINDS.get(ours[1]) if ours else None
    if not ours or kind is None:
        told = last if "Traceback (most recent call last)" in text else f"{type(error).__name__}: {last}"
        return 1, Failure(f"rank {rank}: {told}", retry=True)
    order = 2 if kind is PeerLost else 0 if kind is OutOfMemory else 1
    return order, Failure(f"rank {rank}: {ours[2]}", retry=kind.retry, superseded=kind is Superseded)
