"""A real Prometheus looks at a real cluster that trains and serves, with the configuration that users get."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cluster import applications, local
from cluster.monitoring.dashboards import tandem_dashboard
from cluster.monitoring.prometheus import DISCOVERY_FILE, prometheus_config, to_text
from cluster.monitoring.rules import rule_groups
from runtime.run import Run
from storage.store import open_store
from tests.conftest import TestCluster, wait_for
from tests.monitoring.asked import Prometheus, prometheus, seen
from tests.monitoring.queries import metrics_of, queries
from tests.train.living import ended, lesson, saved

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

APP = "watched"
MOVED_BYTES = 5_000_000
NOT_HERE = {
    "ray_tandem_card_free": "no card",
    "ray_tandem_card_used_bytes": "no card",
    "ray_tandem_card_memory_bytes": "no card",
    "ray_tandem_train_mfu": "no GPU whose FLOPs are known",
    "ray_tandem_train_eval_loss": "the run does not evaluate",
    "ray_tandem_waiting_requests": "nobody waits",
}
"""Metrics that dashboards and alerts name, and that this cluster has no series of."""

RAYS = {
    "ray_node_cpu_utilization",
    "ray_serve_deployment_status",
    "ray_vllm_generation_tokens_total",
    "autoscaler_active_nodes",
    "haproxy_process_nbthread",
}
"""One of each of the others: nodes, Serve, vLLM, the autoscaler, HAProxy."""


@dataclass(frozen=True)
class Watched:
    """The cluster, what runs on it, and who looks."""

    cluster: TestCluster
    asked: Prometheus
    run: Run

    def told(self, query: str) -> list[tuple[dict[str, str], float]]:
        """What Prometheus answers to a query that has an answer.

        It looks once a second, and waits a second: of a target that takes longer, which on a busy machine
        may be any, it knows nothing until the next look.
        """
        return wait_for(lambda: self.asked.query(query), query, 60)

    def replica(self) -> int | None:
        """The process of the running replica."""
        app = applications.applications(self.cluster.dashboard_url).get(APP, {})
        deployments = app.get("deployments", {}).values()
        running = [r["pid"] for one in deployments for r in one["replicas"] if r["state"] == "RUNNING"]
        return running[0] if running else None


@pytest.fixture(scope="module")
def model(inputs: TestCluster) -> Iterator[str]:
    """The base model, with a file that no cache has, in a store on another disk: that file must be moved."""
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere,
        inputs.store.model("docstrings-base").fetch() as folder,
    ):
        own = shutil.copytree(folder.path, Path(elsewhere) / "own", copy_function=shutil.copyfile)
        (own / "README.md").write_bytes(b"x" * MOVED_BYTES)
        yield open_store(f"{elsewhere}/store").publish_model(own, "base").place.uri


@pytest.fixture(scope="module")
def watched(
    inputs: TestCluster, programs: Path, model: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    running = local.current()
    assert running
    haproxy = psutil.Process(running.pid).environ()["RAY_SERVE_HAPROXY_METRICS_PORT"]
    fields = {"discovery": running.temp_dir, "cluster": "tests", "haproxy": [f"127.0.0.1:{haproxy}"]}
    # Users' own values are 15 s and minutes.
    fields |= {"scrape_s": 1.0, "hold_s": 0.0}
    engine = {"max_model_len": 256, "kv_cache_memory_bytes": 1 << 28}
    tandem = inputs.tandem()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
        with prometheus(tmp_path_factory.mktemp("prometheus"), **fields) as asked:
            tandem.serve({"name": APP, "model": model, "auth": "none", "engine": engine})
            one = {"scaling": {"num_workers": 1, "gpus_per_worker": 0}}
            run = tandem.train(lesson("watched", {"max_steps": 100_000, "save_steps": 100}, **one))
            yield Watched(inputs, asked, run)
            run.stop()
            tandem.app(APP).stop()
            ended(run)


def test_every_series_that_dashboards_and_alerts_ask_for_is_there(watched: Watched):
    wait_for(watched.replica, "the app answers", 120)
    body = {"model": APP, "prompt": "def", "max_tokens": 8}
    url = f"{watched.cluster.http_url}/{APP}/v1/completions"
    assert httpx.post(url, json=body, timeout=120, trust_env=False).status_code == 200
    saved(watched.run, 100)
    asked = {metric for query in queries(tandem_dashboard()) for metric in metrics_of(query)}
    asked |= {
        metric for group in rule_groups() for rule in group["rules"] for metric in metrics_of(rule["expr"])
    }
    seen(watched.asked, (asked | RAYS) - NOT_HERE.keys(), 60)
    assert asked > NOT_HERE.keys(), "nobody asks for these any more"


def test_all_targets_answer_and_every_series_names_the_cluster(watched: Watched):
    wait_for(lambda: not watched.asked.down(), "all targets answer", 60)

    def up() -> list[tuple[str, float]]:
        counts = watched.asked.query("count by (job) (up == 1)")
        return sorted((labels["job"], value) for labels, value in counts)

    # The node, the autoscaler, the dashboard; HAProxy.
    wait_for(lambda: up() == [("haproxy", 1), ("ray", 3)], "all targets are up at once", 60)
    everything = '__name__=~".+", __name__!~"ALERTS.*"'
    watched.told(f"count({{{everything}}}) > 1000")
    assert watched.asked.query(f'count({{{everything}, ray_io_cluster!="tests"}})') == []
    assert watched.asked.query(f'count({{{everything}, otel_scope_name!=""}})') == []


def test_prometheus_answers_every_query_of_the_dashboard(watched: Watched):
    answers: dict[str, list[tuple[dict[str, str], float]]] = {}

    def silent() -> set[str]:
        return {query for query in answers if not answers[query]}

    def most_answer() -> bool:
        answers.update({query: watched.asked.query(query) for query in queries(tandem_dashboard())})
        return len(answers) - len(silent()) > 20

    # Nothing to show: no card, nobody over a promise, no request or cost in the last minute.
    wait_for(most_answer, "answers to more than 20 queries", 60)
    for query in answers.keys() - silent():
        assert all(value == value for _, value in answers[query]) or "histogram" in query, query


def test_the_figures_are_of_this_run_and_this_app(watched: Watched):
    of_the_run = f'{{run="{watched.run.run_id}"}}'
    ((labels, step),) = watched.told(f"ray_tandem_train_step{of_the_run}")
    assert step > 0 and labels["ray_io_cluster"] == "tests"
    ((_, loss),) = watched.told(f"ray_tandem_train_loss{of_the_run}")
    assert loss >= 0
    age = watched.told(f"time() - ray_tandem_train_checkpoint_timestamp_seconds{of_the_run}")
    assert 0 <= age[0][1] < 120
    ((_, tokens),) = watched.told(f'ray_vllm_generation_tokens_total{{model_name="{APP}"}}')
    assert tokens >= 8
    holders = {labels["holder"] for labels, _ in watched.told("ray_tandem_share_promised_bytes > 0")}
    assert holders == {APP, watched.run.run_id}
    moved = watched.told('sum(ray_tandem_store_bytes_total{source="file", target="file"})')
    assert MOVED_BYTES <= moved[0][1] < 2 * MOVED_BYTES
    ((_, free),) = watched.told("ray_tandem_cache_disk_free_bytes / ray_tandem_cache_disk_bytes")
    assert 0 < free < 1


def test_an_alert_is_raised_when_a_replica_is_killed_and_goes_when_another_answers(watched: Watched):
    alerts = ("TandemReplicaDown", "TandemAppDown")
    assert not watched.asked.firing(application=APP)
    pid = watched.replica()
    assert pid
    os.kill(pid, signal.SIGKILL)

    def both() -> dict[str, dict[str, str]] | None:
        firing = watched.asked.firing(application=APP)
        return firing if firing.keys() >= set(alerts) else None

    said = wait_for(both, "both alerts", 60)
    assert said["TandemReplicaDown"]["summary"] == f"A replica of {APP} is down and has not been replaced"
    assert "tandem gpus" in said["TandemReplicaDown"]["description"]
    # Ray has dropped the series of the dead one long before.
    # They also go for a second when Prometheus is not answered in time.
    wait_for(
        lambda: watched.replica() not in (None, pid) and not watched.asked.firing(application=APP),
        "another one answers, and the alerts are gone",
        180,
    )


def test_the_dashboard_lists_the_same_targets_as_rays_file(
    cluster: TestCluster, programs: Path, tmp_path: Path
):
    running = local.current()
    assert running
    (listed,) = json.loads(Path(running.temp_dir, DISCOVERY_FILE).read_text())
    file = tmp_path / "prometheus.yml"
    file.write_text(to_text(prometheus_config(discovery=cluster.dashboard_url, cluster="tests")))
    command = [programs / "promtool", "check", "service-discovery", "--timeout=5s", file, "ray"]

    def look() -> list[dict[str, Any]]:
        # It asks once, and gives the dashboard of a busy machine no more than its five seconds.
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) or []

    found = wait_for(look, "targets", 60)
    assert sorted(one["labels"]["__address__"] for one in found) == sorted(listed["targets"])
    assert {one["labels"]["ray_io_cluster"] for one in found} == {"tests"}
