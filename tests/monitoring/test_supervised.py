"""Prometheus beside a head ends with it, whichever way that ends; its own end ends nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from cluster.monitoring.local import prepare, wait_until_ready
from cluster.processes import descendants
from runtime.core.errors import ClusterError
from tests.conftest import wait_for
from tests.monitoring.asked import prometheus


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_supervisor(on_path: Path, tmp_path: Path, number: signal.Signals):
    with prometheus(tmp_path, discovery=str(tmp_path), cluster="here") as asked:
        processes = descendants(asked.supervisor.pid)
        assert len(processes) == 2
        asked.supervisor.send_signal(number)
        wait_for(lambda: all(gone(process) for process in processes), "all have ended", 30)


def test_the_head_stays_when_it_is_killed(on_path: Path, tmp_path: Path):
    with prometheus(tmp_path, discovery=str(tmp_path), cluster="here") as asked:
        (own,) = [one for one in descendants(asked.supervisor.pid) if "prometheus" in one.name()]
        os.kill(own.pid, signal.SIGKILL)
        wait_for(lambda: len(descendants(asked.supervisor.pid)) == 1, "it is gone, and the head is not", 30)
        assert asked.supervisor.poll() is None


def test_a_strangers_prometheus_is_not_taken_for_it(on_path: Path, tmp_path: Path):
    with prometheus(tmp_path / "stranger", discovery=str(tmp_path), cluster="there") as stranger:
        port = int(stranger.url.rsplit(":", 1)[1])
        with (
            pytest.raises(ClusterError, match=rf"to answer at {stranger.url}, has ended.*--prometheus-port"),
            prometheus(tmp_path / "ours", port=port, discovery=str(tmp_path), cluster="here"),
        ):
            pass
        # Where it is not our own process that has ended, either.
        ours = prepare(tmp_path / "others", discovery=str(tmp_path), cluster="here", port=port)
        log = tmp_path / "stranger" / "log"
        with pytest.raises(ClusterError, match="did not answer at"):
            wait_until_ready(ours, tmp_path / "stranger" / "state.json", log, timeout_s=1)


def test_it_knows_no_target_before_ray_has_written_its_list_and_takes_it_then(on_path: Path, tmp_path: Path):
    with prometheus(tmp_path, discovery=str(tmp_path / "ray"), cluster="here", scrape_s=0.5) as asked:
        assert asked.get("targets")["activeTargets"] == []
        # It looks at itself, under the labels that Ray's list and ours give.
        (tmp_path / "ray").mkdir()
        listed = f'[{{"labels": {{"job": "ray"}}, "targets": ["{asked.url.removeprefix("http://")}"]}}]'
        (tmp_path / "ray" / "prom_metrics_service_discovery.json").write_text(listed)
        wait_for(lambda: asked.query('up{ray_io_cluster="here", job="ray"} == 1'), "it is scraped", 30)
