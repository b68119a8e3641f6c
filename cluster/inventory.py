"""What a cluster consists of, as plain data: nodes, their cards, and what is held of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Card:
    """One GPU, or one MIG device, which is a whole card to us.

    On a machine without GPUs a card may be logical: ``ray start --num-gpus`` promises it, and the bytes
    behind it are the node's own memory.
    """

    index: int
    """Ray's number of it on its node, from 0 on."""

    memory_bytes: int | None
    """Of the largest product that it may be, until NVML was read. None where nobody knows: a product that is
    not in the catalogue."""

    product: str | None = None
    """As NVML spells it, ``NVIDIA A100-SXM4-80GB``; None for a logical card."""

    uuid: str | None = None
    """None until NVML was read."""


@dataclass(frozen=True)
class Node:
    """One machine of the cluster, or one pod."""

    node_id: str
    """Ray's."""

    cpus: float
    memory_bytes: int
    """What Ray may hand out of its memory."""

    cards: tuple[Card, ...] = ()
    accelerator_type: str | None = None
    """Ray's word for the product of its cards (``A100``); None where there are none, or logical ones."""

    address: str = ""


@dataclass(frozen=True)
class Share:
    """What one worker or replica holds of one card, or of a node alone."""

    holder: str
    """Who: a run's id or an app's name."""

    node_id: str
    card: int | None
    """The card's index; None for what holds no card."""

    fraction: float
    """Of the card: 0.5; 0 without one."""

    cpus: float = 0.0
    memory_bytes: int = 0
    """Of the node's memory."""


@dataclass(frozen=True)
class Inventory:
    """All nodes, in an order that stays."""

    nodes: tuple[Node, ...] = field(default_factory=tuple)

    @property
    def cards(self) -> int:
        """Cards of all nodes."""
        return sum(len(node.cards) for node in self.nodes)

    @property
    def resources(self) -> dict[str, float]:
        """What all nodes have together, in Ray's names: ``{"CPU": 2.0, "GPU": 1.0, "memory": 1e10}``."""
        return {
            "CPU": sum(node.cpus for node in self.nodes),
            "GPU": float(self.cards),
            "memory": float(sum(node.memory_bytes for node in self.nodes)),
        }

    @property
    def accelerators(self) -> dict[str, float]:
        """Cards by Ray's word for their product: ``{"A100": 8.0, "L4": 2.0}``; logical ones are in none."""
        found: dict[str, float] = {}
        for node in self.nodes:
            if node.accelerator_type and node.cards:
                found[node.accelerator_type] = found.get(node.accelerator_type, 0.0) + len(node.cards)
        return found

    @property
    def products(self) -> list[str]:
        """Ray's words for them, the one with the smallest cards first, one that nobody knows last."""
        largest = {
            name: max(
                card.memory_bytes or float("inf")
                for node in self.with_product(name).nodes
                for card in node.cards
            )
            for name in self.accelerators
        }
        return sorted(largest, key=lambda name: (largest[name], name))

    @property
    def most_cards_on_a_node(self) -> int:
        """Of the node that has the most."""
        return max((len(node.cards) for node in self.nodes), default=0)

    @property
    def is_logical(self) -> bool:
        """Whether there are cards, and none of them is one to compute on: work is done on CPUs then."""
        return self.cards > 0 and not self.accelerators

    def with_product(self, accelerator_type: str) -> Inventory:
        """Only the nodes with cards of this product."""
        return Inventory(tuple(node for node in self.nodes if node.accelerator_type == accelerator_type))

    @classmethod
    def of(cls, nodes: Iterable[Node]) -> Inventory:
        """The nodes, by their ids."""
        return cls(tuple(sorted(nodes, key=lambda node: node.node_id)))
