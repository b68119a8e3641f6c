"""What the engine does now, kept from vLLM's own statistics: for autoscaling."""

from __future__ import annotations

import time
from collections import deque

from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats

WINDOW_S = 10.0
"""Times and rates are those of so many last seconds."""

_STEPS_KEPT = 4096


class EngineStats:
    """The newest figures of one replica's engine, or engines with data parallelism.

    Give :meth:`logger` to vLLM among ``stat_loggers``.
    """

    def __init__(self) -> None:
        self._engines: dict[int, _EngineLogger] = {}

    def logger(self, vllm_config: VllmConfig, engine_index: int = 0) -> StatLoggerBase:
        """A logger for one engine, as vLLM asks for it."""
        return self._engines.setdefault(engine_index, _EngineLogger(vllm_config, engine_index))

    def now(self, *, in_flight: int) -> dict[str, float]:
        """The figures.

        Args:
            in_flight: Requests that vLLM's client knows of. At 0 the engine holds none, whatever it last
                said: one that is aborted leaves no further statistics.

        Returns:
            ``running`` and ``waiting`` requests, ``kv_cache_usage`` (0 to 1), ``ttft_s`` (90th percentile of
            the last 10 s; 0 when no first token came in them), ``tokens_per_s`` (generated, over those 10 s).
        """
        engines = list(self._engines.values())
        since = time.monotonic() - WINDOW_S
        times = sorted(s for engine in engines for at, s in engine.first_tokens if at >= since)
        tokens = sum(count for engine in engines for at, count in engine.tokens if at >= since)
        busy = float(in_flight > 0)
        return {
            "running": busy * sum(engine.running for engine in engines),
            "waiting": busy * sum(engine.waiting for engine in engines),
            "kv_cache_usage": busy * sum(e.kv_cache_usage for e in engines) / max(1, len(engines)),
            "ttft_s": times[int(0.9 * (len(times) - 1))] if times else 0.0,
            "tokens_per_s": tokens / WINDOW_S,
        }


class _EngineLogger(StatLoggerBase):
    """Notes what each step of the engine tells; called in the server's event loop, so it does little."""

    def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None:
        self.running = self.waiting = 0
        self.kv_cache_usage = 0.0
        # Bounded: a step takes milliseconds at least, so these hold the window, or its larger part.
        self.first_tokens: deque[tuple[float, float]] = deque(maxlen=_STEPS_KEPT)
        self.tokens: deque[tuple[float, int]] = deque(maxlen=_STEPS_KEPT)

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        """One step's statistics."""
        if scheduler_stats is not None:
            self.running = scheduler_stats.num_running_reqs
            # Skipped ones wait for something of their own (a grammar, a remote cache), not for room.
            self.waiting = scheduler_stats.num_waiting_reqs
            self.kv_cache_usage = scheduler_stats.kv_cache_usage
        if iteration_stats is not None:
            now = time.monotonic()
            self.first_tokens.extend((now, s) for s in iteration_stats.time_to_first_tokens_iter)
            if iteration_stats.num_generation_tokens:
                self.tokens.append((now, iteration_stats.num_generation_tokens))

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
