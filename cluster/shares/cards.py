"""Which cards of its node Ray gave this process."""

from __future__ import annotations

import ray


def own_cards() -> tuple[str, ...]:
    """Their numbers on the node, from 0 on, as the ledger counts them.

    Ray names a card as ``CUDA_VISIBLE_DEVICES`` did where the node started: its first one may be ``2``, or a
    UUID.
    """
    named = [str(card) for card in ray.get_runtime_context().get_accelerator_ids().get("GPU", [])]
    of_node = ray._private.worker.global_worker.original_visible_accelerator_ids.get("GPU") or []
    numbers = {str(name): str(number) for number, name in enumerate(of_node)}
    return tuple(sorted(numbers.get(card, card) for card in named))
