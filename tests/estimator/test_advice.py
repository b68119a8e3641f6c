"""What to write otherwise so that it fits."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from cluster.estimator.advice import Change, Way, ways_to_fit
from cluster.estimator.device import Device, host_memory, share_of
from cluster.estimator.planned import fault
from cluster.gpus import catalogue, find
from runtime.core.config import load_spec
from serve_apps.arguments import faults as engine_faults
from serve_apps.estimate import ServeEstimate, estimate_serve
from serve_apps.quantization import can_compute
from tests.estimator.models import (
    LLAMA_2_7B,
    LLAMA_2_13B,
    LLAMA_2_70B,
    LLAMA_3_8B,
    QWEN3_06B,
    QWEN25_3B,
    llama,
    model_of,
    packed,
    shapes_of,
)
from train_jobs import deepspeed_presets
from train_jobs.advice import Draft
from train_jobs.arguments import faults as llamafactory_faults
from train_jobs.estimate import TrainEstimate, estimate_train, on_nodes
from train_jobs.plan_memory import memory_faults
from train_jobs.spec import TrainSpec

GIB = 1 << 30
FULL = {"finetuning_type": "full", "bf16": True}
LORA = {"finetuning_type": "lora", "bf16": True, "per_device_train_batch_size": 1}


def less(amount: int, *, at_least: int = 0) -> Change[int]:
    """Takes so much off a number, where it is large enough."""
    return Change(f"-{amount}", lambda n: n - amount if n > at_least else None)


def ways(start: int, changes: list[Change[int]], available: int) -> list[tuple[tuple[str, ...], int]]:
    found = ways_to_fit(start, changes, lambda n: n, lambda n: max(0, n - available))
    return [(way.changes, way.needed_bytes) for way in found]


def test_each_change_that_is_enough_is_a_way_and_the_cheapest_is_first():
    assert ways(100, [less(10), less(30), less(25), less(60)], 75) == [
        (("-30",), 70), (("-25",), 75), (("-60",), 40),
    ]  # fmt: skip
    assert len(ways(100, [less(n) for n in range(50, 70)], 75)) == 4, "more than anyone reads"


def test_together_changes_are_taken_in_their_order_without_those_that_were_not_needed():
    assert ways(100, [less(1), less(40), less(30), less(20)], 35) == [(("-40", "-30"), 30)]
    assert ways(100, [less(10), less(10), less(50)], 30) == [(("-10", "-10", "-50"), 30)]


def test_of_one_kind_the_first_that_is_enough_is_named():
    gpus = [Change(f"{n} GPUs", lambda size, n=n: size // n, kind="gpus") for n in (2, 4, 8)]
    assert ways(100, [*gpus, less(90)], 30) == [(("4 GPUs",), 25), (("-90",), 10)]


def test_a_change_that_cannot_be_is_not_named():
    assert ways(100, [less(90, at_least=100), less(30), less(40)], 30) == [(("-30", "-40"), 30)]


def test_a_change_that_makes_it_worse_is_left_out():
    assert ways(100, [Change("double", lambda n: 2 * n), less(35), less(35)], 30) == [(("-35", "-35"), 30)]


def test_where_all_changes_together_are_too_little_there_is_no_way():
    assert ways(100, [less(10), less(20)], 60) == []
    assert ways(100, [], 60) == []


def card(name: str, share: float = 1.0) -> Device:
    gpu = find(name)
    assert gpu
    return share_of(gpu, share)


def train(
    config: dict[str, Any], arguments: dict[str, Any], device: Device, *,
    deepspeed: str | None = None, num_workers: int = 1, most_gpus: int = 1,
) -> TrainEstimate:  # fmt: skip
    draft = Draft(arguments, deepspeed_presets.resolve(deepspeed), num_workers)
    return estimate_train(
        draft, model=model_of(config), device=device, workers_per_node=num_workers, most_gpus=most_gpus
    )


def serve(
    config: dict[str, Any], engine: dict[str, Any], device: Device, most_gpus: int = 1
) -> ServeEstimate:
    return estimate_serve(engine, model=model_of(config), device=device, most_gpus=most_gpus)


def said(found: TrainEstimate | ServeEstimate) -> list[str]:
    return [str(way) for way in found.ways]


def test_a_batch_is_made_smaller_before_anything_else():
    """16 rows of Llama-3-8B make 47 GiB of logits; the global batch stays."""
    found = train(LLAMA_3_8B, LORA | {"per_device_train_batch_size": 16}, card("L40S"))
    assert found.fits is False
    assert said(found)[0] == (
        "llamafactory.per_device_train_batch_size: 1 with gradient_accumulation_steps: 16"
    )
    assert all(way.needed_bytes <= (found.device.available_bytes or 0) for way in found.ways)


def test_gradient_checkpointing_is_switched_on_again_first():
    found = train(LLAMA_3_8B, LORA | {"disable_gradient_checkpointing": True}, card("RTX-4090"))
    assert said(found)[0] == "llamafactory.disable_gradient_checkpointing: false"


def test_a_half_card_is_made_a_whole_one_first():
    found = train(LLAMA_2_7B, LORA, card("RTX-4090", 0.5))
    assert said(found)[0] == "scaling.gpus_per_worker: 1"
    served = serve(LLAMA_2_7B, {"max_model_len": 4096}, card("RTX-4090", 0.5))
    assert said(served)[0] == "resources.gpus: 1"
    assert "gpus_per_worker" not in " ".join(said(train(LLAMA_2_7B, LORA, card("RTX-4070"))))


def test_full_training_of_a_7b_model_on_one_a100_takes_offloading_or_an_adapter():
    found = train(LLAMA_2_7B, FULL | {"per_device_train_batch_size": 1}, card("A100-SXM4-80GB"))
    assert said(found) == [
        "deepspeed: zero2-offload",
        "deepspeed: zero3-offload",
        "llamafactory.finetuning_type: lora",
        "llamafactory.finetuning_type: lora with llamafactory.quantization_bit: 4",
    ]


def test_a_row_is_made_as_short_as_it_must_be_and_no_shorter():
    """32,768 tokens of 151,936 words are 56 GiB of logits."""
    for cutoff_len in (32768, 16384):
        found = train(QWEN25_3B, LORA | {"cutoff_len": cutoff_len}, card("RTX-4090"))
        assert (found.fits, said(found)) == (False, ["llamafactory.cutoff_len: 8192"])


def test_more_workers_are_named_as_many_as_there_are():
    recipe = LORA | {"cutoff_len": 512}
    words = {most: said(train(LLAMA_2_13B, recipe, card("RTX-4080"), most_gpus=most)) for most in (1, 2, 8)}
    assert "scaling.num_workers: 4 with deepspeed: zero3" in words[8]
    assert "num_workers" not in " ".join([*words[1], *words[2]]), "two are too few"


def test_several_changes_together_where_none_alone_is_enough():
    """Eight rows of 2,048 tokens of Qwen2.5-3B on 6 GB: neither fewer rows nor 4 bits alone."""
    found = train(QWEN25_3B, LORA | {"per_device_train_batch_size": 8}, card("RTX-A2000-6GB"))
    (way,) = found.ways
    assert "llamafactory.per_device_train_batch_size: 1 with gradient_accumulation_steps: 8" in way.changes
    assert len(way.changes) > 1
    assert way.needed_bytes <= (found.device.available_bytes or 0)


QWEN25_7B = llama(3584, 18944, 28, 28, context=32768, num_key_value_heads=4, vocab_size=152_064)
EVALUATES = {"val_size": 0.1, "eval_strategy": "steps"}


def test_an_evaluation_that_does_not_fit_is_made_row_by_row():
    """Seen of a 7B model's adapter on a 24 GB card: it trained, and ran out of memory when it evaluated."""
    assert train(QWEN25_7B, LORA, card("L4")).fits is True
    found = train(QWEN25_7B, LORA | EVALUATES, card("L4"))
    assert found.fits is False
    assert said(found)[0] == "llamafactory.per_device_eval_batch_size: 1"
    (line,) = memory_faults(found)
    assert line.startswith("memory: each worker, while it evaluates, needs 40.")
    row_by_row = LORA | EVALUATES | {"per_device_eval_batch_size": 1}
    assert train(QWEN25_7B, row_by_row, card("L4")).fits is True
    shorter = train(QWEN25_7B, row_by_row | {"cutoff_len": 16384}, card("L4"))
    assert shorter.fits is False
    assert "eval_batch" not in " ".join(said(shorter)), "there is one row already"


