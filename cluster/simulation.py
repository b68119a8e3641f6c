"""A cluster that fills on paper: requests come and go, placed and queued by the rules of the real one."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

from cluster.inventory import Inventory
from cluster.placement import Free, Placement, Request
from cluster.placement.request import UNITS
from cluster.priority import CLASSES
from cluster.simulation_spec import WorkloadSpec
from cluster.waiting import Admitted, Decision, Held, Refused, Waiting, admit
from runtime.core.errors import ConfigError
from runtime.core.lookup import did_you_mean


@dataclass(frozen=True)
class Outcome:
    """What became of one request."""

    arrival: str
    """The entry of the workload that it is of."""

    request: Request
    priority: str
    at_s: float
    started_s: float | None = None
    """None for one that was refused, or waits to the end."""

    ended_s: float | None = None
    """None for one that runs to the end, too."""

    placement: Placement | None = None
    refused: bool = False
    position: int | None = None
    """In the queue, the last time that it was told to wait."""

    reason: str | None = None
    """Why it was refused, or why it had to wait, as it was told last."""

    @property
    def status(self) -> Literal["ended", "running", "waiting", "refused"]:
        """At the end of the simulation."""
        if self.refused:
            return "refused"
        if self.started_s is None:
            return "waiting"
        return "running" if self.ended_s is None else "ended"

    @property
    def waited_s(self) -> float | None:
        """Until it started; None where it did not."""
        return None if self.started_s is None else self.started_s - self.at_s

    def runs_at(self, now_s: float) -> bool:
        """Whether it holds its places then; at the second of its end it does not."""
        return self.started_s is not None and self.started_s <= now_s < (self.ended_s or float("inf"))


@dataclass(frozen=True)
class Moment:
    """The cluster from one event to the next."""

    at_s: float
    used: float
    """Cards, fractions added up."""

    whole_free: int
    """Cards of which nothing is held."""

    waiting: int
    """Requests in the queue."""


@dataclass(frozen=True)
class Simulated:
    """All that happened, until the last request came or ended."""

    inventory: Inventory
    outcomes: tuple[Outcome, ...]
    """In the order of arrival."""

    timeline: tuple[Moment, ...]
    """One for each time at which something happened, in order."""

    @property
    def end_s(self) -> float:
        """When the last thing happened."""
        return self.timeline[-1].at_s

    @cached_property
    def utilization(self) -> float:
        """Share of all cards that was used, 0 to 1, over the time from the first event to the last; 0 without
        cards, and where all happens at once, what is used after it."""
        if not self.inventory.cards:
            return 0.0
        span = self.end_s - self.timeline[0].at_s
        if not span:
            return self.timeline[-1].used / self.inventory.cards
        area = sum(one.used * (following.at_s - one.at_s) for one, following in pairwise(self.timeline))
        return area / (span * self.inventory.cards)

    @property
    def fullest_s(self) -> float:
        """When most cards were used, for the first time."""
        return max(self.timeline, key=lambda moment: moment.used).at_s

    def at(self, now_s: float) -> Moment:
        """The last moment up to then; before the first one nothing is used."""
        before = [moment for moment in self.timeline if moment.at_s <= now_s]
        return before[-1] if before else Moment(now_s, 0.0, self.inventory.cards, 0)


def simulate(
    inventory: Inventory, workload: WorkloadSpec, *, classes: tuple[str, ...] = CLASSES
) -> Simulated:
    """Let the workload come to the cluster, whose queue has these priority classes, the highest first.

    The queue is looked at whenever a request comes or ends, as ``cluster.waiting`` says; what runs without a
    duration does not end. Nothing is random: the same files give the same answer.

    Raises:
        ConfigError: a priority is none of the cluster's.
    """
    return _Course(inventory, workload, classes).run()


class _Course:
    """The state of a simulation between two events."""

    def __init__(self, inventory: Inventory, workload: WorkloadSpec, classes: tuple[str, ...]) -> None:
        self.inventory, self.classes = inventory, classes
        self.free = Free.of(self.inventory)
        self.lasting = self.free
        arriving = []
        self.durations: dict[str, float | None] = {}
        for arrival in workload.requests:
            _check_priority(arrival.name, arrival.priority_class, self.classes)
            for number, name in enumerate(arrival.names()):
                at_s = arrival.at_s + number * arrival.every_s
                arriving.append(Outcome(arrival.name, arrival.request(name), arrival.priority_class, at_s))
                self.durations[name] = arrival.duration_s
        # Stable: what comes at one time comes in the order of the file.
        arriving.sort(key=lambda outcome: outcome.at_s)
        self.outcomes = {outcome.request.name: outcome for outcome in arriving}
        self.arriving = arriving[::-1]
        self.ending: list[tuple[float, str]] = []
        self.queue: list[Waiting] = []

    def run(self) -> Simulated:
        """Event after event, to the last."""
        timeline = []
        while self.arriving or self.ending:
            now_s = min(
                self.arriving[-1].at_s if self.arriving else float("inf"),
                self.ending[0][0] if self.ending else float("inf"),
            )
            self._end(now_s)
            self._arrive(now_s)
            decisions = admit(self.free, self.queue, now_s, lasting=self.lasting, classes=self.classes)
            for decision in decisions:
                self._apply(decision, now_s)
            self.queue = [decision.waiting for decision in decisions if isinstance(decision, Held)]
            timeline.append(self._moment(now_s))
        return Simulated(self.inventory, tuple(self.outcomes.values()), tuple(timeline))

    def _end(self, now_s: float) -> None:
        while self.ending and self.ending[0][0] <= now_s:
            _, name = heapq.heappop(self.ending)
            placement = self.outcomes[name].placement
            if placement is not None:
                self.free = self.free.given_back(placement)

    def _arrive(self, now_s: float) -> None:
        while self.arriving and self.arriving[-1].at_s <= now_s:
            outcome = self.arriving.pop()
            self.queue.append(Waiting(outcome.request, outcome.priority, outcome.at_s))

    def _apply(self, decision: Decision, now_s: float) -> None:
        name = decision.waiting.request.name
        before = self.outcomes[name]
        changes: dict[str, Any]
        match decision:
            case Refused(reason=reason):
                changes = {"refused": True, "reason": reason}
            case Held(position=before.position, reason=before.reason):
                return
            case Held(position=position, reason=reason):
                changes = {"position": position, "reason": reason}
            case Admitted(placement=placement):
                duration_s = self.durations[name]
                ended_s = None if duration_s is None else now_s + duration_s
                changes = {"started_s": now_s, "ended_s": ended_s, "placement": placement}
                self.free = self.free.taken(placement)
                if ended_s is None:
                    self.lasting = self.lasting.taken(placement)
                else:
                    heapq.heappush(self.ending, (ended_s, name))
        self.outcomes[name] = replace(before, **changes)

    def _moment(self, now_s: float) -> Moment:
        units = self.free.units[self.free.fleet.is_card]
        used = int((UNITS - units).sum()) / UNITS
        return Moment(now_s, used, int((units == UNITS).sum()), len(self.queue))


def _check_priority(name: str, priority: str, classes: tuple[str, ...]) -> None:
    if priority not in classes:
        raise ConfigError(
            f"requests: priority of {name!r} is {priority!r}, which is none of the cluster's priorities. "
            f"{did_you_mean(priority, classes)}"
        )
