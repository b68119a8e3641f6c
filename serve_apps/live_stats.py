"""What a replica does now, told once a second in a small file among its node's logs.

Ray's dashboard shows it to whoever may look at the cluster, from any machine, without an API key and at no
cost to the engine.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from cluster.rest import call
from runtime.core.errors import ClusterError
from runtime.core.log import get_logger

_log = get_logger(__name__)
_PERIOD_S = 1.0
_OLD_S = 60.0
"""What is older says nothing about now. The clocks of nodes and of whoever reads may differ by less."""

_FOLDER = "serve"
"""Where Ray Serve's own logs lie, below a node's logs."""


class LiveStats:
    """Writes one replica's figures.

    Args:
        logs: The node's folder of Ray's logs.
        replica_id: Ray Serve's.
        stats: Gives the figures.
    """

    def __init__(self, logs: Path, replica_id: str, stats: Callable[[], Mapping[str, float]]) -> None:
        self._file = logs / _name(replica_id)
        self._new = self._file.with_suffix(".new")
        self._stats = stats
        self._background: asyncio.Task[None] | None = None
        self._one_at_a_time = threading.Lock()
        self._has_ended = False

    async def start(self) -> None:
        """Write from now on."""
        self._background = asyncio.create_task(self._write_for_ever(), name="tandem-live-stats")

    async def stop(self) -> None:
        """End the background work and remove the file."""
        if self._background is not None:
            self._background.cancel()
            await asyncio.wait([self._background])
        await asyncio.to_thread(self._end)

    async def _write_for_ever(self) -> None:
        was_told = False
        while True:
            try:
                await asyncio.to_thread(self._write, json.dumps({"at": time.time(), **self._stats()}))
                was_told = False
            except Exception as error:  # a full disk must not end a replica, nor be filled with this
                if not was_told:
                    _log.warning("the figures for `tandem status` are not written: %r", error)
                was_told = True
            await asyncio.sleep(_PERIOD_S)

    def _write(self, text: str) -> None:
        # In a thread, which goes on when the task that waits for it is cancelled.
        with self._one_at_a_time:
            if not self._has_ended:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._new.write_text(text)
                self._new.replace(self._file)

    def _end(self) -> None:
        with self._one_at_a_time:
            self._has_ended = True
            for file in (self._file, self._new):
                with suppress(OSError):
                    file.unlink()


def read_stats(dashboard_url: str, node_id: str, replica_id: str) -> dict[str, float]:
    """The newest figures of a running replica; empty where it has told none yet.

    Returns:
        As ``EngineStats.now``: ``running``, ``waiting``, ``kv_cache_usage``, ``ttft_s``, ``tokens_per_s``.
    """
    asked = urlencode({"node_id": node_id, "filename": _name(replica_id), "lines": -1})
    try:
        found: dict[str, Any] = call("GET", dashboard_url, f"/api/v0/logs/file?{asked}") or {}
    except ClusterError:
        return {}
    if abs(time.time() - found.pop("at", 0.0)) > _OLD_S:
        return {}
    return found


def _name(replica_id: str) -> str:
    return f"{_FOLDER}/tandem-stats-{replica_id}.json"
