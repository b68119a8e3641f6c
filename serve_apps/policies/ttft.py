"""Time to the first token, as clients feel it: 9 of 10 requests get theirs within the target."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

TARGET = 1.0
AT_MOST = inf
UNIT = "seconds to the first token, 90th percentile"


class Policy:
    """More replicas while the first token comes later than ``target``, one fewer when in half the time.

    The time does not grow in proportion to the load (an idle engine needs some too), so the steps are small:
    at most twice as many at once, and one fewer at a time.
    """

    def __init__(self, target: float) -> None:
        self._target = target

    def __call__(self, ctx: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """The replicas wanted."""
        # A replica without a first token in the last seconds reports 0.
        times = [s for s in (ctx.aggregated_metrics or {}).get("ttft_s", {}).values() if s]
        replicas = ctx.current_num_replicas
        if not replicas or (not times and ctx.total_num_requests):
            return ctx.target_num_replicas, {}
        slow = sum(times) / len(times) / self._target if times else 0.0
        wanted = replicas * min(slow, 2.0) if slow > 1 else replicas - 1 if slow < 0.5 else replicas
        return max(wanted, float(ctx.total_num_requests > 0)), {}
