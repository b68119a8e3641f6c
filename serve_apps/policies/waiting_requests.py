"""Requests that wait per replica, in the engine's queue or at the door: follows what the engine really holds.

Unlike requests in flight it needs no guess of how many one engine runs at a time.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

TARGET = 2.0
AT_MOST = inf
UNIT = "requests that wait per replica"


class Policy:
    """As many replicas as carry all requests when each runs what it runs now and has ``target`` waiting."""

    def __init__(self, target: float) -> None:
        self._target = target

    def __call__(self, ctx: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """The replicas wanted."""
        metrics = ctx.aggregated_metrics or {}
        running, waiting = metrics.get("running", {}), metrics.get("waiting", {})
        if not running:
            return ctx.target_num_replicas, {}  # nobody has reported yet
        each = sum(running.values()) / len(running) + self._target
        wanted = (sum(running.values()) + sum(waiting.values())) / each
        return max(wanted, float(ctx.total_num_requests > 0)), {}
