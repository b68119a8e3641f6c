"""Why there is no room, in words that a user can act on."""

from __future__ import annotations

import numpy as np

from cluster.placement.books import Fleet
from cluster.placement.draft import Draft
from cluster.placement.request import ANY, UNITS, Request


def why_not_now(tried: list[Draft], request: Request) -> str:
    """What a request that fits the empty cluster lacks now: how far it gets, and what is short."""
    draft = _furthest(tried)
    found = f"{_found(draft, request)} {_need(draft, request)}{_together(draft)} now"
    short = _short_of(draft)
    if short == "cards":
        return f"{found}; {_freest(draft)}."
    node = int(draft.by_limit["cards" if request.units else short].argmax())
    return (
        f"{found}; what is short is {short}{' beside the cards' if request.units else ''}: node "
        f"{draft.name(node)} has {max(0, int(draft.cpus[node])) / UNITS:g} CPUs and "
        f"{in_gib(max(0, int(draft.memory[node])))} of memory free."
    )


def why_never(fleet: Fleet, tried: list[Draft], request: Request) -> str:
    """Why the empty cluster cannot hold a request, and what would help."""
    if not fleet.inventory.nodes:
        return "The cluster has no nodes. Wait for one to join, or check the address."
    product = request.accelerator_type
    if product not in (None, ANY) and product not in fleet.products:
        return (
            f"accelerator_type is {product!r}, which no node has. The cluster has {_products(fleet)}: name "
            "one of them, or add nodes with that product."
        )
    if request.units and not fleet.products:
        return (
            f"gpus_per_worker is {request.gpus_per_worker:g}, and no node of the cluster has a GPU. Set it "
            "to 0, or add a node with GPUs."
        )
    return _too_large_a_worker(tried, request) or _too_many(fleet, tried, request)


def in_gib(size_bytes: int) -> str:
    """Bytes as GPUs and nodes are sized: ``80 GiB``."""
    return f"{size_bytes / (1 << 30):.4g} GiB"


def _too_large_a_worker(tried: list[Draft], request: Request) -> str | None:
    """What no node can give to one worker; None where one worker has a place."""
    if any(draft.groups_placed or draft.reach() for draft in tried):
        return None
    rows = np.concatenate([draft.rows for draft in tried])
    fleet = tried[0].fleet
    card_bytes = int(fleet.card_bytes[rows].max()) if request.units else 0
    held = card_bytes * request.units // UNITS
    if held < request.card_bytes_per_worker:
        return _too_small_a_card(request, card_bytes, held)
    beside = " beside such a card" if request.units else ""
    for field, wanted, most in (
        ("cpus_per_worker", request.cpus_per_worker, f"{fleet.cpus[rows].max() / UNITS:g} CPUs"),
        ("memory_bytes_per_worker", request.memory_bytes_per_worker, in_gib(int(fleet.memory[rows].max()))),
    ):
        limit = "CPUs" if field.startswith("cpus") else "memory"
        if not any(int(draft.by_limit[limit].max()) for draft in tried):
            given = f"{wanted:g}" if limit == "CPUs" else in_gib(int(wanted))
            return f"{field} is {given}, and the largest node has {most}{beside}. Lower it, or add a node."
    return (
        "No node has the card, the CPUs and the memory of one worker together. Lower cpus_per_worker or "
        "memory_bytes_per_worker, or name the accelerator_type of larger nodes."
    )


