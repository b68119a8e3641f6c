"""Who goes first when not all fit: the queue's policy, a pure function of what is free, who waits, and now.

By class, then by age. Later requests may pass one that does not fit (backfill), as long as they take nothing
that it has waited for too long. Two rules keep any request from starving:

- After every ``PROMOTED_AFTER_S`` of waiting it counts as one class higher, in the end as the highest.
- The first of those that wait for a GPU product, once it has waited ``NOT_PASSED_AFTER_S``, has a place kept
  for it, where those who hold it end by themselves. Others only take what is left beside that place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cluster.placement import Free, NoRoom, Placement, Request, place, place_to_come
from cluster.placement.request import ANY
from cluster.priority import CLASSES
from runtime.core.errors import ConfigError
from runtime.core.lookup import did_you_mean

PROMOTED_AFTER_S = 600.0
"""So long a request waits in its class until it counts as one class higher; batch work is at the top after 30
minutes, ahead of whatever came later."""

NOT_PASSED_AFTER_S = 600.0
"""So long others may pass the head of the queue. Keeping a place idles
cards, which a short wait is not worth."""

_NAMED = 3
"""So many of those ahead are named in a reason."""


@dataclass(frozen=True)
class Waiting:
    """A request in the queue."""

    request: Request
    priority: str
    """One of the classes."""

    since_s: float
    """When it was submitted, on the clock of ``now_s``."""


@dataclass(frozen=True)
class Admitted:
    """It starts now, there."""

    waiting: Waiting
    placement: Placement


@dataclass(frozen=True)
class Held:
    """It waits on."""

    waiting: Waiting
    position: int
    """In the queue of those that wait on, from 1."""

    reason: str
    kept: Placement | None = None
    """The place that is kept for it: others behind it take only what is left beside that."""


@dataclass(frozen=True)
class Refused:
    """The cluster, even empty, cannot hold it: it has no place in the queue."""

    waiting: Waiting
    reason: str


Decision = Admitted | Held | Refused


def admit(
    free: Free,
    waiting: Sequence[Waiting],
    now_s: float,
    *,
    lasting: Free | None = None,
    largest: Free | None = None,
    classes: Sequence[str] = CLASSES,
) -> list[Decision]:
    """What happens to each request now, in queue order; every placement fits beside those before it.

    Args:
        free: The books as they are.
        lasting: The books with only what does not end by itself (serve apps) taken. A place is kept only
            where waiting helps. Default: the empty cluster, as if everything ended.
        largest: The empty books of the cluster with all nodes that it may still get: what they could hold
            waits. Default: it gets none.
        classes: Priority classes, the highest first.

    Raises:
        ConfigError: a priority is none of the classes.
    """
    round_ = _Round(free, lasting or free.empty, largest or free.empty, now_s)
    return [round_.decide(one) for one in in_order(waiting, now_s, classes)]


def in_order(waiting: Sequence[Waiting], now_s: float, classes: Sequence[str] = CLASSES) -> list[Waiting]:
    """The queue: by class as it counts now, then by age, then by name.

    Raises:
        ConfigError: as ``admit`` does.
    """

    def key(one: Waiting) -> tuple[int, float, str]:
        if one.priority not in classes:
            known = did_you_mean(one.priority, classes)
            raise ConfigError(
                f"priority of {one.request.name!r} is {one.priority!r}, which is no class. {known}"
            )
        promotions = int(max(0.0, now_s - one.since_s) // PROMOTED_AFTER_S)
        return max(0, classes.index(one.priority) - promotions), one.since_s, one.request.name

    return sorted(waiting, key=key)


class _Round:
    """One look at the queue, from its head on."""

    def __init__(self, free: Free, lasting: Free, largest: Free, now_s: float) -> None:
        self.free, self.lasting, self.largest, self.now_s = free, lasting, largest, now_s
        self.left = free
        """What is free beside the places kept: all that later ones may take."""
        self.kept: list[Waiting] = []
        self.held: list[Waiting] = []
        self.to_come: set[Request] = set()
        """Shapes of requests that only nodes to come could hold."""
        self.reasons: dict[Request, str] = {}
        """Why shapes of requests found no room. Room only shrinks in a round: the next alike finds none."""

    def decide(self, one: Waiting) -> Decision:
        """Places its places in the books, where it finds them."""
        shape = one.request.shape
        if shape not in self.reasons:
            found = place(self.left, one.request)
            if isinstance(found, Placement):
                self.free, self.left = self.free.taken(found), self.left.taken(found)
                return Admitted(one, found)
            if found.never:
                then = place(self.largest, one.request)
                if isinstance(then, NoRoom):
                    return Refused(one, then.reason)
                self.to_come.add(shape)
            self.reasons[shape] = self._why(one, found)
        reason = f"{self.reasons[shape]} {self._ahead()}".rstrip()
        self.held.append(one)
        kept = None
        if shape not in self.to_come and self._is_overdue_head(one):
            kept = self._keep_a_place(one)
            reason = f"{reason} {_said_of(kept)}"
        return Held(one, len(self.held), reason, kept)

    def _why(self, one: Waiting, found: NoRoom) -> str:
        """What is short, or for whom the room is kept that there is."""
        if one.request.shape in self.to_come:
            return (
                "The nodes that are there cannot hold it: it waits for those that the cluster may still get."
            )
        if self.kept and isinstance(place(self.free, one.request), Placement):
            return kept_for(head.request.name for head in self.kept)
        return found.reason

    def _ahead(self) -> str:
        if not self.held:
            return ""
        names = [repr(one.request.name) for one in self.held[:_NAMED]]
        more = len(self.held) - len(names)
        return f"Ahead of it: {', '.join(names)}{f' and {more} more' if more else ''}."

    def _is_overdue_head(self, one: Waiting) -> bool:
        """Whether it has waited too long, and nobody is ahead of it for whom such GPUs are kept."""
        if self.now_s - one.since_s < NOT_PASSED_AFTER_S:
            return False
        return not any(_want_the_same(head.request, one.request) for head in self.kept)

    def _keep_a_place(self, one: Waiting) -> Placement | None:
        target = place_to_come(self.lasting, self.free, one.request)
        if target is not None:
            self.kept.append(one)
            self.left, self.lasting = self.left.kept_for(target), self.lasting.kept_for(target)
        return target


def kept_for(names: Iterable[str]) -> str:
    """Why there is room, and not for everybody."""
    said = ", ".join(map(repr, names))
    return f"There is room, kept for {said}, waiting longer than {NOT_PASSED_AFTER_S:g} s."


def _said_of(kept: Placement | None) -> str:
    if kept is None:
        return (
            "No place is kept for it: it does not fit beside what does not end by itself. Stop an app or "
            "lower its replicas."
        )
    nodes = kept.node_ids
    more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
    return f"A place is kept for it on {nodes[0]}{more}: it starts when the work there has ended."


def _want_the_same(one: Request, other: Request) -> bool:
    """Whether both wait for the same GPU product, as far as they name one, or both for none."""
    if not one.units or not other.units:
        return not one.units and not other.units
    named = {one.accelerator_type, other.accelerator_type}
    return len(named) == 1 or not named.isdisjoint({None, ANY})
