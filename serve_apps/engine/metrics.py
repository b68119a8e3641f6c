"""A replica's metrics among Ray's: every few seconds, what vLLM counted, and what Tandem counts beside it.

vLLM can write to Ray's metrics itself, at every step and token, which costs a replica up to a tenth of its
CPU time. Here it counts as its own server does (so ``/metrics`` of a replica has all of it, too), and the
sums are passed on. A histogram becomes the series that Prometheus makes of it: ``_bucket`` with ``le``,
``_sum``, ``_count``.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from prometheus_client import Metric
from ray.util.metrics import Gauge
from vllm.v1.metrics.prometheus import get_prometheus_registry

from cluster.monitoring.store_metrics import StoreMetrics
from runtime.core.log import get_logger

_log = get_logger(__name__)
_OURS = "vllm:"
_PERIOD_S = 5.0
"""Ray exports as often by default; more would be lost on the way."""

_PASSED_OVER = "vllm:lora_requests_info"
"""Its labels are the adapters at work: every combination that ever was would stay a series of its own."""


class EngineMetrics:
    """The metrics of one replica's engine.

    Args:
        replica_id: Ray Serve's, the label ``ReplicaId``.
        app: The app's name, which is vLLM's label ``model_name``.
        queued: How many requests wait at the door, before vLLM knows of them.
    """

    def __init__(self, replica_id: str, *, app: str, queued: Callable[[], int]) -> None:
        self._replica_id, self._app, self._queued = replica_id, app, queued
        self._gauges: dict[str, Gauge] = {}
        self._store = StoreMetrics()
        self._at_the_door = Gauge(
            "tandem_app_queued_requests",
            "Requests that wait until the engine takes them.",
            ("model_name", "ReplicaId"),
        )
        self._background: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Pass them on from now on."""
        self._background = asyncio.create_task(self._pass_on_for_ever(), name="tandem-engine-metrics")

    async def stop(self) -> None:
        """End the background work."""
        if self._background is not None:
            self._background.cancel()
            await asyncio.wait([self._background])

    async def _pass_on_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_PERIOD_S)
            try:
                await self._pass_on()
            except Exception:
                _log.exception("the engine's metrics do not reach Ray's; trying again")

    async def _pass_on(self) -> None:
        self._at_the_door.set(self._queued(), {"model_name": self._app, "ReplicaId": self._replica_id})
        self._store.tell()
        for family in get_prometheus_registry().collect():
            if family.name.startswith(_OURS) and family.name != _PASSED_OVER:
                self._set(family)
                # A stream's next token does not wait for all of them.
                await asyncio.sleep(0)

    def _set(self, family: Metric) -> None:
        for sample in family.samples:
            if sample.name.endswith("_created"):
                continue  # when counting began: nobody plots it
            labels = {**sample.labels, "ReplicaId": self._replica_id}
            gauge = self._gauges.get(sample.name)
            if gauge is None:
                # Ray's names know no colon. A gauge for a counter too: what is set is the sum so far.
                name = re.sub(r"[^a-zA-Z0-9_]", "_", sample.name)
                gauge = Gauge(name, description=family.documentation, tag_keys=tuple(labels))
                self._gauges[sample.name] = gauge
            gauge.set(sample.value, tags=labels)