def test_a_change_that_is_of_no_use_until_another_is_made_is_tried_again():
    """The training needs most, then the evaluation: rows of an evaluation help only once that is so."""
    arguments = LORA | EVALUATES | {"per_device_train_batch_size": 8}
    found = train(QWEN25_7B, arguments, card("L4"))
    assert found.estimate.peak != "evaluation"
    (way,) = found.ways
    assert set(way.changes) == {
        "llamafactory.per_device_train_batch_size: 1 with gradient_accumulation_steps: 8",
        "llamafactory.per_device_eval_batch_size: 1",
    }


def test_nothing_makes_70b_fit_on_a_laptop_cpu():
    found = train(LLAMA_2_70B, LORA, host_memory(8 * GIB))
    assert (found.fits, found.ways) == (False, [])


@pytest.mark.parametrize(
    ("config", "device"),
    [
        (QWEN25_3B, host_memory(6 * GIB)),
        (LLAMA_2_7B, host_memory(20 * GIB)),
        (QWEN3_06B, host_memory(3 * GIB)),
    ],
)
def test_on_cpu_neither_4_bits_nor_8_bit_optimizers_are_named(config: dict[str, Any], device: Device):
    found = train(config, FULL, device)
    assert found.fits is False
    assert not re.search("quantization_bit|8bit|num_workers|gpus_per_worker", " ".join(said(found)))


