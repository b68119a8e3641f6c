"""What is free of every card and node: built once, then kept up to date placement by placement."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cluster.inventory import Inventory, Share
from cluster.placement.request import UNITS, NoRoom, Placement, Request, Slot, in_units
from runtime.core.errors import ClusterError

Integers = NDArray[np.int64]

NO_CARD = -1
"""Free units where a node has fewer cards than the largest: none fits."""

_UNKNOWN_BYTES = 1 << 48
"""Of a card whose memory nobody knows: more than any card has, so that no request is refused for it and such
cards are tried last; and times 10,000 it is an int64 still."""


class Fleet:
    """The cluster as it is when nothing runs: one row a node, one column a card."""

    def __init__(self, inventory: Inventory) -> None:
        nodes = inventory.nodes
        self.inventory = inventory
        self.rows = {node.node_id: row for row, node in enumerate(nodes)}
        self.columns = {
            (row, card.index): column
            for row, node in enumerate(nodes)
            for column, card in enumerate(node.cards)
        }
        most = max((len(node.cards) for node in nodes), default=0)
        self.card_bytes = np.zeros((len(nodes), most), np.int64)
        self.is_card = np.zeros((len(nodes), most), bool)
        for row, node in enumerate(nodes):
            self.card_bytes[row, : len(node.cards)] = [
                _UNKNOWN_BYTES if card.memory_bytes is None else card.memory_bytes for card in node.cards
            ]
            self.is_card[row, : len(node.cards)] = True
        self.has_cards = np.array([bool(node.cards) for node in nodes], bool)
        self.cpus: Integers = np.array([in_units(node.cpus) for node in nodes], np.int64)
        self.memory: Integers = np.array([node.memory_bytes for node in nodes], np.int64)
        self.refusals: dict[Request, NoRoom | None] = {}
        """What the empty cluster answers to requests of no name, remembered: a queue asks again and again."""
        self.fits_one_node: dict[Request, bool] = {}
        """Whether an empty node holds a group of such a request, remembered too."""

    @cached_property
    def products(self) -> dict[str | None, Integers]:
        """The rows of the nodes with each product's cards, the product with the smallest cards first."""
        found: dict[str | None, list[int]] = {}
        for row, node in enumerate(self.inventory.nodes):
            if node.cards:
                found.setdefault(node.accelerator_type, []).append(row)
        largest = {product: int(self.card_bytes[rows].max()) for product, rows in found.items()}
        ordered = sorted(found, key=lambda product: (largest[product], product or ""))
        return {product: np.array(found[product], np.int64) for product in ordered}

    @cached_property
    def empty(self) -> Free:
        """The books with nothing held."""
        return Free(self, np.where(self.is_card, UNITS, NO_CARD), self.cpus, self.memory)


@dataclass(frozen=True, eq=False)
class Free:
    """The books. They are never changed: ``taken`` and ``given_back`` return new ones (about 20 us for 10,000
    cards), so that a plan can be tried and dropped."""

    fleet: Fleet = field(repr=False)
    units: Integers = field(repr=False)
    """Ten-thousandths free of each card, by node and card."""

    cpus: Integers = field(repr=False)
    """Ten-thousandths free, by node."""

    memory: Integers = field(repr=False)
    """Bytes free, by node."""

    @classmethod
    def of(cls, inventory: Inventory, shares: Iterable[Share] = ()) -> Free:
        """The books of a cluster on which ``shares`` are held.

        A share on a node or card that is not (or no longer) there holds nothing. A card that is held more
        than once over is full, no error: the books say what is.
        """
        empty = Fleet(inventory).empty
        slots = [
            Slot(0, 0, share.node_id, share.card, share.fraction, share.cpus, share.memory_bytes)
            for share in shares
        ]
        return empty._changed(slots, -1)

    @property
    def empty(self) -> Free:
        """The books of the same cluster with nothing held."""
        return self.fleet.empty

    def taken(self, placement: Placement) -> Free:
        """The books after ``placement`` took its places.

        Raises:
            ClusterError: somebody else has taken one of them: it was planned on other books.
        """
        after = self._changed(placement.slots, -1)
        for slot in placement.slots:
            row = self._row(slot)
            column = self.fleet.columns.get((row, slot.card)) if slot.card is not None else None
            if (
                (column is not None and after.units[row, column] < 0)
                or (slot.cpus and after.cpus[row] < 0)
                or (slot.memory_bytes and after.memory[row] < 0)
            ):
                raise ClusterError(
                    f"card {slot.card} of node {slot.node_id} has no {slot.fraction:g} free, or the node no "
                    f"{slot.cpus:g} CPUs and {slot.memory_bytes} bytes: somebody else has taken them since. "
                    "Place the request again on the books as they are now."
                )
        return after

    def given_back(self, placement: Placement) -> Free:
        """The books after ``placement`` left its places. What was on a node that is gone stays away.

        Raises:
            ClusterError: a card would be more than whole: it was given back before.
        """
        after = self._changed(placement.slots, 1)
        if after.units.size and after.units.max() > UNITS:
            raise ClusterError(
                "a placement is given back that does not hold its cards (any more). Give back each one once, "
                "to books that it was taken from."
            )
        return after

    def kept_for(self, placement: Placement) -> Free:
        """What others may take so that ``placement`` finds its places once those who hold them have left.

        A card may go below nothing: then it is owed, and nobody else fits on it.
        """
        return self._changed(placement.slots, -1)

    def _changed(self, slots: Iterable[Slot], sign: int) -> Free:
        units, cpus, memory = self.units.copy(), self.cpus.copy(), self.memory.copy()
        for slot in slots:
            row = self.fleet.rows.get(slot.node_id)
            if row is None:
                continue
            cpus[row] += sign * in_units(slot.cpus)
            memory[row] += sign * slot.memory_bytes
            if slot.card is not None and (row, slot.card) in self.fleet.columns:
                units[row, self.fleet.columns[row, slot.card]] += sign * in_units(slot.fraction)
        return Free(self.fleet, units, cpus, memory)

    def _row(self, slot: Slot) -> int:
        try:
            return self.fleet.rows[slot.node_id]
        except KeyError:
            raise ClusterError(
                f"node {slot.node_id} has left the cluster. Place the request again on the books as they "
                "are now."
            ) from None
