"""What this process has moved between stores, among Ray's own metrics."""

from __future__ import annotations

from storage.traffic import moved


class StoreMetrics:
    """Hands the sums of :mod:`storage.traffic` to Ray. Make it in a process that is connected to Ray."""

    def __init__(self) -> None:
        from ray.util.metrics import Gauge

        # A gauge for a counter: what is set is the sum so far, and rate() of it is the same.
        self._bytes = Gauge(
            "tandem_store_bytes_total",
            "Bytes that a process has moved from one kind of store to another.",
            ("source", "target"),
        )

    def tell(self) -> None:
        """Set all."""
        for (source, target), size_bytes in moved().items():
            self._bytes.set(size_bytes, {"source": source, "target": target})
