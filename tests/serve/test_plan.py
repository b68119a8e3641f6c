"""What a serve spec becomes: the application for Serve, vLLM's arguments, the replica's reservation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.core.config import load_spec
from runtime.core.errors import ConfigError
from serve_apps.plan import ServePlan, plan_serve
from serve_apps.spec import ServeSpec
from storage.store import Store
from tests.inventories import nodes

LAPTOP = {"CPU": 2.0}
ONE_GPU = {"CPU": 16.0, "GPU": 1.0}
EIGHT_GPUS = {"CPU": 96.0, "GPU": 8.0}


def plan(store: Store, cluster: dict[str, float], **fields: Any) -> ServePlan:
    spec = load_spec(ServeSpec, {"name": "assistant", "model": "tiny", **fields})
    return plan_serve(spec, store=store, inventory=nodes(cluster))


def test_the_application_names_no_path_but_the_store_and_pins_the_version(with_model: Store):
    application = plan(with_model, LAPTOP, engine={"max_model_len": 512}).application()
    assert application == {
        "name": "assistant",
        "route_prefix": "/assistant",
        "import_path": "serve_apps.build:build_app",
        "args": {
            "name": "assistant",
            "model": "tiny/v1",
            "engine": {"max_model_len": 512},
            "adapters": {},
            "auth": "keys",
            "keys": None,
            "routing": "least_requests",
            "wake_timeout_s": 600.0,
            "max_ongoing_requests": 256,
            "max_queued_requests": 256,
            "graceful_shutdown_timeout_s": 60.0,
            "health_check_timeout_s": 60.0,
            "log_requests": True,
            "log_prompts": False,
            "autoscaling": {
                "min_replicas": 1,
                "max_replicas": 4,
                "target_ongoing_requests": 32.0,
                "upscale_delay_s": 30.0,
                "downscale_delay_s": 600.0,
                "policy": "ongoing_requests",
                "policy_target": None,
            },
            "resources": {"cpus": 0.5, "gpus": 0.0, "accelerator_type": None, "memory_bytes": None},
            "memory_check": "refuse",
            "priority": "serving",
            "route_prefix": "/assistant",
            "store": with_model.uri,
        },
    }


def test_planning_the_resolved_spec_again_changes_nothing(with_model: Store):
    first = plan(with_model, ONE_GPU, engine={"seed": 7})
    sent = json.loads(json.dumps(first.application()["args"]))
    again = plan_serve(load_spec(ServeSpec, sent), store=with_model, inventory=nodes(ONE_GPU))
    assert again == first


def test_a_plan_survives_json(with_model: Store):
    planned = plan(with_model, EIGHT_GPUS, engine={"tensor_parallel_size": 4})
    assert load_spec(ServePlan, json.loads(planned.to_json())) == planned


def test_clients_may_send_the_name_or_the_version(with_model: Store):
    assert plan(with_model, LAPTOP).served_model_name == ["assistant", "tiny/v1"]


def test_a_burst_starts_as_many_replicas_as_fit_but_four_at_most(with_model: Store):
    def most(cluster: dict[str, float], **autoscaling: int) -> int | None:
        return plan(with_model, cluster, autoscaling=autoscaling).spec.autoscaling.max_replicas

    assert [most(LAPTOP), most(ONE_GPU), most(EIGHT_GPUS)] == [4, 2, 4]
    assert most(EIGHT_GPUS, min_replicas=6) == 6 and most(LAPTOP, max_replicas=9) == 9


def test_an_open_app_is_refused_where_others_could_reach_it(with_model: Store):
    spec = load_spec(ServeSpec, {"name": "assistant", "model": "tiny", "auth": "none"})
    with pytest.raises(ConfigError, match=r"auth is 'none', but Serve listens at 0\.0\.0\.0"):
        plan_serve(spec, store=with_model, inventory=nodes(LAPTOP), http_host=None)


def test_the_fronts_name_and_an_unknown_policy_are_refused_before_anything_is_deployed(with_model: Store):
    with pytest.raises(ConfigError, match="name is 'tandem-front'"):
        plan_serve(
            load_spec(ServeSpec, {"name": "tandem-front", "model": "tiny"}),
            store=with_model,
            inventory=nodes(LAPTOP),
        )
    with pytest.raises(ConfigError, match=r"autoscaling\.policy.*'waiting_request'.*'waiting_requests'"):
        plan(with_model, LAPTOP, autoscaling={"policy": "waiting_request"})


def test_a_route_may_have_several_parts(with_model: Store):
    assert plan(with_model, LAPTOP, route_prefix="/x/y").application()["route_prefix"] == "/x/y"


def test_gpus_follow_the_cluster_unless_they_are_set(with_model: Store):
    assert plan(with_model, LAPTOP).ray_actor_options == {"num_cpus": 0.5, "num_gpus": 0}
    assert plan(with_model, ONE_GPU).ray_actor_options == {"num_cpus": 0.5, "num_gpus": 0.5}
    assert plan(with_model, EIGHT_GPUS).ray_actor_options == {"num_cpus": 0.5, "num_gpus": 1}
    assert plan(with_model, EIGHT_GPUS, resources={"gpus": 0}).ray_actor_options["num_gpus"] == 0


def test_tensor_parallelism_multiplies_the_gpus_and_keeps_the_workers_in_the_replica(with_model: Store):
    planned = plan(with_model, EIGHT_GPUS, engine={"tensor_parallel_size": 4})
    assert planned.ray_actor_options["num_gpus"] == 4
    assert planned.engine == {"distributed_executor_backend": "mp", "tensor_parallel_size": 4}


def test_a_share_of_a_gpu_bounds_what_vllm_takes(with_model: Store):
    assert plan(with_model, ONE_GPU).engine["gpu_memory_utilization"] == pytest.approx(0.45)
    lower = plan(with_model, ONE_GPU, engine={"gpu_memory_utilization": 0.3})
    assert lower.engine["gpu_memory_utilization"] == 0.3
    assert "gpu_memory_utilization" not in plan(with_model, EIGHT_GPUS).engine


def test_on_cpu_the_engine_is_quick_to_start_and_leaves_cores_to_a_trainer(with_model: Store):
    planned = plan(with_model, LAPTOP)
    assert (planned.engine["enforce_eager"], planned.engine["kv_cache_memory_bytes"]) == (True, 1 << 30)
    assert (planned.env_vars["OMP_NUM_THREADS"], planned.env_vars["VLLM_CPU_OMP_THREADS_BIND"]) == (
        "1",
        "nobind",
    )
    four = plan(with_model, EIGHT_GPUS, resources={"cpus": 9, "gpus": 0}, engine={"tensor_parallel_size": 2})
    assert (four.env_vars["OMP_NUM_THREADS"], four.engine["distributed_executor_backend"]) == ("4", "mp")
    assert plan(with_model, LAPTOP, engine={"pipeline_parallel_size": 2}).engine["enforce_eager"] is False


def test_a_replica_larger_than_a_node_is_spread_over_nodes_its_own_process_beside_its_first_worker(
    with_model: Store,
):
    spec = load_spec(
        ServeSpec,
        {"name": "a", "model": "tiny", "engine": {"tensor_parallel_size": 8, "pipeline_parallel_size": 2}},
    )
    four_nodes = nodes(*[{"CPU": 16.0, "GPU": 8.0}] * 4)
    planned = plan_serve(spec, store=with_model, inventory=four_nodes)
    assert planned.engine["distributed_executor_backend"] == "ray"
    worker = {"GPU": 1, "accelerator_type:A100": 0.001}
    assert planned.placement_group_bundles == [{"CPU": 0.5, **worker}, *[worker] * 15]
    assert planned.ray_actor_options == {"num_cpus": 0.5, "num_gpus": 0}
    assert planned.reserved == {"CPU": 0.5, "GPU": 16} and planned.spec.autoscaling.max_replicas == 2
    on_one = plan_serve(spec, store=with_model, inventory=nodes(*[{"CPU": 32.0, "GPU": 16.0}] * 2))
    assert (on_one.engine["distributed_executor_backend"], on_one.placement_group_bundles) == ("mp", [])
    assert on_one.reserved == {"CPU": 0.5, "GPU": 16}


def test_a_replica_over_nodes_takes_no_adapters(with_model: Store):
    engine = {"tensor_parallel_size": 8, "enable_lora": True}
    spec = load_spec(ServeSpec, {"name": "a", "model": "tiny", "engine": engine})
    with pytest.raises(ConfigError, match=r"engine\.enable_lora is set, but .* 8 workers on several nodes"):
        plan_serve(spec, store=with_model, inventory=nodes(*[{"CPU": 48.0, "GPU": 4.0}] * 2))


def test_all_workers_on_one_node_is_refused_where_no_node_holds_them(with_model: Store):
    engine = {"tensor_parallel_size": 8, "distributed_executor_backend": "mp"}
    spec = load_spec(ServeSpec, {"name": "a", "model": "tiny", "engine": engine})
    with pytest.raises(
        ConfigError, match=r"'mp', all workers on one node.*has 8 and the largest node 4 GPUs"
    ):
        plan_serve(spec, store=with_model, inventory=nodes(*[{"CPU": 48.0, "GPU": 4.0}] * 2))


def test_what_the_user_says_wins_over_the_defaults(with_model: Store):
    said = {"enforce_eager": False, "kv_cache_memory_bytes": 1 << 28, "distributed_executor_backend": "mp"}
    assert plan(with_model, LAPTOP, engine=said).engine == said


@pytest.mark.parametrize(
    ("cluster", "fields", "message"),
    [
        (LAPTOP, {"model": "tinny"}, r"model is 'tinny', but .* Did you mean 'tiny'\?"),
        (LAPTOP, {"resources": {"cpus": 3}}, r"resources\.cpus is 3: 3 CPUs, but the whole cluster has 2\."),
        (
            LAPTOP,
            {"resources": {"cpus": 1}, "autoscaling": {"min_replicas": 3, "max_replicas": 3}},
            r"resources\.cpus is 1 times autoscaling\.min_replicas \(3\): 3 CPUs, but .* has 2\.",
        ),
        (LAPTOP, {"resources": {"gpus": 0.5}}, r"resources\.gpus .* is 0\.5: 0\.5 GPUs, but .* has 0\."),
        (EIGHT_GPUS, {"engine": {"tensor_parallel_size": 3}}, r"engine\.tensor_parallel_size is 3, which "
            r"does not divide the 8 attention heads of tiny/v1\. Set it to one of 1, 2, 4, 8\."),
        (EIGHT_GPUS, {"engine": {"tensor_parallel_size": 0}}, r"engine\.tensor_parallel_size is 0\."),
        (EIGHT_GPUS, {"engine": {"tensor_parallel_size": 8, "pipeline_parallel_size": 2}}, r"is 16: 16 GPUs, "
            r"but the whole cluster has 8\."),
        (ONE_GPU, {"engine": {"gpu_memory_utilization": 0.6}}, r"engine\.gpu_memory_utilization is 0\.6 but "
            r"resources\.gpus is 0\.5.*Lower gpu_memory_utilization to 0\.5 or less"),
        (EIGHT_GPUS, {"resources": {"gpus": 0.5}, "engine": {"tensor_parallel_size": 2}}, r"resources\.gpus "
            r"is 0\.5 but the replica has 2 workers.*Set resources\.gpus: 1\."),
        (LAPTOP, {"engine": {"pipeline_parallel_size": 2, "enforce_eager": True}}, r"enforce_eager is true.*"
            r"pipeline_parallel_size 2\. Leave it out\."),
        (ONE_GPU, {"engine": {"distributed_executor_backend": "ray"}}, r"whole GPU.*resources\.gpus is 0\.5"),
    ],
)  # fmt: skip
def test_what_can_never_work_is_refused(with_model: Store, cluster: dict, fields: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        plan(with_model, cluster, **fields)


def test_a_reward_model_is_refused_with_what_it_is(with_model: Store, tmp_path: Path):
    with with_model.model("tiny").fetch() as folder:
        with_model.publish_model(folder.path, "judge", stage="rm", finetuning_type="full")
    with pytest.raises(ConfigError, match=r"model is 'judge/v1', a reward model \(stage: rm\)"):
        plan(with_model, LAPTOP, model="judge")
