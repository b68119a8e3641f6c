"""What is taken of the cluster now: what processes say, what was granted and has not begun, and what only Ray
knows of. A pure function, so that a ledger that was lost is made again from the cluster alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cluster.inventory import Inventory, Node, Share
from cluster.placement import Placement
from cluster.shares.holding import Holding

OTHERS = "(others)"
"""Who holds what Ray has handed out and no process of ours tells of."""


@dataclass(frozen=True)
class Grant:
    """A place that somebody was given."""

    holder: str
    kind: str
    placement: Placement


def shares_now(
    inventory: Inventory,
    free_by_node: Mapping[str, Mapping[str, float]],
    holdings: Sequence[Holding],
    grants: Iterable[Grant],
) -> list[Share]:
    """All that is taken.

    Args:
        free_by_node: What Ray has left on each node: ``{"CPU": 1.5, "GPU": 0.5, "memory": 1e9}``.
        holdings: What living processes hold.
        grants: Places given; those whose process has told its share already count once.
    """
    nodes = {node.node_id: node for node in inventory.nodes}
    found = [share for one in holdings if one.node_id in nodes for share in _of(one, nodes[one.node_id])]
    found += not_begun(holdings, grants)
    for node in inventory.nodes:
        found += _of_others(node, free_by_node.get(node.node_id), found)
    return found


def card_index(node: Node, card: str) -> int | None:
    """The number on its node of the card that Ray calls so: a number, or a UUID."""
    if card.isdigit():
        return int(card) if int(card) < len(node.cards) else None
    return next((one.index for one in node.cards if one.uuid == card), None)


def _of(holding: Holding, node: Node) -> list[Share]:
    """Its shares: a replica on several cards has one on each, and its CPUs once."""
    indexes = [index for card in holding.cards if (index := card_index(node, card)) is not None]
    alone = Share(holding.holder, node.node_id, None, 0.0, holding.cpus, holding.memory_bytes)
    if not indexes:
        return [alone]
    first, *others = indexes
    return [
        Share(holding.holder, node.node_id, first, holding.fraction, holding.cpus, holding.memory_bytes),
        *(Share(holding.holder, node.node_id, index, holding.fraction) for index in others),
    ]


def not_begun(holdings: Sequence[Holding], grants: Iterable[Grant]) -> list[Share]:
    """Of granted places, those whose process has not told that it is there."""
    told = Counter((one.holder, one.node_id) for one in holdings for _ in (one.cards or ("none",)))
    left: list[Share] = []
    for grant in grants:
        for share in grant.placement.shares(grant.holder):
            if told[share.holder, share.node_id] > 0:
                told[share.holder, share.node_id] -= 1
            else:
                left.append(share)
    # What holds no card is not pinned: it may have begun on another node than was granted.
    elsewhere = Counter[str]()
    for (holder, _), count in told.items():
        elsewhere[holder] += count
    found = []
    for share in left:
        if elsewhere[share.holder] > 0:
            elsewhere[share.holder] -= 1
        else:
            found.append(share)
    return found


def _of_others(node: Node, free: Mapping[str, float] | None, known: Iterable[Share]) -> list[Share]:
    """What Ray has handed out on a node beyond what is known: on the emptiest cards, where it hurts least.

    Between a grant and its reservation with Ray this may say too little for a moment; Ray itself never hands
    out more than there is.
    """
    if free is None:
        return []
    mine = [share for share in known if share.node_id == node.node_id]
    gpus = len(node.cards) - free.get("GPU", 0.0) - sum(share.fraction for share in mine)
    cpus = node.cpus - free.get("CPU", 0.0) - sum(share.cpus for share in mine)
    memory = node.memory_bytes - free.get("memory", 0.0) - sum(share.memory_bytes for share in mine)
    taken = Counter[int]()
    for share in mine:
        if share.card is not None:
            taken[share.card] += round(share.fraction * 10_000)
    found = []
    if cpus > 1e-4 or memory > 1:
        found.append(Share(OTHERS, node.node_id, None, 0.0, max(0.0, cpus), max(0, round(memory))))
    left = round(gpus * 10_000)
    for index in sorted(range(len(node.cards)), key=lambda index: (taken[index], index)):
        part = min(left, 10_000 - taken[index])
        if part <= 0:
            continue
        found.append(Share(OTHERS, node.node_id, index, part / 10_000))
        left -= part
    return found
