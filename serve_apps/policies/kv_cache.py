"""Use of the KV cache, which holds the requests' tokens: follows long contexts, where few requests fill it.

A full cache makes vLLM stop requests and compute them again later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

TARGET = 0.7
AT_MOST = 1.0
UNIT = "share of the KV cache in use per replica, 0 to 1"


class Policy:
    """As many replicas as it takes for each to have ``target`` of its KV cache in use."""

    def __init__(self, target: float) -> None:
        self._target = target

    def __call__(self, ctx: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """The replicas wanted."""
        used = (ctx.aggregated_metrics or {}).get("kv_cache_usage", {})
        if not used:
            return ctx.target_num_replicas, {}  # nobody has reported yet
        # A request in flight may use less than a reported digit: it still needs a replica.
        return max(sum(used.values()) / self._target, float(ctx.total_num_requests > 0)), {}
