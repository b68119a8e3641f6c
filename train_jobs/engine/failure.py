"""Which line of which worker says why a run failed."""

from __future__ import annotations

from collections.abc import Mapping

from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

# When one worker dies of a fault, the others fail a moment later in whatever collective they were in.
_AFTERMATH = ("Connection closed by peer", "Connection reset by peer", "ProcessGroup", "NCCL", "Gloo")


def reason(error: BaseException) -> str:
    """Why ``fit`` (or what came before and after it) failed, in one line."""
    if isinstance(error, WorkerGroupError):
        return last_error_line(error.worker_failures)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, TrainingFailedError) and lines:
        return lines[-1]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def last_error_line(worker_failures: Mapping[int, BaseException]) -> str:
    """The error that the run failed of, such as ``rank 1: ValueError: ...``.

    Args:
        worker_failures: What Ray Train says of each failed worker, by world rank.
    """
    lines = {rank: _line(error) for rank, error in sorted(worker_failures.items())}
    causes = {r: line for r, line in lines.items() if not any(mark in line for mark in _AFTERMATH)}
    for rank, line in (causes or lines).items():
        return f"rank {rank}: {line}"
    return "the workers failed without an error"


def _line(error: BaseException) -> str:
    text = str(error).strip()
    name = type(error).__name__
    if "worker process has died" in text:
        return "the worker's process died: it was killed, ran out of memory, or crashed"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return f"{name} (no message)"
    # An error that Ray wrapped carries the traceback as its text, which ends in the error's own line.
    return lines[-1] if "Traceback (most recent call last)" in text else f"{name}: {lines[0]}"
