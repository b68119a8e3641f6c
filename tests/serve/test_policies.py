"""Autoscaling decided without a cluster: Ray's own contexts and delays in, replicas out."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from runtime.core.config import load_spec
from runtime.core.errors import ConfigError
from runtime.core.lookup import names_in
from serve_apps import policies
from serve_apps.autoscaling import autoscaling_config
from serve_apps.spec import ServeSpec

DEPLOYMENT = DeploymentID("assistant", "assistant")
PROMPT = {"upscale_delay_s": 0, "downscale_delay_s": 0, "max_replicas": 8}


def config_of(*, engine: dict[str, Any] | None = None, **autoscaling: Any) -> dict[str, Any]:
    fields = {"name": "assistant", "model": "tiny", "engine": engine or {}, "autoscaling": autoscaling}
    return autoscaling_config(load_spec(ServeSpec, fields))


def wanted(
    policy: str,
    *,
    requests: float = 0,
    target_num_replicas: int | None = None,
    replicas: int = 1,
    policy_state: dict[str, Any] | None = None,
    **metrics: list[float] | Any,
) -> int:
    """Replicas that Ray would run, the policy called as Ray's controller does.

    ``metrics`` that are lists are what each replica reports; the others are settings of the spec.
    """
    settings = {name: metrics.pop(name) for name in list(metrics) if not isinstance(metrics[name], list)}
    config = AutoscalingConfig(**config_of(policy=policy, **{**PROMPT, **settings}))
    ids = [ReplicaID(str(n), DEPLOYMENT) for n in range(replicas)]
    ctx = AutoscalingContext(
        deployment_id=DEPLOYMENT,
        deployment_name=DEPLOYMENT.name,
        app_name=DEPLOYMENT.app_name,
        current_num_replicas=replicas,
        target_num_replicas=replicas if target_num_replicas is None else target_num_replicas,
        running_replicas=ids,
        total_num_requests=requests,
        total_queued_requests=0.0,
        aggregated_metrics={n: dict(zip(ids, v, strict=False)) for n, v in metrics.items()},
        raw_metrics={},
        capacity_adjusted_min_replicas=config.min_replicas,
        capacity_adjusted_max_replicas=config.max_replicas,
        policy_state=policy_state if policy_state is not None else {},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=None,
        config=config,
    )
    number, state = _apply_autoscaling_config(_resolve_policy_callable(config.policy))(ctx)
    if policy_state is not None:
        policy_state.update(state)
    return max(config.min_replicas, min(config.max_replicas, number))


def test_requests_in_flight_are_shared_out_at_the_target():
    assert wanted("ongoing_requests", requests=32, target_ongoing_requests=16) == 2
    assert wanted("ongoing_requests", requests=33, target_ongoing_requests=16) == 3
    assert wanted("ongoing_requests", requests=16, replicas=3, target_ongoing_requests=16) == 1


def test_a_second_engine_starts_when_more_wait_than_the_target():
    assert wanted("waiting_requests", requests=12, running=[8], waiting=[4], policy_target=5) == 1
    assert wanted("waiting_requests", requests=14, running=[8], waiting=[6], policy_target=5) == 2
    # 8 run and 5 may wait at each: 40 requests want 4, not the 32 / 5 = 7 that the queue alone would ask for.
    assert wanted("waiting_requests", requests=40, running=[8], waiting=[32], policy_target=5) == 4


def test_a_second_engine_stays_while_one_could_not_run_what_both_run():
    def two(running: list[float]) -> int:
        load: dict[str, list[float]] = {"running": running, "waiting": [0, 0]}
        return wanted("waiting_requests", requests=sum(running), replicas=2, policy_target=5, **load)

    assert (two([8, 8]), two([4, 4])) == (2, 1)


def test_a_replica_that_has_not_reported_yet_does_not_look_idle():
    assert wanted("waiting_requests", requests=13, replicas=2, running=[8], waiting=[5], policy_target=5) == 1
    assert wanted("waiting_requests", requests=16, replicas=2) == 2
    assert wanted("kv_cache", requests=16, replicas=2) == 2


def test_kv_cache_use_is_shared_out_at_the_target():
    assert wanted("kv_cache", requests=3, kv_cache_usage=[0.7]) == 1
    assert wanted("kv_cache", requests=3, kv_cache_usage=[0.75]) == 2
    assert wanted("kv_cache", requests=3, replicas=3, kv_cache_usage=[0.3, 0.2, 0.1], policy_target=0.5) == 2


def test_late_first_tokens_add_replicas_in_small_steps():
    assert wanted("ttft", requests=9, replicas=2, ttft_s=[1.2, 1.4]) == 3
    assert wanted("ttft", requests=9, replicas=2, ttft_s=[30.0, 40.0]) == 4
    assert wanted("ttft", requests=9, replicas=3, ttft_s=[0.9, 0.7, 0.0]) == 3
    assert wanted("ttft", requests=9, replicas=3, ttft_s=[0.2, 0.2, 0.0]) == 2


def test_without_a_first_token_lately_nothing_changes_while_requests_run():
    assert wanted("ttft", requests=9, replicas=3, ttft_s=[0.0, 0.0, 0.0]) == 3


@pytest.mark.parametrize("policy", names_in(policies))
def test_an_idle_app_goes_to_its_min_replicas(policy: str):
    idle: dict[str, list[float]] = {"running": [0], "waiting": [0], "kv_cache_usage": [0], "ttft_s": [0]}
    assert wanted(policy, **idle) == 1
    assert wanted(policy, min_replicas=0, **idle) == 0


@pytest.mark.parametrize("policy", names_in(policies))
def test_an_app_with_a_request_keeps_its_last_replica(policy: str):
    faint: dict[str, list[float]] = {"running": [0], "waiting": [0], "kv_cache_usage": [0], "ttft_s": [0.001]}
    assert wanted(policy, requests=0.2, min_replicas=0, **faint) == 1


@pytest.mark.parametrize("policy", names_in(policies))
def test_the_first_request_of_an_idle_app_starts_a_replica_at_once(policy: str):
    assert wanted(policy, requests=1, replicas=0, min_replicas=0, upscale_delay_s=3600) == 1
    assert wanted(policy, requests=1, replicas=0, target_num_replicas=1, min_replicas=0) == 1, "it starts"
    assert wanted(policy, requests=0, replicas=0, min_replicas=0) == 0


@pytest.mark.parametrize("policy", names_in(policies))
def test_rays_delays_and_bounds_hold_for_every_policy(policy: str):
    load: dict[str, list[float]] = {"running": [8], "waiting": [400], "kv_cache_usage": [1], "ttft_s": [60]}
    assert wanted(policy, requests=400, max_replicas=2, **load) == 2
    state: dict[str, Any] = {}
    assert wanted(policy, requests=400, upscale_delay_s=3600, policy_state=state, **load) == 1
    state["__decision_timestamp"] -= 3600
    assert wanted(policy, requests=400, upscale_delay_s=3600, policy_state=state, **load) >= 2


@pytest.mark.parametrize("policy", names_in(policies))
def test_a_policy_needs_nothing_of_tandems_where_the_controller_runs(policy: str):
    pickled = AutoscalingConfig(**config_of(policy=policy, max_replicas=2)).policy.get_serialized_policy_def()
    assert pickled
    program = "import pickle, sys; print(pickle.load(sys.stdin.buffer)(2.0)._target)"
    # -I: without PYTHONPATH and without this folder.
    ended = subprocess.run([sys.executable, "-I", "-c", program], input=pickled, capture_output=True)
    assert (ended.stdout, ended.stderr) == (b"2.0\n", b"")


def test_the_mean_is_no_longer_than_the_delays():
    slow = config_of()
    assert (slow["look_back_period_s"], slow["metrics_interval_s"]) == (30, 7.5)
    quick = config_of(upscale_delay_s=4, downscale_delay_s=600)
    assert (quick["look_back_period_s"], quick["metrics_interval_s"]) == (4, 1)
    assert config_of(upscale_delay_s=0)["look_back_period_s"] == 2


def test_an_app_that_may_have_no_replica_starts_with_one():
    assert config_of(min_replicas=0)["initial_replicas"] == 1
    assert "initial_replicas" not in config_of(min_replicas=2)


@pytest.mark.parametrize(
    ("autoscaling", "engine", "message"),
    [
        ({"policy": "kv_cahce"}, {}, r"autoscaling\.policy is 'kv_cahce'.* Did you mean 'kv_cache'\?"),
        (
            {"policy": "cpu"},
            {},
            r"does not exist\. Known: kv_cache, ongoing_requests, ttft, waiting_requests\.",
        ),
        (
            {"policy": "kv_cache", "policy_target": 70},
            {},
            r"policy_target is 70, but kv_cache counts the share .* Set it to 1 or less \(default 0\.7\)",
        ),
        ({"policy_target": 8}, {}, r"policy_target is 8, .* target_ongoing_requests\. Set that instead"),
        (
            {"target_ongoing_requests": 512},
            {},
            r"512, but one replica never holds more than 512 .* Lower it",
        ),
        ({"policy": "ttft"}, {"disable_log_stats": True}, r"disable_log_stats is true, .* 'ttft' follows"),
    ],
)
def test_what_could_never_scale_is_refused(autoscaling: dict[str, Any], engine: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        config_of(engine=engine, **autoscaling)
