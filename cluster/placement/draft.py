"""A request finds its places, group by group, on copies of the books' rows."""

from __future__ import annotations

import numpy as np

from cluster.placement.books import Free, Integers
from cluster.placement.request import UNITS, Request, Slot, in_units

_FAR = np.iinfo(np.int64).max
# A node's key is one integer, its parts in the order of what counts most: 2,000 nodes are compared in some
# microseconds. No node has 256 cards, so a group's cards there hold less than 256 * 10,000 units.
_CARDS = 256
_FREE = _CARDS * UNITS
_MOST_CPUS = _FREE - 1


class Draft:
    """The nodes that a request may use, with what is free of them as its groups find their places.

    Args:
        rows: The nodes, as rows of the books.
        together: A group must be on one node, although its strategy is PACK.
        balanced: Take the emptiest cards, not the fullest, and let groups take turns. It keeps no card whole,
            but finds places that the other order misses: two ranks of 0.5 fit three times on three cards only
            this way.
        now: What is free now, where ``free`` is what will be: nodes and cards come first of which least is
            held until then.
    """

    def __init__(
        self,
        free: Free,
        rows: Integers,
        request: Request,
        *,
        together: bool = False,
        balanced: bool = False,
        now: Free | None = None,
    ) -> None:
        self.request, self.rows, self.fleet = request, rows, free.fleet
        self.strategy = "STRICT_PACK" if together else request.strategy
        self.balanced = balanced
        self.units, self.cpus, self.memory = free.units[rows], free.cpus[rows], free.memory[rows]
        self._held = np.maximum(0, self.units - now.units[rows]) if now else None
        self._held_cpus = np.maximum(0, self.cpus - now.cpus[rows]) if now else None
        self.need_cpus = in_units(request.cpus_per_worker)
        enough = self.fleet.card_bytes[rows] * request.units >= request.card_bytes_per_worker * UNITS
        self.large_enough = enough
        self.slots: list[Slot] = []
        self.groups_placed = 0
        count = len(rows)
        self.capacity = np.zeros(count, np.int64)
        """Workers of one more group that each node can take."""
        self.by_limit = {name: np.zeros(count, np.int64) for name in ("cards", "CPUs", "memory")}
        self._partial = np.zeros(count, np.int64)
        self._whole = np.zeros(count, np.int64)
        # By number of workers: free units of the fullest cards that take them, or what is held of the least.
        self._cost = np.zeros((count, max(1, self.units.shape[1])), np.int64)
        self._visits = np.zeros(count, np.int64)
        self._measure(slice(0, count))

    def fill(self) -> bool:
        """Place all groups; False where one finds no place (``groups_placed`` did)."""
        if self.balanced and self.strategy != "STRICT_PACK":
            return self._fill_by_turns()
        for group in range(self.request.groups):
            counts = self._nodes_for_a_group()
            if counts is None:
                return False
            rank = 0
            for node, count in counts:
                self._take(node, count, group, rank)
                rank += count
            self.groups_placed += 1
        return True

    def _fill_by_turns(self) -> bool:
        """Deal the places of each card, or of each node under STRICT_SPREAD, to one group after the other.

        Of a card at most as many as there are groups: so no group gets it twice, and each gets its number.
        That finds places whenever there are any (McNaughton's wrap-around rule).
        """
        groups, wanted = self.request.groups, self.request.workers
        places: list[tuple[int, int | None]] = []
        for node in range(len(self.rows)):
            limit = min(int(self.by_limit["CPUs"][node]), int(self.by_limit["memory"][node]))
            if self.strategy == "STRICT_SPREAD":
                limit = min(limit, groups)
            for column, times in self._times(node):
                count = min(groups, times, limit)
                places += [(node, column)] * count
                limit -= count
        if len(places) < wanted:
            return False
        for group in range(groups):
            dealt = places[group:wanted:groups]
            self.slots += [self._slot(*place, group, rank) for rank, place in enumerate(dealt)]
        self.groups_placed = groups
        return True

    def _times(self, node: int) -> list[tuple[int | None, int]]:
        """How many workers, of different groups, each card of the node takes; without cards, the node."""
        if not self.request.units:
            return [(None, self.request.groups)]
        columns = self._cards(node, self.units.shape[1])
        return [(column, int(self.units[node, column]) // self.request.units) for column in columns]

    def reach(self) -> int:
        """Workers of one more group that find a place."""
        wanted = self.request.workers_per_group
        if not len(self.rows):
            return 0
        if self.strategy == "STRICT_PACK":
            return min(wanted, int(self.capacity.max()))
        if self.strategy == "STRICT_SPREAD":
            return min(wanted, int((self.capacity > 0).sum()))
        return min(wanted, int(self.capacity.sum()))

    def name(self, node: int) -> str:
        """The node's id."""
        return self.fleet.inventory.nodes[int(self.rows[node])].node_id

    def _nodes_for_a_group(self) -> list[tuple[int, int]] | None:
        """(node, workers) in rank order, None where the group has no place."""
        wanted = self.request.workers_per_group
        if self.reach() < wanted:
            return None
        if self.strategy in ("SPREAD", "STRICT_SPREAD"):
            return self._spread(wanted)
        return self._packed(wanted)

    def _packed(self, wanted: int) -> list[tuple[int, int]]:
        """The node that the group fills best; where none can hold it, the largest first: fewest nodes."""
        counts: list[tuple[int, int]] = []
        capacity = np.minimum(self.capacity, wanted)
        while wanted:
            count = min(int(capacity.max()), wanted)
            node = int(np.where(capacity >= count, self._keys(count), _FAR).argmin())
            counts.append((node, count))
            capacity[node] = 0
            wanted -= count
        return counts

    def _spread(self, wanted: int) -> list[tuple[int, int]]:
        """One worker on each node, then a second on each, and so on."""
        counts: dict[int, int] = {}
        order = self._keys(1).argsort(kind="stable")
        order = order[self.capacity[order] > 0]
        while wanted:
            chosen = order[:wanted].tolist()
            for node in chosen:
                counts[node] = counts.get(node, 0) + 1
            wanted -= len(chosen)
            order = order[self.capacity[order] > counts[chosen[0]]]
        return list(counts.items())

    def _keys(self, count: int) -> Integers:
        """How well each node suits ``count`` workers of a group, the smallest best; the first node of equals.

        In this order: few groups of this app already (serve), few whole cards broken open, the fullest
        cards, few whole cards beside them. Without cards: few whole cards on the node, then few free CPUs.
        """
        visits = self._visits if self.request.kind == "serve" else 0
        if not self.request.units:
            cpus = np.clip(self.cpus if self._held_cpus is None else self._held_cpus, 0, _MOST_CPUS)
            return (visits * _CARDS + np.minimum(self._whole, _CARDS - 1)) * _FREE + cpus
        opened = np.maximum(0, count - self._partial) if self._held is None else 0
        cost = self._cost[:, min(count, self._cost.shape[1]) - 1]
        return ((visits * _CARDS + opened) * _FREE + cost) * _CARDS + self._whole

    def _take(self, node: int, count: int, group: int, rank: int) -> None:
        request = self.request
        columns = self._cards(node, count) if request.units else [None] * count
        for number, column in enumerate(columns):
            self.slots.append(self._slot(node, column, group, rank + number))
            if column is not None:
                self.units[node, column] -= request.units
        self.cpus[node] -= count * self.need_cpus
        self.memory[node] -= count * request.memory_bytes_per_worker
        self._visits[node] += 1
        self._measure(slice(node, node + 1))

    def _slot(self, node: int, column: int | None, group: int, rank: int) -> Slot:
        request, place = self.request, self.fleet.inventory.nodes[int(self.rows[node])]
        return Slot(
            group,
            rank,
            place.node_id,
            None if column is None else place.cards[column].index,
            request.gpus_per_worker,
            request.cpus_per_worker,
            request.memory_bytes_per_worker,
        )

    def _cards(self, node: int, count: int) -> list[int]:
        """The fullest cards of the node that each take one worker; the emptiest where ``balanced``."""
        free, enough = self.units[node].tolist(), self.large_enough[node].tolist()
        cost = free if self._held is None else self._held[node].tolist()
        sign = -1 if self.balanced else 1
        fitting = sorted(
            (sign * cost[column], column)
            for column, units in enumerate(free)
            if enough[column] and units >= self.request.units
        )
        return [column for _, column in fitting[:count]]

    def _measure(self, at: slice) -> None:
        """What the nodes ``at`` can take now."""
        request, units = self.request, self.units[at]
        self._whole[at] = (units == UNITS).sum(axis=1)
        limits = self.by_limit
        for name, free, need in (
            ("CPUs", self.cpus[at], self.need_cpus),
            ("memory", self.memory[at], request.memory_bytes_per_worker),
        ):
            limits[name][at] = np.maximum(0, free // need) if need else request.workers
        beside = np.minimum(limits["CPUs"][at], limits["memory"][at])
        if not request.units:
            limits["cards"][at] = request.workers
            self.capacity[at] = beside
            return
        fits = self.large_enough[at] & (units >= request.units)
        limits["cards"][at] = fits.sum(axis=1)
        self.capacity[at] = np.minimum(limits["cards"][at], beside)
        self._partial[at] = (fits & (units < UNITS)).sum(axis=1)
        # Cards on which none fits come last: a node's first `capacity` columns are never of those.
        cost = units if self._held is None else self._held[at]
        self._cost[at] = np.sort(np.where(fits, cost, UNITS + 1), axis=1).cumsum(axis=1)
