"""Which line of which worker says why a run failed."""

from __future__ import annotations

from collections.abc import Mapping

# When one worker dies of a fault, the others fail a moment later in whatever collective they were in.
_AFTERMATH = ("Connection closed by peer", "Connection reset by peer", "ProcessGroup", "NCCL", "gloo")


def last_error_line(worker_failures: Mapping[int, BaseException]) -> str:
    """The error that the run failed of, as one line: ``rank 1: ValueError: ...``.

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
    last = text.splitlines()[-1].strip() if text else ""
    name = type(error).__name__
    # Ray wraps an error of the train function: its text is the traceback, which ends in the error's own line.
    return last if "Traceback" in text or last.startswith(name) else f"{name}: {last}"
