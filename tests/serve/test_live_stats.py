"""What `tandem status` shows of a replica: written by the replica, read through the dashboard."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from serve_apps.live_stats import LiveStats
from tests.conftest import wait_for


def test_the_figures_lie_among_the_logs_while_the_replica_lives(tmp_path: Path):
    async def main() -> None:
        live = LiveStats(tmp_path, "abc", lambda: {"running": 2.0})
        await live.start()
        await asyncio.to_thread(wait_for, lambda: list((tmp_path / "serve").glob("*.json")), "the file", 10)
        (file,) = (tmp_path / "serve").glob("*.json")
        told = json.loads(file.read_text())
        assert told["running"] == 2 and told["at"] > 1e9
        await live.stop()
        assert not list((tmp_path / "serve").iterdir())

    asyncio.run(main())


def test_a_disk_that_is_full_ends_no_replica(tmp_path: Path):
    calls = []

    def stats() -> dict[str, float]:
        calls.append(1)
        raise OSError("no space left on device")

    async def main() -> None:
        live = LiveStats(tmp_path, "abc", stats)
        await live.start()
        await asyncio.to_thread(wait_for, lambda: len(calls) > 1, "it tries again", 10)
        await live.stop()

    asyncio.run(main())