def test_with_zero_3_4_bits_are_not_named():
    for preset in ("zero3", "zero3-offload"):
        found = train(LLAMA_2_70B, LORA, card("A100-SXM4-80GB"), deepspeed=preset, num_workers=1, most_gpus=8)
        assert "quantization_bit" not in " ".join(said(found))


def test_with_4_bits_neither_zero_3_nor_more_workers_are_named():
    found = train(LLAMA_2_70B, LORA | {"quantization_bit": 4}, card("RTX-4090"), num_workers=2, most_gpus=8)
    assert found.fits is False
    assert not re.search("zero3|num_workers", " ".join(said(found)))


def fields(words: str) -> dict[str, Any]:
    """``deepspeed: zero2 and llamafactory.optim: adamw_8bit`` as the fields of a spec."""
    made: dict[str, Any] = {}
    before = ""
    for part in re.split(r" and | with ", words):
        name, value = part.split(": ")
        if "." not in name and name not in TrainSpec.model_fields:
            name = f"{before}.{name}"  # beside the one that was named first
        before = name.split(".")[0]
        parsed: Any = int(value) if value.isdigit() else {"true": True, "false": False}.get(value, value)
        at = made
        *folders, last = name.split(".")
        for folder in folders:
            at = at.setdefault(folder, {})
        at[last] = parsed
    return made


@pytest.mark.parametrize("device", ["RTX-4090", "L4", "RTX-4070", "RTX-A2000-6GB"])
@pytest.mark.parametrize(
    "arguments",
    [
        FULL | {"disable_gradient_checkpointing": True},
        FULL | {"cutoff_len": 8192},
        LORA | {"cutoff_len": 32768},
    ],
)
def test_what_is_advised_can_be_written_into_a_train_spec(device: str, arguments: dict[str, Any]):
    found = train(QWEN25_3B, arguments, card(device), num_workers=2, most_gpus=8)
    assert found.ways
    for way in said(found):
        written = fields(way)
        spec = load_spec(TrainSpec, {"name": "t", "model": "m", "dataset": "d"} | written)
        assert llamafactory_faults(spec.llamafactory) == []
        if "deepspeed" in written:
            assert spec.deepspeed in deepspeed_presets.names()


def test_a_spec_that_follows_the_advice_fits():
    device = card("RTX-4090")
    found = train(LLAMA_2_13B, LORA, device)
    assert "llamafactory.finetuning_type: lora with llamafactory.quantization_bit: 4" in said(found)
    again = train(LLAMA_2_13B, LORA | {"quantization_bit": 4}, device)
    assert again.fits is True
    assert again.estimate.device_bytes in [way.needed_bytes for way in found.ways]


def test_a_shorter_context_is_the_first_advice_and_is_as_long_as_can_be():
    config = LLAMA_3_8B | {"max_position_embeddings": 131072}
    found = serve(config, {}, card("RTX-4090"))
    words = said(found)[0]
    length = int(words.removeprefix("engine.max_model_len: "))
    assert length % 256 == 0
    assert serve(config, {"max_model_len": length}, card("RTX-4090")).fits is True
    assert serve(config, {"max_model_len": length + 512}, card("RTX-4090")).fits is False


def test_more_gpus_are_named_where_there_are_some_that_divide_the_heads():
    heads = {
        n: LLAMA_2_7B | {"num_attention_heads": n, "num_key_value_heads": n, "head_dim": 128}
        for n in (12, 18)
    }
    words = {n: said(serve(config, {}, card("RTX-3080"), most_gpus=8)) for n, config in heads.items()}
    assert "engine.tensor_parallel_size: 2" in words[12] and "engine.tensor_parallel_size: 2" in words[18]
    small = {n: " ".join(said(serve(c, {}, card("RTX-A2000-6GB"), most_gpus=8))) for n, c in heads.items()}
    assert "tensor_parallel_size: 4" in small[12]
    assert "tensor_parallel_size: 4" not in small[18] and "tensor_parallel_size: 8" not in small[12]
    assert "tensor_parallel" not in " ".join(said(serve(heads[12], {}, card("RTX-3080"), most_gpus=1)))


