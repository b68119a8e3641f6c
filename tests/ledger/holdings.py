"""Shares as processes tell them, for tests in which there are no processes."""

from __future__ import annotations

from typing import Any

from cluster.shares.holding import Holding

GIB = 1 << 30


def holding(holder: str, **fields: Any) -> Holding:
    """Half of card 0 of node ``a`` and a CPU, unless said otherwise."""
    defaults: dict[str, Any] = {
        "worker": "rank 0",
        "kind": "train",
        "node_id": "a",
        "cards": ("0",),
        "fraction": 0.5,
        "cpus": 0.0,
        "memory_bytes": 0,
        "promised_bytes": None,
        "on": "card",
        "pid": 1,
        "start_ticks": 1,
    }
    return Holding(holder=holder, **defaults | fields)
