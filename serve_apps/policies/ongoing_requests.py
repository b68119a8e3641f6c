"""Requests in flight per replica, running or waiting: Ray Serve's own measure, and the default."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

TARGET = None  # the spec's target_ongoing_requests, Ray's own word
AT_MOST = inf
UNIT = "requests in flight per replica"


class Policy:
    """As many replicas as it takes to have ``target`` requests in flight at each."""

    def __init__(self, target: float) -> None:
        self._target = target

    def __call__(self, ctx: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """The replicas wanted."""
        if not ctx.current_num_replicas:
            return ctx.target_num_replicas, {}  # the first one is starting
        return ctx.total_num_requests / self._target, {}
