"""One engine at a time starts on a card: each measures its memory while it does.

Two vLLM engines that start at once on one GPU take each other's bytes for their own (vllm#55827, #56830).
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cluster.lock import locked


@contextmanager
def alone_on(cards: Sequence[str], *, node_id: str) -> Iterator[None]:
    """Wait until no other process starts on any of the cards, and keep the others waiting.

    The kernel drops the locks when the process dies. They hold on the whole machine, for other clusters too.

    Args:
        cards: Ids of the cards: UUIDs where there are, which are the same for every cluster.
        node_id: Tells the cards of several nodes on one machine apart that have no UUIDs.
    """
    folder = Path(tempfile.gettempdir()) / f"tandem-cards-{os.getuid()}"
    names = [card if card.startswith(("GPU-", "MIG-")) else f"{node_id}-{card}" for card in cards]
    with ExitStack() as stack:
        # In one order for all, or two that want the same two cards could wait for each other.
        for name in sorted(set(names)):
            descriptor = stack.enter_context(
                locked(folder / f"{name}.lock", waiting_for="it starts on the same card")
            )
            # Children that were forked meanwhile hold the descriptor open, and must not hold the lock.
            stack.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)
        yield