def _too_small_a_card(request: Request, card_bytes: int, held: int) -> str:
    needed = request.card_bytes_per_worker
    said = (
        f"A worker needs {in_gib(needed)} of its card, and {request.gpus_per_worker:g} of the largest card "
        f"({in_gib(card_bytes)}) is {in_gib(held)}. "
    )
    if needed > card_bytes:
        return said + "Divide the model over more workers, or add nodes with larger cards."
    fraction = -(-needed * UNITS // card_bytes) / UNITS
    return said + f"Raise gpus_per_worker to {fraction:g} or more."


def _too_many(fleet: Fleet, tried: list[Draft], request: Request) -> str:
    draft = _furthest(tried)
    where = f"{_together(draft)} of" if _together(draft) else " on"
    said = f"{_found(draft, request)} {_need(draft, request)}{where} the empty cluster"
    short = _short_of(draft)
    if short != "cards":
        return f"{said}: {short} are short. Ask for fewer workers or less of it, or add nodes."
    mixed = request.accelerator_type is None and len(fleet.products) > 1 and bool(request.units)
    remedy = "Ask for fewer workers, or add nodes."
    if mixed and sum(_workers_found(draft, request) for draft in tried) >= request.workers:
        remedy = (
            f"The cluster has {_products(fleet)}: set accelerator_type: {ANY} to mix them, or ask for less."
        )
    elif draft.strategy.startswith("STRICT") and request.strategy.startswith("STRICT"):
        loose = request.strategy.removeprefix("STRICT_")
        remedy = f"Set the strategy to {loose}, ask for fewer workers, or add nodes."
    return f"{said}. {remedy}"


def _furthest(tried: list[Draft]) -> Draft:
    """The attempt that placed most; of equals the first."""
    return max(tried, key=lambda draft: (draft.groups_placed, draft.reach()))


def _workers_found(draft: Draft, request: Request) -> int:
    return draft.groups_placed * request.workers_per_group + draft.reach()


def _found(draft: Draft, request: Request) -> str:
    """``3 of 4 workers find``, or of replicas."""
    if request.groups == 1:
        found, wanted, what = draft.reach(), request.workers_per_group, "worker"
    else:
        found, wanted = draft.groups_placed, request.groups
        what = "replica" if request.kind == "serve" else "group"
    return f"{found} of {wanted} {what}{'s' if wanted > 1 else ''} {'finds' if found == 1 else 'find'}"


def _need(draft: Draft, request: Request) -> str:
    """``a whole A100`` or ``0.5 of an L4``, for each worker of a replica."""
    need = f"{request.cpus_per_worker:g} CPUs"
    if request.units:
        products = {draft.fleet.inventory.nodes[int(row)].accelerator_type for row in draft.rows}
        product = products.pop() if len(products) == 1 else None
        card = product or "card"
        article = "an" if card[0] in "AEFHILMNORSX" else "a"
        need = (
            f"a whole {card}"
            if request.units == UNITS
            else f"{request.gpus_per_worker:g} of {article} {card}"
        )
    if request.groups > 1 and request.workers_per_group > 1:
        need += f" for each of {request.workers_per_group} workers"
    return need


def _together(draft: Draft) -> str:
    if draft.request.workers_per_group == 1:
        return ""
    return {"STRICT_PACK": " on one node", "STRICT_SPREAD": " on nodes of their own"}.get(draft.strategy, "")


def _short_of(draft: Draft) -> str:
    """What holds the request back: ``cards`` where cards alone already do, else ``CPUs`` or ``memory``."""
    if not draft.request.units:
        return min(("CPUs", "memory"), key=lambda name: int(draft.by_limit[name].sum()))
    lost = {name: int((draft.by_limit[name] < draft.by_limit["cards"]).sum()) for name in ("CPUs", "memory")}
    return max(lost, key=lambda name: lost[name]) if any(lost.values()) else "cards"


def _freest(draft: Draft) -> str:
    node = int(draft.by_limit["cards"].argmax())
    count, kind = int(draft.by_limit["cards"][node]), "whole" if draft.request.units == UNITS else "such"
    if not count:
        return f"no node has a {kind} card free" if kind == "whole" else "no card has so much free"
    return f"the freest node ({draft.name(node)}) has {count} {kind} card{'s' if count > 1 else ''} free"


def _products(fleet: Fleet) -> str:
    counts = {
        name or "GPUs without a product": int(fleet.is_card[rows].sum())
        for name, rows in fleet.products.items()
    }
    return ", ".join(f"{name} ({count})" for name, count in counts.items()) or "no GPUs"
