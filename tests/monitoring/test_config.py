"""Prometheus' configuration is what Prometheus takes, for a folder and for a dashboard alike."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from click.testing import CliRunner

from cluster.monitoring.local import prepare
from cluster.monitoring.prometheus import prometheus_config, to_text
from cluster.plain import state
from cluster.plain.state import PlainNode
from runtime.cli_monitoring import monitoring
from runtime.core.errors import ConfigError, EnvironmentFault


def check(programs: Path, what: str, file: Path) -> str:
    """What promtool says of a file that it takes."""
    command = [programs / "promtool", "check", what, file]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def config(**fields: Any) -> dict[str, Any]:
    return prometheus_config(**{"discovery": "/tmp/ray", "cluster": "here"} | fields)


def test_a_head_of_this_machine_is_found_by_the_file_that_ray_writes():
    (job,) = config()["scrape_configs"]
    (found,) = job["file_sd_configs"]
    assert found["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]
    assert job["relabel_configs"] == [{"target_label": "ray_io_cluster", "replacement": "here"}]


def test_a_head_elsewhere_is_asked_by_http_with_rays_token():
    (job,) = config(discovery="https://head:8265/", token_file="/secrets/token")["scrape_configs"]
    (found,) = job["http_sd_configs"]
    assert found["url"] == "https://head:8265/api/prometheus/sd"
    assert found["authorization"] == {"credentials_file": "/secrets/token"}
    assert "file_sd_configs" not in job


def test_a_relative_folder_is_refused_since_prometheus_would_look_beside_its_file():
    with pytest.raises(ConfigError, match="'ray', which is neither an absolute path nor an http URL"):
        config(discovery="ray")


def test_haproxys_own_metrics_are_a_job_of_the_same_cluster():
    _, job = config(haproxy=["127.0.0.1:9101"])["scrape_configs"]
    assert job["job_name"] == "haproxy"
    assert job["static_configs"] == [{"targets": ["127.0.0.1:9101"]}]
    assert job["relabel_configs"][0]["replacement"] == "here"


@pytest.mark.parametrize("cluster", ["y", "1e3", "0o17", 'with "quotes"', "größer"])
def test_no_name_of_a_cluster_becomes_something_else_in_yaml(cluster: str):
    read = yaml.safe_load(to_text(config(cluster=cluster)))
    assert read["scrape_configs"][0]["relabel_configs"][0]["replacement"] == cluster


def test_promtool_takes_what_the_command_writes(programs: Path, tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("secret")
    words = ["--discovery", "http://head:8265", "--token-file", str(token), "--haproxy", "127.0.0.1:9101"]
    run = CliRunner()
    assert run.invoke(monitoring, ["config", *words, "--out", str(tmp_path)]).exit_code == 0
    assert run.invoke(monitoring, ["rules", "--out", str(tmp_path)]).exit_code == 0
    said = check(programs, "config", tmp_path / "prometheus.yml")
    # The rules are found by the configuration, and are ours.
    assert "1 rule files found" in said and "rules found" in said


def test_the_command_prints_what_it_would_write():
    printed = CliRunner().invoke(monitoring, ["config", "--discovery", "/tmp/ray"]).stdout
    assert json.loads(printed) == config(cluster="local", rule_files=["rules.yml"])


def test_a_folder_without_rays_list_is_told_where_it_may_be(tmp_path: Path):
    words = ["config", "--discovery", str(tmp_path)]
    said = CliRunner().invoke(monitoring, words)
    assert said.exit_code == 0
    assert f"{tmp_path}/prom_metrics_service_discovery.json does not exist" in said.stderr
    (tmp_path / "prom_metrics_service_discovery.json").write_text("[]")
    assert CliRunner().invoke(monitoring, words).stderr == ""
    assert CliRunner().invoke(monitoring, ["config", "--discovery", "http://head:8265"]).stderr == ""


def test_a_node_of_a_plain_cluster_is_asked_by_its_dashboard_with_its_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path))
    nowhere = CliRunner().invoke(monitoring, ["config"])
    assert "no cluster runs on this machine" in str(nowhere.exception)
    # This process stands for its supervisor.
    state.keep(
        PlainNode(
            role="head",
            pid=os.getpid(),
            create_time=psutil.Process().create_time(),
            address="10.0.0.1:6379",
            node_ip="10.0.0.1",
            dashboard_url="http://10.0.0.1:8266",
            http_url="http://10.0.0.1:8000",
            token_file="/ours/ray-token",
            store="gs://bucket/store",
            temp_dir=str(tmp_path / "ray"),
        )
    )
    for words, token_file in (([], "/ours/ray-token"), (["--token-file", "/etc/copy"], "/etc/copy")):
        printed = CliRunner().invoke(monitoring, ["config", *words]).stdout
        (found,) = json.loads(printed)["scrape_configs"][0]["http_sd_configs"]
        assert found["url"] == "http://10.0.0.1:8266/api/prometheus/sd"
        assert found["authorization"] == {"credentials_file": token_file}


def test_the_local_prometheus_listens_to_this_machine_only_and_forgets(on_path: Path, tmp_path: Path):
    made = prepare(tmp_path / "monitoring", discovery=str(tmp_path), cluster="local", port=9090)
    assert made.url == "http://127.0.0.1:9090"
    assert made.command[0] == str(on_path / "prometheus")
    assert "--web.listen-address=127.0.0.1:9090" in made.command
    assert "--storage.tsdb.retention.time=15d" in made.command
    check(on_path, "config", tmp_path / "monitoring" / "prometheus.yml")


def test_where_prometheus_is_missing_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFault, match="apt install prometheus"):
        prepare(tmp_path, discovery="/tmp/ray", cluster="local", port=9090)
    assert not (tmp_path / "prometheus.yml").exists()
