"""A run's log: all of it or as it comes, of every process or of one rank, also when its cluster is gone."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from cluster import jobs
from runtime.core.errors import ClusterError, ConfigError, NotFound
from storage.runs import RunFolder

if TYPE_CHECKING:
    from runtime.run import Run

_POLL_S = 0.5

# Ray puts the process in front of a worker's line, in colour, and with `ip=` where it is on another node.
_COLOUR = r"(?:\x1b\[[\d;]*m)*"
_PROCESS = r"\(RayTrainWorker (?P<process>pid=\d+[^)]*)\)"
_WORKER = re.compile(f"{_COLOUR}{_PROCESS}{_COLOUR} ?(?P<said>.*)")
_RANK = re.compile(r"rank (?P<rank>\d+) of (?P<num_workers>\d+): pid \d+ on ")


class OfRank:
    """Keeps the lines of one rank, whichever processes have it: after a restart it is another.

    Args:
        rank: From 0 on.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._ranks: dict[str, int] = {}
        self._early: dict[str, list[str]] = {}
        self._num_workers = 0

    def lines(self, lines: Iterable[str]) -> Iterator[str]:
        """Those of ``lines`` that the rank printed.

        Raises:
            ConfigError: there is no such rank.
        """
        for line in lines:
            yield from self._kept(line)
        if self._rank not in self._ranks.values():
            raise ConfigError(f"rank is {self._rank}, but {self._who_there_is()}")

    def _kept(self, line: str) -> list[str]:
        worker = _WORKER.match(line)
        if worker is None:
            return []
        process = worker["process"]
        if said := _RANK.match(worker["said"]):
            self._ranks[process] = int(said["rank"])
            self._num_workers = max(self._num_workers, int(said["num_workers"]))
        if process not in self._ranks:
            # What a worker prints before it says which rank it is.
            self._early.setdefault(process, []).append(line)
            return []
        lines = [*self._early.pop(process, []), line]
        return lines if self._ranks[process] == self._rank else []

    def _who_there_is(self) -> str:
        if not self._num_workers:
            return "no worker has begun. Leave out the rank to see what the driver says."
        return f"the run's ranks are 0 to {self._num_workers - 1}."


def whole(run: Run) -> str:
    """What the job has printed, or what the run kept of it when its cluster is gone.

    Raises:
        ClusterError: the cluster is gone, and the run kept no log.
    """
    try:
        return jobs.logs(run.dashboard_url(), run.submission_id)
    except ClusterError:
        kept = kept_log(run.folder)
        if kept is None:
            raise
        return kept


def kept_log(folder: RunFolder) -> str | None:
    """The log that a run's driver left in the run's folder when it ended, or None."""
    try:
        return (folder.place / "log.txt").read_bytes().decode(errors="replace")
    except NotFound:
        return None


def follow(run: Run) -> Iterator[str]:
    """Lines of the log as they come, from the first one, until the run has ended.

    Raises:
        ClusterError: the cluster is gone and the run kept no log, or it has not answered for two minutes.
    """
    rest = ""
    for piece in _pieces(run):
        *lines, rest = (rest + piece).split("\n")
        yield from lines
    if rest:
        yield rest


def _pieces(run: Run) -> Iterator[str]:
    """The log, whatever is lost between: a connection is made again, and what has been seen is left out."""
    seen, job = 0, run.submission_id
    while True:
        # Before the log is read: what ended before has nothing more to say after.
        status = run.poll()
        if run.submission_id != job:
            # Taken up again, as another job with a log of its own.
            seen, job = 0, run.submission_id
        position = 0
        try:
            for piece in jobs.tail(run.dashboard_url(), job):
                new = piece[max(seen - position, 0) :]
                position += len(piece)
                seen = max(seen, position)
                if new:
                    yield new
        except ClusterError:
            if status in jobs.ENDED:
                yield _kept_since(run, seen)
            elif status == "UNKNOWN" and not seen:
                raise
        if status in jobs.ENDED:
            return
        time.sleep(_POLL_S)


def _kept_since(run: Run, seen: int) -> str:
    kept = kept_log(run.folder)
    # Where all is gone, the error says so; where something was shown, that was it.
    return (whole(run) if not seen else "") if kept is None else kept[seen:]
