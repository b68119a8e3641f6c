"""A replica's share: told on its node for as long as it lives, and alone on its cards while it starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import ray

from cluster.shares.cards import own_cards
from cluster.shares.holding import folder_of, told
from cluster.shares.start_lock import alone_on
from serve_apps.defaults import workers


@contextmanager
def share(plan: Mapping[str, Any], *, replica_id: str) -> Iterator[None]:
    """Hold the replica's share for as long as the context lasts.

    Args:
        plan: A :class:`serve_apps.plan.ServePlan` as plain data.
    """
    context = ray.get_runtime_context()
    node_id = context.get_node_id()
    spec = plan["spec"]
    session = ray._private.worker._global_node.get_session_dir_path()
    cards = own_cards()
    with told(
        folder_of(session, node_id),
        holder=spec["name"],
        worker=replica_id,
        kind="serve",
        node_id=node_id,
        cards=cards,
        fraction=float(spec["resources"]["gpus"] or 0),
        cpus=float(spec["resources"]["cpus"]),
        memory_bytes=int(spec["resources"]["memory_bytes"] or 0),
        promised_bytes=promised_bytes(plan, cards),
        on="host" if plan["on_cpu"] else "card",
    ):
        yield


def promised_bytes(plan: Mapping[str, Any], cards: Sequence[str]) -> int | None:
    """What the replica keeps to on each of its cards; without cards in the node's memory, all of its workers
    together. None where nobody reckoned it."""
    each: int | None = plan["share_bytes"] or (plan["memory"] or {}).get("needed_bytes")
    return each if each is None or cards else each * workers(plan["engine"])


def alone_while_starting(plan: Mapping[str, Any]) -> AbstractContextManager[None]:
    """No other engine starts on this one's cards meanwhile; without cards nothing is waited for."""
    cards = own_cards()
    if not cards:
        return nullcontext()
    node_id = ray.get_runtime_context().get_node_id()
    return alone_on(cards if plan["on_cpu"] else _uuids() or cards, node_id=node_id)


def _uuids() -> list[str]:
    """Of the cards that Ray lets this process see."""
    # Here: only the environments for GPUs hold NVML's library.
    from cluster.nvml import read_cards

    return [card.uuid for card in read_cards()]
