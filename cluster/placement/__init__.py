"""Which worker goes on which card of which node: a pure function (inventory, shares, request) -> placement.

    free = Free.of(inventory, shares)
    found = place(free, Request("sft", kind="train", workers_per_group=4, gpus_per_worker=1))
    free = free.taken(found)            # unless it is a NoRoom, which says why

Fractions pack (the fullest card on which one fits), so that whole cards stay free; a request stays on one GPU
product; replicas spread over nodes; two ranks of one group never share a card. The same input gives the same
answer: ties go by the order of nodes and cards.
"""

from cluster.placement.books import Free
from cluster.placement.planner import place, place_to_come
from cluster.placement.request import NoRoom, Placement, Request, Slot

__all__ = ["Free", "NoRoom", "Placement", "Request", "Slot", "place", "place_to_come"]
