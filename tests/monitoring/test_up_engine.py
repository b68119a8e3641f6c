"""``tandem up --monitoring``: Prometheus begins and ends with the cluster."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cluster.processes import descendants
from tests.conftest import ROOT, wait_for

pytestmark = pytest.mark.engine


def name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""  # it ended between the two looks: Ray has just started


def test_prometheus_looks_at_the_cluster_it_was_started_with_and_ends_with_it(
    on_path: Path, tandem_command: list[str], tmp_path: Path
):
    env = os.environ | {"TANDEM_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}

    def tandem(*words: str) -> str:
        done = subprocess.run([*tandem_command, *words], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    ports = ["--dashboard-port", "0", "--http-port", "0", "--prometheus-port", "0"]
    started: dict[str, Any] = json.loads(tandem("up", "--monitoring", *ports, "--json"))
    try:
        processes = [psutil.Process(started["pid"]), *descendants(started["pid"])]
        assert [name(process) for process in processes].count("prometheus") == 1
        url = started["prometheus_url"]

        def up() -> set[str]:
            """Jobs of the targets that Prometheus could ask."""
            reply = httpx.get(f"{url}/api/v1/targets", trust_env=False).json()["data"]["activeTargets"]
            return {one["labels"]["job"] for one in reply if one["health"] == "up"}

        wait_for(lambda: "ray" in up(), "Ray's metrics are asked for")
        alerts = httpx.get(f"{url}/api/v1/rules", trust_env=False).json()["data"]["groups"]
        assert sum(len(group["rules"]) for group in alerts) > 5
    finally:
        tandem("down")
    left = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not left