@pytest.mark.parametrize(("config", "product"), [(LLAMA_2_70B, "L40S"), (LLAMA_2_13B, "RTX-4080")])
def test_weights_in_4_bits_are_advised_where_8_are_too_many(config: dict[str, Any], product: str):
    found = serve(config, {}, card(product))
    assert "engine.quantization: mxfp4" in " ".join(said(found)) and "fp8" not in " ".join(said(found))
    assert serve(config, fields(said(found)[0])["engine"], card(product)).fits is True
    of_8 = serve(config, {"quantization": "fp8"}, card(product))
    assert "engine.quantization: mxfp4" in " ".join(said(of_8)), "instead of 8"
    of_4 = serve(LLAMA_2_70B, {"quantization": "mxfp4"}, card("RTX-4060"))
    assert "quantization" not in " ".join(said(of_4))


def test_4_bits_are_advised_together_with_other_changes_too():
    config = LLAMA_2_70B | {"max_position_embeddings": 32768}
    found = serve(config, {}, card("L40S"))
    (way,) = said(found)
    assert "engine.quantization: mxfp4" in way and "quantization: fp8" not in way and " and " in way
    assert serve(config, fields(way)["engine"], card("L40S")).fits is True


@pytest.mark.parametrize(
    ("product", "quantization", "cache"),
    [
        # vLLM's Fp8Config starts from compute capability 7.5 on, FlashInfer and Triton from 8.0.
        ("V100-SXM2-16GB", None, False), ("T4", "fp8", False), ("RTX-A4000", "fp8", True),
    ],
)  # fmt: skip
def test_only_what_a_card_can_compute_is_advised(product: str, quantization: str | None, cache: bool):
    words = " ".join(said(serve(LLAMA_2_7B, {}, card(product))))
    assert (f"engine.quantization: {quantization}" in words) is (quantization is not None)
    assert quantization or "quantization" not in words
    long = said(
        serve(LLAMA_3_8B | {"max_position_embeddings": 49152}, {"quantization": "fp8"}, card(product))
    )
    assert ("engine.kv_cache_dtype: fp8" in " ".join(long)) is cache


def test_of_every_product_it_is_known_what_it_can_compute():
    assert all(can_compute(gpu, 60) for gpu in catalogue())


def test_what_was_tried_is_not_called_all_there_is():
    said_then = fault("each worker", 80 * GIB, card("L4"), [])
    assert "No change that was tried makes it fit" in said_then


