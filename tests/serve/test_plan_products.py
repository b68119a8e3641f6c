"""On which GPUs an app's replicas are, and what of an app no card or node of the cluster can hold."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.inventory import Card, Inventory
from runtime.core.config import load_spec
from runtime.core.errors import ConfigError
from serve_apps.build import deploy, free_for
from serve_apps.plan import ServePlan, plan_serve
from serve_apps.request import request
from serve_apps.spec import ServeSpec
from storage.store import Store
from tests.estimator.models import LLAMA_3_8B, llama, shapes_of, write_headers
from tests.inventories import GIB, nodes

QWEN_32B = llama(5120, 25600, 64, 64, context=40960, num_key_value_heads=8, vocab_size=151936, head_dim=128)
L4 = {"CPU": 64.0, "GPU": 1.0, "accelerator_type:L4": 1.0}
H100S = {"CPU": 64.0, "GPU": 8.0, "accelerator_type:H100": 1.0}
A100S = {"CPU": 64.0, "GPU": 4.0, "accelerator_type:A100": 1.0}
UNKNOWN = {"CPU": 64.0, "GPU": 4.0, "accelerator_type:MI300X": 1.0}


@pytest.fixture(autouse=True)
def models(store: Store, tmp_path: Path) -> None:
    """Llama-3-8B and a model of 32 billion parameters, without their weights."""
    for name, config in (("small", LLAMA_3_8B | {"max_position_embeddings": 8192}), ("large", QWEN_32B)):
        store.publish_model(write_headers(tmp_path / name, config, shapes_of(config)), name)


def plan(store: Store, model: str, inventory: Inventory, **fields: Any) -> ServePlan:
    given = {"name": "app", "model": model, "engine": {"max_model_len": 2048}} | fields
    return plan_serve(load_spec(ServeSpec, given), store=store, inventory=inventory)


def refusal(store: Store, model: str, inventory: Inventory, **fields: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        plan(store, model, inventory, **fields)
    return str(refused.value)


def read(inventory: Inventory, product: str, gib: int) -> Inventory:
    """The same after NVML was read."""
    return Inventory.of(
        replace(
            node, cards=tuple(Card(one.index, gib * GIB, product, f"GPU-{one.index}") for one in node.cards)
        )
        for node in inventory.nodes
    )


def test_an_app_for_the_large_a100_is_planned_until_nvml_says_that_it_is_the_small_one(store: Store):
    cluster = nodes(A100S)
    planned = plan(store, "large", cluster)
    assert planned.memory and planned.memory.on_card > 60 * GIB
    assert plan(store, "large", read(cluster, "NVIDIA A100-SXM4-80GB", 80)).accelerator_type == "A100"
    said = refusal(store, "large", read(cluster, "NVIDIA A100-SXM4-40GB", 40))
    assert "(0.92 of NVIDIA A100-SXM4-40GB)" in said


def test_replicas_are_on_the_product_with_the_smallest_cards_that_holds_them(store: Store):
    mixed = nodes(H100S, L4)
    assert plan(store, "small", mixed).accelerator_type == "L4"
    large = plan(store, "large", mixed)
    assert large.accelerator_type == "H100"
    assert large.memory and "H100" in large.memory.device
    assert large.spec.autoscaling.max_replicas == 4
    # Two replicas do not fit on the one L4, nor do those that a burst may start.
    assert plan(store, "small", mixed, autoscaling={"min_replicas": 2}).accelerator_type == "H100"
    assert plan(store, "small", mixed, autoscaling={"max_replicas": 3}).accelerator_type == "H100"
    # Of what nobody knows comes last.
    assert plan(store, "large", nodes(UNKNOWN, H100S)).accelerator_type == "H100"
    assert plan(store, "large", nodes(UNKNOWN, L4)).accelerator_type == "MI300X"


def test_a_product_that_holds_a_replica_on_one_node_comes_before_one_that_does_not(store: Store):
    engine = {"max_model_len": 2048, "tensor_parallel_size": 2}
    planned = plan(store, "small", nodes(H100S, L4, L4), engine=engine)
    assert (planned.accelerator_type, planned.placement_group_bundles) == ("H100", [])
    assert plan(store, "small", nodes(L4, L4), engine=engine).placement_group_bundles
    two_on_a_node = {**L4, "GPU": 2.0}
    assert plan(store, "small", nodes(H100S, two_on_a_node), engine=engine).accelerator_type == "L4"


def test_a_product_that_is_named_is_kept_to(store: Store):
    mixed = nodes(H100S, L4)
    assert plan(store, "small", mixed, resources={"accelerator_type": "H100"}).accelerator_type == "H100"
    said = refusal(store, "large", mixed, resources={"accelerator_type": "L4"})
    assert "(0.92 of NVIDIA L4)" in said
    assert "It fits with resources.accelerator_type: H100; or with " in said
    assert "engine.quantization: mxfp4. Where" in said
    said = refusal(store, "small", mixed, resources={"accelerator_type": "H10"})
    assert (
        "resources.accelerator_type is 'H10', which the cluster does not have. Did you mean 'H100'?" in said
    )


def test_with_any_product_the_smallest_must_do_and_the_larger_one_is_offered(store: Store):
    mixed = nodes(H100S, L4)
    anywhere = plan(store, "small", mixed, resources={"accelerator_type": "any"})
    assert (anywhere.accelerator_type, request(anywhere).accelerator_type) == (None, "any")
    assert anywhere.spec.resources.accelerator_type == "any"
    said = refusal(store, "large", mixed, resources={"accelerator_type": "any"})
    assert "It fits with resources.accelerator_type: H100; or with engine." in said


def test_what_fits_on_no_product_is_refused_with_the_numbers_of_the_largest(store: Store):
    l40s = {"CPU": 64.0, "GPU": 1.0, "accelerator_type:L40S": 1.0}
    said = refusal(store, "large", nodes(L4, l40s, L4), resources={"gpus": 0.5})
    assert "L40S" in said and "NVIDIA L4)" not in said
    # With room for its workers on no product whose cards are large enough, that is the reason.
    few = nodes({**H100S, "GPU": 1.0}, *[L4] * 3)
    said = refusal(store, "large", few, autoscaling={"min_replicas": 2})
    assert "can never have room here: 1 of 2 replicas finds a whole H100" in said


def test_an_app_is_planned_again_for_the_same_product_where_it_is_built(store: Store):
    mixed = nodes(H100S, L4)
    planned = plan(store, "large", mixed)
    # The cluster that builds the app knows its cards best, and comes to the same.
    sent = json.loads(json.dumps(planned.application()["args"]))
    assert plan_serve(load_spec(ServeSpec, sent), store=store, inventory=mixed) == planned
    small = plan(store, "small", mixed)
    sent = json.loads(json.dumps(small.application()["args"]))
    assert plan_serve(load_spec(ServeSpec, sent), store=store, inventory=mixed) == small
    assert request(planned).accelerator_type == "H100"
    assert load_spec(ServePlan, json.loads(planned.to_json())) == planned


@pytest.mark.parametrize(
    "cluster",
    [nodes({"CPU": 8.0}, memory_gib=64), nodes({"CPU": 8.0, "GPU": 2.0}, product=None, memory_gib=64)],
)
def test_without_gpus_there_is_no_product(store: Store, cluster: Inventory):
    planned = plan(store, "small", cluster)
    assert planned.accelerator_type is None
    assert request(planned).accelerator_type == "any"


def test_ray_keeps_replicas_on_the_product(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TANDEM_PYTHON_SERVE", sys.executable)
    mixed = nodes(H100S, L4)

    def pinned(model: str, **fields: Any) -> Any:
        planned = plan(store, model, mixed, **fields)
        return deploy(planned, free_resources={})._bound_deployment

    assert pinned("large").ray_actor_options["resources"] == {"accelerator_type:H100": 0.001}
    anywhere = pinned("small", resources={"accelerator_type": "any"})
    assert not anywhere.ray_actor_options["resources"]
    # Over nodes each worker's bundle asks for it, and the replica is in the first.
    engine = {"max_model_len": 2048, "tensor_parallel_size": 2, "distributed_executor_backend": "ray"}
    over_nodes = pinned("large", engine=engine)
    assert not over_nodes.ray_actor_options["resources"]
    assert over_nodes._deployment_config is not None
    worker = {"GPU": 1.0, "accelerator_type:H100": 0.001}
    assert plan(store, "large", mixed, engine=engine).placement_group_bundles == [
        {"CPU": 0.5, **worker},
        worker,
    ]


def test_in_an_update_only_room_on_the_apps_own_product_counts(store: Store):
    planned = plan(store, "large", nodes(H100S, L4))
    free = [
        {"CPU": 8.0, "GPU": 0.0, "accelerator_type:H100": 0.999},
        {"CPU": 64.0, "GPU": 1.0, "accelerator_type:L4": 1.0},
    ]
    assert free_for(planned, free) == free[0]
    on_cpu = plan(store, "small", nodes({"CPU": 8.0}, memory_gib=64))
    assert free_for(on_cpu, free)["CPU"] == 72.0


def test_an_engine_on_cpus_that_no_node_can_hold_is_refused_though_nobody_said_its_share(store: Store):
    small = nodes({"CPU": 8.0}, {"CPU": 8.0}, memory_gib=8)
    said = refusal(store, "small", small)
    assert (
        "each worker of the engine needs 16." in said and "has 8.0 GiB (CPU): it does not fit by 8." in said
    )
    larger = nodes({"CPU": 8.0}, {"CPU": 8.0, "memory": 24.0 * GIB}, memory_gib=8)
    planned = plan(store, "small", larger)
    # The node's memory is no share: nothing is reserved, and the cache is no larger for it.
    assert planned.share_bytes is None and "memory" not in planned.ray_actor_options
    assert planned.engine["kv_cache_memory_bytes"] == GIB
    assert planned.memory and planned.memory.available_bytes == 24 * GIB
    # A replica's workers are on one node.
    halves = {"max_model_len": 2048, "tensor_parallel_size": 2}
    assert "has 4.0 GiB (CPU)" in refusal(store, "small", small, engine=halves)
    assert plan(store, "small", small, memory_check="warn").memory


def test_a_cache_that_a_node_has_no_room_for_is_refused_with_what_it_has_room_for(store: Store):
    node = nodes({"CPU": 8.0}, memory_gib=16.6)
    said = refusal(store, "small", node)
    assert "(1.0 GiB, where neither it nor resources.memory_bytes is set), but of the 16.6 GiB" in said
    left = int(said.split("Lower it to ")[1].split(",")[0])
    engine = {"max_model_len": 2048, "kv_cache_memory_bytes": left}
    assert plan(store, "small", node, engine=engine).memory
