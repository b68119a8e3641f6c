"""``place``: the one decision, from the books and a request, changing neither."""

from __future__ import annotations

import numpy as np

from cluster.placement.books import Fleet, Free, Integers
from cluster.placement.draft import Draft
from cluster.placement.reasons import why_never, why_not_now
from cluster.placement.request import ANY, UNITS, NoRoom, Placement, Request


def place(free: Free, request: Request) -> Placement | NoRoom:
    """Places for all workers of a request, or why there are none.

    Args:
        free: The books; they stay as they are.
        request: With ``accelerator_type`` None, products are tried from the smallest cards on.

    Returns:
        The same answer for the same input. A ``Placement`` never takes more of a card, of a node's CPUs or of
        its memory than is free, and never puts two workers of one group on one card.
    """
    found, tried = _search(free, request)
    if found is not None:
        return found
    return _refusal(free.fleet, request) or NoRoom(why_not_now(tried, request), never=False)


def place_to_come(lasting: Free, now: Free, request: Request) -> Placement | None:
    """Where a request should wait for its place: that of which least is held now by what ends by itself.

    Args:
        lasting: The books with only what does not end by itself taken.
        now: The books as they are.

    Returns:
        A placement on ``lasting``; None where waiting does not help.
    """
    return _search(lasting, request, now)[0]


def _search(free: Free, request: Request, now: Free | None = None) -> tuple[Placement | None, list[Draft]]:
    """The placement, else what was tried: a draft for each product."""
    together, drafts = _must_be_together(free.fleet, request), []
    for balanced in (False, True) if _order_matters(request) else (False,):
        for rows in _nodes(free.fleet, request):
            draft = Draft(free, rows, request, together=together, balanced=balanced, now=now)
            if draft.fill():
                return Placement(tuple(draft.slots), _product(free.fleet, draft)), []
            drafts.append(draft)
    return None, drafts


def _refusal(fleet: Fleet, request: Request) -> NoRoom | None:
    """Why the empty cluster cannot hold it; None where it can."""
    shape = request.shape
    if shape not in fleet.refusals:
        found, tried = _search(fleet.empty, request)
        fleet.refusals[shape] = None if found else NoRoom(why_never(fleet, tried, request), never=True)
    return fleet.refusals[shape]


def _nodes(fleet: Fleet, request: Request) -> list[Integers]:
    """Sets of nodes to try, one after the other, as rows of the books."""
    product = request.accelerator_type
    if product not in (None, ANY):
        return [fleet.products[product]] if product in fleet.products else []
    if not request.units:
        return [np.arange(len(fleet.inventory.nodes))]
    if product == ANY:
        return [np.flatnonzero(fleet.has_cards)] if fleet.products else []
    return list(fleet.products.values())


def _must_be_together(fleet: Fleet, request: Request) -> bool:
    """Whether each group of a serve app waits for one node: where one could hold it, if it were free.

    Between nodes tensor parallelism runs at the network's speed, a tenth of NVLink's: better to wait.
    """
    if request.kind != "serve" or request.strategy != "PACK" or request.workers_per_group == 1:
        return False
    shape = request.shape
    if shape not in fleet.fits_one_node:
        drafts = (Draft(fleet.empty, rows, request, together=True) for rows in _nodes(fleet, request))
        fleet.fits_one_node[shape] = any(draft.reach() == request.workers_per_group for draft in drafts)
    return fleet.fits_one_node[shape]


def _order_matters(request: Request) -> bool:
    """Whether filling the fullest first can miss a placement: several groups that each need several of what
    one group uses once, a card that more than one group fits on, or a node under STRICT_SPREAD."""
    several = request.groups > 1 and request.workers_per_group > 1
    return several and (0 < request.units < UNITS or request.strategy == "STRICT_SPREAD")


def _product(fleet: Fleet, draft: Draft) -> str | None:
    if not draft.request.units:
        return None
    used = {fleet.inventory.nodes[fleet.rows[slot.node_id]].accelerator_type for slot in draft.slots}
    return used.pop() if len(used) == 1 else None