def test_what_is_quantized_already_is_not_quantized_again():
    def awq(name: str, shape: list[int]) -> dict[str, tuple[str, list[int]]]:
        return {f"{name}.qweight": ("I32", [shape[1], shape[0] // 8])}

    config = LLAMA_2_70B | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    model = model_of(config, packed(shapes_of(config), awq))
    found = estimate_serve({}, model=model, device=card("RTX-4090"), most_gpus=8)
    assert said(found)
    assert "quantization" not in " ".join(said(found))


@pytest.mark.parametrize("product", ["RTX-4090", "L4", "RTX-4060", "RTX-A2000-6GB"])
def test_what_is_advised_can_be_written_into_a_serve_spec(product: str):
    config = LLAMA_3_8B | {"max_position_embeddings": 131072}
    found = serve(config, {}, card(product), most_gpus=8)
    assert found.ways
    for way in said(found):
        assert engine_faults(fields(way)["engine"]) == []
        assert serve(config, fields(way)["engine"], card(product), most_gpus=8).fits is True


def test_on_cpu_an_engine_is_only_told_to_have_a_shorter_context():
    config = QWEN3_06B | {"max_position_embeddings": 40960}
    found = serve(config, {}, host_memory(4 * GIB))
    (way,) = said(found)
    length = int(way.removeprefix("engine.max_model_len: "))
    assert 1024 <= length < 40960
    assert serve(config, {"max_model_len": length}, host_memory(4 * GIB)).fits is True


def test_an_engine_that_takes_less_of_its_card_than_it_holds_is_told_to_take_more():
    found = serve(LLAMA_3_8B, {"max_model_len": 8192, "gpu_memory_utilization": 0.1}, card("A100-SXM4-80GB"))
    assert said(found)[0] == "engine.gpu_memory_utilization: 0.23"
    for utilization, fits in ((0.23, True), (0.22, False)):
        engine = {"max_model_len": 8192, "gpu_memory_utilization": utilization}
        assert serve(LLAMA_3_8B, engine, card("A100-SXM4-80GB")).fits is fits


def test_a_larger_share_is_named_with_the_utilization_that_would_keep_it_small():
    engine = {"max_model_len": 4096, "gpu_memory_utilization": 0.3}
    found = serve(LLAMA_2_7B, engine, card("RTX-4090", 0.5))
    assert said(found)[0] == "resources.gpus: 1 with engine.gpu_memory_utilization: 0.69"
    assert serve(LLAMA_2_7B, engine | {"gpu_memory_utilization": 0.69}, card("RTX-4090")).fits is True


def test_on_cpu_more_of_the_nodes_memory_is_the_first_advice_where_the_node_has_it():
    def of(node_gib: int) -> list[str]:
        found = estimate_serve(
            {"max_model_len": 2048}, model=model_of(QWEN3_06B), device=host_memory(2 * GIB), most_gpus=0,
            node_bytes=node_gib * GIB,
        )  # fmt: skip
        return said(found)

    field, size = of(8)[0].split(": ")
    assert field == "resources.memory_bytes"
    enough = host_memory(int(size.removesuffix("MiB")) << 20)
    assert estimate_serve({"max_model_len": 2048}, model=model_of(QWEN3_06B), device=enough, most_gpus=0).fits
    assert "memory_bytes" not in " ".join(of(2))


def test_nobody_without_a_gpu_is_told_to_choose_a_larger_one():
    on_cpu = fault("each worker", 8 * GIB, host_memory(4 * GIB), [])
    assert "GPU" not in on_cpu
    assert "resources.memory_bytes" in on_cpu and "scaling.memory_bytes_per_worker" in on_cpu
    assert "choose a larger GPU" in fault("each worker", 80 * GIB, card("L4"), [])


def test_what_is_offloaded_must_fit_into_the_nodes_memory():
    arguments = FULL | {"per_device_train_batch_size": 1}
    found = train(LLAMA_3_8B, arguments, card("H100-SXM5-80GB"), deepspeed="zero3-offload", num_workers=8)
    assert found.fits is True
    there = on_nodes(found, 60 * GIB)
    assert there.fits is False and there.host_short_bytes > 0
    assert "8 workers need" in there.verdict and "60.0 GiB" in there.verdict
    assert there.ways and "offload" not in " ".join(said(there)), "what is advised fits there, too"
    assert on_nodes(found, 1 << 40).fits is True


def test_what_is_offloaded_to_a_disk_needs_no_memory_of_its_node():
    """On one worker AdamW's states and two more copies of 8 billion parameters in 32 bits: 120 GiB."""

    def on_a_small_node(device: str) -> bool | None:
        offload = {"device": device, "nvme_path": "/scratch", "buffer_count": 4}
        zero = {"stage": 3, "offload_optimizer": offload, "sub_group_size": 100_000_000}
        draft = Draft(FULL | {"per_device_train_batch_size": 1}, {"zero_optimization": zero}, 1)
        return estimate_train(
            draft, model=model_of(LLAMA_3_8B), device=card("H100-SXM5-80GB"), workers_per_node=1,
            most_gpus=1, node_bytes=64 * GIB,
        ).fits  # fmt: skip

    assert (on_a_small_node("cpu"), on_a_small_node("nvme")) == (False, True)


def test_offloading_is_not_advised_to_a_node_without_the_memory():
    arguments = FULL | {"per_device_train_batch_size": 1}
    found = train(LLAMA_2_7B, arguments, card("A100-SXM4-80GB"))
    assert "deepspeed: zero2-offload" in said(found)
    assert "offload" in " ".join(said(on_nodes(found, 512 * GIB)))
    elsewhere = replace(found, ways=[Way(("scaling.accelerator_type: B200",), 1), *found.ways])
    plan = said(on_nodes(elsewhere, 32 * GIB))
    assert plan[0] == "scaling.accelerator_type: B200" and "offload" not in " ".join(plan)
    tight = estimate_train(
        found.draft, model=model_of(LLAMA_2_7B), device=card("A100-SXM4-80GB"), workers_per_node=1,
        most_gpus=1, node_bytes=32 * GIB,
    )  # fmt: skip
    assert tight.ways and "offload" not in " ".join(said(tight))
