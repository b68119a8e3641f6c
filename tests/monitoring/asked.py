"""A Prometheus of the tests' own, and what it answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from cluster.monitoring.local import prepare, wait_until_ready
from cluster.processes import free_port
from tests.conftest import ROOT, wait_for

HEAD = [sys.executable, "-c", "import time; time.sleep(3600)"]
"""Stands for Ray's head, which the shared cluster has already."""


@dataclass(frozen=True)
class Prometheus:
    """One that runs, with the process that it ends with."""

    url: str
    supervisor: subprocess.Popen[bytes]

    def get(self, path: str, **parameters: str) -> Any:
        """``data`` of what its API answers."""
        found = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30, trust_env=False).json()
        assert found["status"] == "success", found
        return found["data"]

    def query(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Labels and values, now."""
        return [(one["metric"], float(one["value"][1])) for one in self.get("query", query=query)["result"]]

    def metrics(self) -> set[str]:
        """The names of all that it has seen."""
        return set(self.get("label/__name__/values"))

    def firing(self, **labels: str) -> dict[str, dict[str, str]]:
        """The annotations of the alerts with these labels that are raised now, by name."""
        return {
            one["labels"]["alertname"]: one["annotations"]
            for one in self.get("alerts")["alerts"]
            if one["state"] == "firing" and labels.items() <= one["labels"].items()
        }

    def down(self) -> list[str]:
        """Why targets do not answer; empty when all do, and there is one."""
        targets = self.get("targets", state="active")["activeTargets"]
        return [f"{one['scrapeUrl']}: {one['lastError']}" for one in targets if one["health"] != "up"]


@contextmanager
def prometheus(folder: Path, port: int | None = None, **fields: Any) -> Iterator[Prometheus]:
    """One beside a head that does nothing; ``fields`` of :func:`cluster.monitoring.local.prepare`."""
    made = prepare(folder / "monitoring", port=port or free_port(), **fields)
    command = [sys.executable, "-m", "cluster.supervisor", str(folder / "state.json"), *HEAD, "--beside"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, *made.command], cwd=ROOT, stdout=log, stderr=log)
    try:
        wait_for((folder / "state.json").exists, "the supervisor has begun", 30)
        wait_until_ready(made, folder / "state.json", folder / "log")
        yield Prometheus(made.url, process)
    finally:
        process.terminate()
        process.wait(30)


def seen(asked: Prometheus, metrics: set[str], timeout_s: float) -> None:
    """Return when series of all of them are there; fails with those that are not."""
    missing = metrics

    def look() -> bool:
        nonlocal missing
        missing = metrics - asked.metrics()
        return not missing

    try:
        wait_for(look, "series of all metrics", timeout_s)
    except AssertionError:
        raise AssertionError(f"not within {timeout_s:.0f} s: {sorted(missing)}") from None
