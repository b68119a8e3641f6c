"""On what it fits: the least of each product, and what users are told about sizes of models."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.estimator.device import share_of
from cluster.estimator.hardware import least_of_each, usable_bytes
from cluster.gpus import Gpu, catalogue, find
from serve_apps.estimate import estimate_serve
from serve_apps.estimate import hardware_for as served_on
from tests.estimator.models import (
    LLAMA_2_7B,
    LLAMA_2_13B,
    LLAMA_2_70B,
    LLAMA_30B,
    QWEN25_3B,
    model_of,
)
from train_jobs.advice import Draft
from train_jobs.estimate import estimate_train
from train_jobs.estimate import hardware_for as trained_on

GIB = 1 << 30
RECIPE = {"bf16": True, "per_device_train_batch_size": 1, "cutoff_len": 2048}
TRAIN: dict[str, dict[str, Any]] = {
    "QLoRA": RECIPE | {"finetuning_type": "lora", "quantization_bit": 4},
    "LoRA": RECIPE | {"finetuning_type": "lora"},
    "full": RECIPE | {"finetuning_type": "full"},
}
SERVE: dict[str, dict[str, Any]] = {
    "16 bits": {},
    "8 bits": {"quantization": "fp8"},
    "4 bits": {"quantization": "mxfp4"},
}
MODELS = {"3B": QWEN25_3B, "7B": LLAMA_2_7B, "13B": LLAMA_2_13B, "30B": LLAMA_30B, "70B": LLAMA_2_70B}


def card(name: str) -> Gpu:
    found = find(name)
    assert found
    return found


def context_of(size: str) -> int:
    return min(4096, MODELS[size]["max_position_embeddings"])


def trains(size: str, way: str, product: str) -> bool | None:
    return estimate_train(
        Draft(TRAIN[way], None, 1), model=model_of(MODELS[size]), device=share_of(card(product)),
        workers_per_node=1, most_gpus=1,
    ).fits  # fmt: skip


def serves(size: str, bits: str, product: str, **engine: Any) -> bool | None:
    return estimate_serve(
        {"max_model_len": context_of(size)} | SERVE[bits] | engine,
        model=model_of(MODELS[size]), device=share_of(card(product)), most_gpus=1,
    ).fits  # fmt: skip


def needs_gib(size: str, way: str) -> float:
    """On one GPU, however large."""
    device = share_of(card("B300"))
    if way in TRAIN:
        found = estimate_train(
            Draft(TRAIN[way], None, 1), model=model_of(MODELS[size]), device=device, workers_per_node=1,
            most_gpus=1,
        )  # fmt: skip
        return found.estimate.device_bytes / GIB
    # Batches as of a card below 70 GiB.
    engine = {"max_model_len": context_of(size), "max_num_batched_tokens": 2048, "max_num_seqs": 256}
    engine |= SERVE[way]
    served = estimate_serve(engine, model=model_of(MODELS[size]), device=device, most_gpus=1)
    return served.estimate.least_bytes / GIB


@pytest.mark.parametrize(
    ("size", "needed"),
    [
        ("3B", {"QLoRA": 6.9, "LoRA": 10.9, "full": 61.6, "16 bits": 7.5, "8 bits": 4.9, "4 bits": 3.7}),
        ("7B", {"QLoRA": 6.1, "LoRA": 15.5, "full": 133.4, "16 bits": 15.8, "8 bits": 9.8, "4 bits": 7.0}),
        ("13B", {"QLoRA": 9.8, "LoRA": 28.3, "full": 256.6, "16 bits": 28.7, "8 bits": 16.9, "4 bits": 11.3}),
        ("30B", {"QLoRA": 21.1, "LoRA": 67.7, "full": 639, "16 bits": 65.0, "8 bits": 35.1, "4 bits": 21.1}),
        ("70B", {"QLoRA": 41.5, "LoRA": 141, "full": 1353, "16 bits": 131, "8 bits": 67.5, "4 bits": 37.6}),
    ],
)  # fmt: skip
def test_the_table_of_the_docs_is_what_the_estimator_says(size: str, needed: dict[str, float]):
    """GiB on one GPU: docs/estimator.md shows these numbers."""
    assert {way: needs_gib(size, way) for way in needed} == {
        way: pytest.approx(gibibytes, rel=0.015) for way, gibibytes in needed.items()
    }


# What users are told: up to 3B 8 GB, 7B 16 GB, 13B 24 GB, 30B 48 GB, 70B 80 GB and more.


def test_3b_on_8_gb_is_right_for_qlora_and_for_serving_in_8_bits():
    assert trains("3B", "QLoRA", "RTX-4060") and trains("3B", "QLoRA", "RTX-3060")
    assert serves("3B", "8 bits", "RTX-4060") and serves("3B", "4 bits", "RTX-4060")
    # Weights of 5.75 GiB, graphs and 256 rows of 151,936 logits: 16 bits only without CUDA graphs.
    assert not serves("3B", "16 bits", "RTX-4060")
    assert serves("3B", "16 bits", "RTX-4060", enforce_eager=True)
    assert not trains("3B", "LoRA", "RTX-4060") and trains("3B", "LoRA", "RTX-4070")


def test_7b_on_16_gb_is_right_for_adapters_but_not_for_serving_in_16_bits():
    assert trains("7B", "QLoRA", "RTX-4080") and trains("7B", "QLoRA", "RTX-A4000")
    # With less than a tenth of a GiB to spare: rows of 2,048 tokens are the longest.
    assert trains("7B", "LoRA", "RTX-4080")
    assert not trains("7B", "LoRA", "T4"), "15 GiB"
    # 12.6 GiB of weights and 2 of cache for one sequence; vLLM takes 92% of 15.5.
    assert not serves("7B", "16 bits", "RTX-4080")
    assert serves("7B", "8 bits", "RTX-4080")
    assert serves("7B", "16 bits", "RTX-4090")


def test_13b_on_24_gb_is_right_for_qlora_and_for_serving_in_8_bits():
    assert trains("13B", "QLoRA", "RTX-4090") and trains("13B", "QLoRA", "RTX-4080")
    assert serves("13B", "8 bits", "RTX-4090") and serves("13B", "4 bits", "RTX-4080")
    assert not trains("13B", "LoRA", "RTX-4090") and not serves("13B", "16 bits", "RTX-4090")
    assert trains("13B", "LoRA", "A100-SXM4-40GB") and serves("13B", "16 bits", "A100-SXM4-40GB")


def test_30b_on_48_gb_is_right_for_qlora_and_takes_two_for_16_bits():
    assert trains("30B", "QLoRA", "RTX-A6000") and trains("30B", "QLoRA", "A100-SXM4-40GB")
    assert trains("30B", "QLoRA", "RTX-4090"), "even 24 GB, with rows of 2,048 tokens one at a time"
    assert serves("30B", "8 bits", "RTX-A6000") and serves("30B", "8 bits", "A100-SXM4-40GB")
    assert serves("30B", "4 bits", "RTX-4090"), "21.1 of the 21.4 that vLLM takes"
    for product in ("RTX-A6000", "A100-SXM4-40GB"):
        model, gpus = model_of(MODELS["30B"]), [card(product)]
        (lora,) = trained_on(Draft(TRAIN["LoRA"], None, 1), model=model, gpus=gpus)
        (serving,) = served_on({"max_model_len": 2048}, model=model, gpus=gpus)
        assert (lora.count, serving.count) == (2, 2)


def test_70b_on_80_gb_is_right_for_4_and_8_bits_and_takes_two_for_16():
    product = "A100-SXM4-80GB"
    assert trains("70B", "QLoRA", product) and serves("70B", "8 bits", product)
    assert trains("70B", "QLoRA", "RTX-A6000") and serves("70B", "4 bits", "A100-SXM4-80GB")
    model = model_of(MODELS["70B"])
    (lora,) = trained_on(Draft(TRAIN["LoRA"], None, 1), model=model, gpus=[card(product)])
    (serving,) = served_on({"max_model_len": 4096}, model=model, gpus=[card(product)])
    assert (lora.count, serving.count) == (2, 2), "four, as users are told, leave room for long contexts"
    (long,) = served_on({"max_model_len": 4096}, model=model, gpus=[card("A100-SXM4-40GB")])
    assert long.count == 4


@pytest.mark.parametrize(("size", "count"), [("3B", 1), ("7B", 2), ("13B", 4), ("30B", 16), ("70B", None)])
def test_full_training_is_another_matter_than_the_rule(size: str, count: int | None):
    """16 to 20 bytes a parameter, divided by ZeRO-3; on GPUs of 80 GB."""
    found = trained_on(
        Draft(TRAIN["full"], None, 1), model=model_of(MODELS[size]), gpus=[card("A100-SXM4-80GB")]
    )
    assert [one.count for one in found] == ([count] if count and count <= 8 else [])


def test_the_least_count_of_each_product_and_the_least_memory_first():
    gpus = [card(name) for name in ("A100-SXM4-80GB", "L4", "RTX-4090", "A100-SXM4-40GB")]
    found = least_of_each(gpus, lambda gpu, count: 100 * GIB // count)
    assert [(one.gpu.name, one.count) for one in found] == [
        ("A100-SXM4-80GB", 2), ("A100-SXM4-40GB", 4), ("L4", 8), ("RTX-4090", 8),
    ]  # fmt: skip
    assert found[0].filled == pytest.approx(50 * GIB / usable_bytes(found[0].gpu))


def test_a_count_that_it_cannot_be_divided_by_is_passed_over():
    found = least_of_each([card("L4")], lambda gpu, count: None if count == 2 else 40 * GIB // count)
    assert [one.count for one in found] == [4]
    assert least_of_each([card("L4")], lambda gpu, count: 400 * GIB // count) == []
    assert least_of_each([card("L4")], lambda gpu, count: 15 * GIB, share=0.5) == []


def test_qlora_is_not_divided_over_gpus():
    found = trained_on(
        Draft(TRAIN["QLoRA"], None, 4),
        model=model_of(LLAMA_2_70B),
        gpus=[card("RTX-4090"), card("RTX-A6000")],
    )
    assert [(one.gpu.name, one.count) for one in found] == [("RTX-A6000", 1)]


def test_tensor_parallelism_divides_heads():
    """LLaMA-30B has 52: by 4, not by 8; Qwen2.5-3B has 16."""
    found = served_on({"max_model_len": 2048}, model=model_of(LLAMA_30B), gpus=[card("RTX-A4000")])
    assert found == [], "four of 16 GB are too few, and eight do not divide it"
    (four,) = served_on({"max_model_len": 2048}, model=model_of(LLAMA_30B), gpus=[card("RTX-4090")])
    assert four.count == 4


def test_a_pipeline_is_not_counted_on_top_of_tensor_parallelism():
    engine = {"max_model_len": 4096, "pipeline_parallel_size": 2}
    (found,) = served_on(engine, model=model_of(LLAMA_2_7B), gpus=[card("RTX-4090")])
    assert found.count == 1 and found.needed_bytes / GIB == pytest.approx(15.8, abs=0.1)


def test_a_spec_that_offloads_is_judged_with_what_it_offloads():
    from train_jobs import deepspeed_presets

    draft = Draft(TRAIN["full"], deepspeed_presets.resolve("zero3-offload"), 1)
    plain = Draft(TRAIN["full"], None, 1)
    counts = [
        [one.count for one in trained_on(each, model=model_of(LLAMA_2_70B), gpus=[card("A100-SXM4-80GB")])]
        for each in (draft, plain)
    ]
    assert counts == [[1], []]


def test_every_product_of_the_catalogue_can_be_asked_for():
    found = served_on({"max_model_len": 1024}, model=model_of(QWEN25_3B), gpus=catalogue())
    assert len(found) == len(catalogue())
    assert all(0 < one.filled <= 0.92 for one in found)
