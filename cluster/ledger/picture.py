"""The ledger as plain data: what everybody is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cluster.inventory import Card, Inventory, Node, Share
from cluster.ledger.books import card_index
from cluster.shares.reading import Held, NodeReading

FILE = "tandem-ledger.json"
"""Where the newest is, among the head's logs: Ray's dashboard shows it to whoever may look at the cluster."""

TOLERANCE = 0.05
"""A process may use so much more than it promised before it is told: allocators round up."""


def draw(
    inventory: Inventory,
    shares: Sequence[Share],
    readings: Sequence[NodeReading],
    waiting: Sequence[dict[str, Any]],
    now_s: float,
) -> dict[str, Any]:
    """Everything.

    Returns:
        ``at``; ``nodes``, each with ``cards`` and the ``shares`` that are on no card; ``waiting``; ``over``:
        the holders that use more than they promised. The ledger adds ``kept``, the shares that are kept for
        those that wait; ``classes``, of the queue, the highest first; and ``groups_to_come``.
    """
    by_node = {reading.node_id: reading for reading in readings}
    nodes = [_node(node, shares, by_node.get(node.node_id)) for node in inventory.nodes]
    over = sorted(
        {
            share["holder"]
            for node in nodes
            for place in (*node["cards"], node)
            for share in place["shares"]
            if share["over_bytes"]
        }
    )
    return {"at": now_s, "nodes": nodes, "waiting": list(waiting), "over": over}


def as_read(living: Inventory, picture: Mapping[str, Any]) -> Inventory:
    """The same nodes with what the ledger has read of their cards with NVML, where it has."""
    read = {
        (node["node_id"], card["index"]): card
        for node in picture.get("nodes", [])
        for card in node["cards"]
        if card["uuid"]
    }

    def card_of(node: Node, card: Card) -> Card:
        one = read.get((node.node_id, card.index))
        return Card(card.index, one["memory_bytes"], one["product"], one["uuid"]) if one else card

    return Inventory(
        tuple(replace(node, cards=tuple(card_of(node, card) for card in node.cards)) for node in living.nodes)
    )


def _node(node: Node, shares: Sequence[Share], reading: NodeReading | None) -> dict[str, Any]:
    mine = [share for share in shares if share.node_id == node.node_id]
    held = list(reading.held) if reading else []
    cards = []
    for card in node.cards:
        seen = (
            reading.cards[card.index]
            if reading and node.accelerator_type and card.index < len(reading.cards)
            else None
        )
        on_card = [share for share in mine if share.card == card.index]
        cards.append(
            {
                "index": card.index,
                "product": card.product,
                "uuid": card.uuid,
                "memory_bytes": card.memory_bytes,
                "used_bytes": seen.used_bytes if seen else None,
                "free": round(1 - sum(share.fraction for share in on_card), 4),
                "shares": _shares(
                    on_card, [one for one in held if _is_on(node, one, card.index)], card.memory_bytes
                ),
            }
        )
    alone = [share for share in mine if share.card is None]
    return {
        "node_id": node.node_id,
        "address": node.address,
        "cpus": node.cpus,
        "memory_bytes": node.memory_bytes,
        "accelerator_type": node.accelerator_type,
        "cards": cards,
        "shares": _shares(alone, [one for one in held if not one.holding.cards], None),
    }


def _is_on(node: Node, held: Held, index: int) -> bool:
    return any(card_index(node, card) == index for card in held.holding.cards)


def _shares(shares: Sequence[Share], held: Sequence[Held], card_bytes: int | None) -> list[dict[str, Any]]:
    """Each share with what its process promised and uses; of those that have not begun, nothing."""
    left = list(held)
    found = []
    for share in shares:
        one = next((one for one in left if one.holding.holder == share.holder), None)
        if one is not None:
            left.remove(one)
        found.append(_share(share, one, card_bytes))
    return found


def _share(share: Share, held: Held | None, card_bytes: int | None) -> dict[str, Any]:
    promised = held.holding.promised_bytes if held else None
    if promised is not None and card_bytes is not None:
        # It was planned before anybody had read the card.
        promised = min(promised, round(share.fraction * card_bytes))
    used = held.used_bytes if held else None
    if used is not None and held is not None:
        # What a process uses is told over all of its cards, what it promised of each. Of logical ones nobody
        # knows better: what its family takes of the node's memory is on no card more than on another.
        used //= max(1, len(held.holding.cards))
    over = 0
    if promised is not None and used is not None and used > (1 + TOLERANCE) * promised:
        over = used - promised
    return {
        "holder": share.holder,
        "worker": held.holding.worker if held else None,
        "kind": held.holding.kind if held else None,
        "fraction": share.fraction,
        "cpus": share.cpus,
        "memory_bytes": share.memory_bytes,
        "promised_bytes": promised,
        "used_bytes": used,
        "over_bytes": over,
    }
