"""Alerts are raised when they should be, and no other ones: told by promtool on made-up series."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cluster.monitoring.prometheus import to_text
from cluster.monitoring.rules import rule_groups

APP = 'ray_io_cluster="c",application="chat",deployment="chat"'
MODEL = 'ray_io_cluster="c",model_name="chat",ReplicaId="r1"'
RUN = 'ray_io_cluster="c",run="lesson-1"'
SHARE = 'ray_io_cluster="c",node_id="n1",card="0",holder="lesson-1"'
STATUS = f"ray_serve_application_status{{{APP}}}"
KV_CACHE, OVER = f"ray_vllm_kv_cache_usage_perc{{{MODEL}}}", f"ray_tandem_share_over_bytes{{{SHARE}}}"
HEALTHY = f"ray_serve_deployment_replica_healthy{{{APP},replica="
WANTED = f"ray_serve_autoscaling_target_replicas{{{APP}}}"
STEP = f"ray_tandem_train_step{{{RUN}}}"
SAVED = f"ray_tandem_train_checkpoint_timestamp_seconds{{{RUN}}}"
WAITING, AT_THE_DOOR = (
    f"ray_vllm_num_requests_waiting{{{MODEL}}}",
    f"ray_tandem_app_queued_requests{{{MODEL}}}",
)
FREE = 'ray_tandem_cache_disk_free_bytes{ray_io_cluster="c",node_id="n1"}'
DISK = 'ray_tandem_cache_disk_bytes{ray_io_cluster="c",node_id="n1"}'

CASES: dict[str, tuple[dict[str, str], str, set[str]]] = {
    # Series, a value a minute ("0x9": 0 and nine more; "0+2x9": two more each); when to look; what is raised.
    # A replica that died is 0 once, and gone 20 s later: Ray drops what nobody sets again.
    "one of two replicas is down for long": (
        {WANTED: "2x60", f'{HEALTHY}"r1"}}': "1x60", f'{HEALTHY}"r2"}}': "1x10 0 stale"}, "17m",
        {"TandemReplicaDown"},
    ),
    "a replica was down for a moment": (
        {WANTED: "2x60", f'{HEALTHY}"r1"}}': "1x60", f'{HEALTHY}"r2"}}': "1x10 0 stale",
         f'{HEALTHY}"r3"}}': "_x13 1x40"}, "30m", set(),
    ),
    "the only replica is down": (
        {WANTED: "1x60", f'{HEALTHY}"r1"}}': "1x10 0 stale"}, "15m", {"TandemAppDown"}
    ),
    "and is still": (
        {WANTED: "1x60", f'{HEALTHY}"r1"}}': "1x10 0 stale"}, "59m", {"TandemAppDown", "TandemReplicaDown"}
    ),
    "the first replica loads for half an hour": ({WANTED: "1x60"}, "40m", set()),
    "an app sleeps": ({WANTED: "1x10 0x60", f'{HEALTHY}"r1"}}': "1x10 0 stale"}, "60m", set()),
    "it wakes": (
        {WANTED: "1x10 0x20 1x30", f'{HEALTHY}"r1"}}': "1x10 0 stale"}, "38m", set()
    ),
    "there are fewer, as was wanted": (
        {WANTED: "3x20 1x60", f'{HEALTHY}"r1"}}': "1x60", f'{HEALTHY}"r2"}}': "1x20 0 stale"}, "50m", set()
    ),
    "more are wanted than ever were there": (
        {WANTED: "1x20 3x60", f'{HEALTHY}"r1"}}': "1x60"}, "50m", set()
    ),
    "the app has ended": (
        {WANTED: "1x10 stale", f'{HEALTHY}"r1"}}': "1x10 0 stale"}, "40m", set()
    ),
    "an app could not be deployed": (
        {STATUS: "5x3 1x50"}, "6m", {"TandemDeployFailed"}
    ),
    "an app takes its time to start": ({STATUS: "5x60"}, "40m", set()),
    "the queue grows, half of it at the door": (
        {WAITING: "0+1x30", AT_THE_DOOR: "0+1x30"}, "18m", {"TandemQueueGrowing"}
    ),
    "the queue is full and stays so": ({WAITING: "30x40"}, "16m", {"TandemQueueGrowing"}),
    "it is full, more or less": (
        {WAITING: " ".join(str(60 + 9 * (-1) ** minute + minute % 7) for minute in range(60))}, "50m",
        {"TandemQueueGrowing"},
    ),
    "it was long for a moment": ({WAITING: "0x20 50 50 0x30"}, "25m", set()),
    "the queue was long and shrinks": ({WAITING: "100-3x30"}, "20m", set()),
    "a short queue": ({WAITING: "0 1 2 3 4 5 6 7 8x30"}, "30m", set()),
    "the KV cache is full": ({KV_CACHE: "0.99x30"}, "6m", {"TandemKvCacheFull"}),
    "the KV cache is well used": ({KV_CACHE: "0.9x30"}, "20m", set()),
    "a share is overdrawn": ({OVER: "0 1048576x20"}, "5m", {"TandemOverPromise"}),
    "a share was overdrawn for a minute": (
        {OVER: "0 1048576 1048576 0x20"}, "5m", set()
    ),
    # Series begin at 1970: the first checkpoint, at 60 s, is two hours old after 7,260 s.
    "no checkpoint for two hours": (
        {SAVED: "60x300", STEP: "0+1x300"}, "127m", {"TandemCheckpointTooOld"}
    ),
    "a checkpoint every hour": (
        {SAVED: " ".join(str(3600 * (minute // 60)) for minute in range(300)), STEP: "0+1x300"}, "295m", set()
    ),
    "the steps stand still": ({STEP: "0+1x10 10x60", SAVED: "0+60x80"}, "48m", {"TandemTrainingStalled"}),
    "the run has only begun": ({STEP: "0x20", SAVED: "0x20"}, "20m", set()),
    "the run has ended": ({STEP: "0+1x10 stale", SAVED: "0+60x10 stale"}, "50m", set()),
    "the cache's disk is full": ({FREE: "4x30", DISK: "100x30"}, "6m", {"TandemCacheDiskFull"}),
    "the cache's disk has room": ({FREE: "6x30", DISK: "100x30"}, "20m", set()),
    "a node has left, and the ledger says 0 of its disk": ({FREE: "50 0x30", DISK: "100 0x30"}, "20m", set()),
    "a target does not answer": (
        {'up{ray_io_cluster="c",job="ray",instance="n1:1"}': "1 0x30"}, "8m", {"TandemTargetDown"}
    ),
    "HAProxy has not started, as long as nothing is served": (
        {'up{ray_io_cluster="c",job="haproxy",instance="n1:2"}': "0x30"}, "20m", set()
    ),
    "another program's target does not answer": ({'up{job="other",instance="n1:1"}': "0x30"}, "20m", set()),
}  # fmt: skip


def promtool(programs: Path, *words: str | Path) -> None:
    done = subprocess.run([programs / "promtool", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    file = tmp_path / "rules.yml"
    file.write_text(to_text({"groups": rule_groups()}))
    return file


def test_promtool_takes_the_rules(programs: Path, rules: Path):
    promtool(programs, "check", "rules", "--lint=all", "--lint-fatal", rules)


def test_each_alert_is_raised_in_its_case_and_no_other_one(programs: Path, rules: Path):
    # All cases in one file: starting promtool takes longer than a case.
    file = rules.with_name("cases.json")
    cases = [_case(name, *case) for name, case in CASES.items()]
    file.write_text(json.dumps({"rule_files": [rules.name], "evaluation_interval": "1m", "tests": cases}))
    promtool(programs, "test", "rules", file)


def _case(name: str, series: dict[str, str], when: str, raised: set[str]) -> dict[str, Any]:
    asked = {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": when,
        "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(raised)],
    }
    return {
        "name": name,
        "interval": "1m",
        "input_series": [{"series": one, "values": values} for one, values in series.items()],
        "promql_expr_test": [asked],
    }


def test_every_alert_has_a_case_in_which_it_is_raised():
    assert {alert["alert"] for alert in alerts()} == set().union(*(raised for _, _, raised in CASES.values()))


@pytest.mark.parametrize(
    "alert", [rule for group in rule_groups() for rule in group["rules"] if "alert" in rule]
)
def test_every_alert_says_what_is_wrong_and_what_to_do(alert: dict[str, Any]):
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert 20 < len(alert["annotations"]["summary"]) < 100
    assert len(alert["annotations"]["description"]) > 120
    assert alert["for"]


def test_how_long_a_thing_must_last_can_be_set_for_all():
    assert {rule["for"] for rule in alerts(hold_s=1.5)} == {"1500ms"}
    assert "5m" in {rule["for"] for rule in alerts()}


def alerts(**given: Any) -> list[dict[str, Any]]:
    return [rule for group in rule_groups(**given) for rule in group["rules"] if "alert" in rule]
