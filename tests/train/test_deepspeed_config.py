"""A DeepSpeed config and a recipe: what only one of them says holds for both, what both say must agree."""

from __future__ import annotations

from typing import Any

import pytest

from train_jobs.deepspeed_config import Reconciled, reconcile, stage_of
from train_jobs.deepspeed_presets import names, resolve


def agreed(
    deepspeed: dict[str, Any], num_workers: int = 2, *, on_cpu: bool = False, **recipe: Any
) -> Reconciled:
    return reconcile(deepspeed, recipe, num_workers=num_workers, on_cpu=on_cpu)


def test_a_global_batch_size_becomes_the_workers_own():
    found = agreed({"train_batch_size": 16, "gradient_accumulation_steps": 4})
    assert found.llamafactory == {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2}
    assert (
        "llamafactory.per_device_train_batch_size becomes 2, from deepspeed.train_batch_size 16 / "
        "(num_workers 2 x gradient_accumulation_steps 4)."
    ) in found.notes
    assert found.faults == []


def test_sizes_that_moved_into_the_recipe_are_left_to_it():
    found = agreed({"train_batch_size": 24, "train_micro_batch_size_per_gpu": 3})
    assert found.llamafactory == {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4}
    assert found.deepspeed == {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
    }


def test_a_global_batch_size_alone_is_divided_among_the_workers():
    assert agreed({"train_batch_size": 12}, 3).llamafactory == {"per_device_train_batch_size": 4}


def test_what_nobody_says_stays_unsaid():
    assert agreed({"zero_optimization": {"stage": 1}}).llamafactory == {}


@pytest.mark.parametrize("preset", names())
def test_a_preset_leaves_the_recipe_as_it_is(preset: str):
    config = resolve(preset)
    assert config is not None
    found = agreed(config, bf16=True, per_device_train_batch_size=5, max_grad_norm=0.3)
    assert found.llamafactory == {"bf16": True, "per_device_train_batch_size": 5, "max_grad_norm": 0.3}
    assert (found.deepspeed, found.notes, found.faults) == (config, [], [])


@pytest.mark.parametrize(
    ("config", "recipe", "fault"),
    [
        (
            {"gradient_accumulation_steps": 4},
            {"gradient_accumulation_steps": 2},
            "deepspeed.gradient_accumulation_steps: is 4, but llamafactory.gradient_accumulation_steps is "
            "2. State "
            'it once: remove one of the two, or write "auto" in the DeepSpeed config.',
        ),
        (
            {"train_micro_batch_size_per_gpu": 1},
            {"per_device_train_batch_size": 8},
            "deepspeed.train_micro_batch_size_per_gpu: is 1, but llamafactory.per_device_train_batch_size "
            "is 8.",
        ),
        (
            {"train_batch_size": 16},
            {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 5},
            "deepspeed.train_batch_size: is 16, but num_workers 2 x per_device_train_batch_size 3 x "
            "gradient_accumulation_steps 5 is 30.",
        ),
        (
            {"train_batch_size": 16, "gradient_accumulation_steps": 3},
            {},
            "deepspeed.train_batch_size: is 16, which is not divisible by num_workers 2 x "
            "gradient_accumulation_steps 3 = 6. Write a multiple of 6 (12 or 18), or change the other "
            "numbers.",
        ),
        (
            {"gradient_clipping": 0.5},
            {"max_grad_norm": 1.0},
            "deepspeed.gradient_clipping: is 0.5, but llamafactory.max_grad_norm is 1.0.",
        ),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}},
            {"learning_rate": 5e-3},
            "deepspeed.optimizer.params.lr: is 0.0001, but llamafactory.learning_rate is 0.005.",
        ),
        (
            {"optimizer": {"type": "AdamW", "params": {"betas": [0.9, 0.98]}}},
            {"adam_beta2": 0.95},
            "deepspeed.optimizer.params.betas: is [0.9, 0.98], but llamafactory.adam_beta2 is 0.95.",
        ),
        (
            {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10}}},
            {"warmup_steps": 20},
            "deepspeed.scheduler.params.warmup_num_steps: is 10, but llamafactory.warmup_steps is 20.",
        ),
        (
            {"bf16": {"enabled": True}},
            {"bf16": False},
            "deepspeed.bf16.enabled: is true, but llamafactory.bf16 is false.",
        ),
        (
            {"fp16": {"enabled": True}},
            {"bf16": True},
            "deepspeed.fp16.enabled: is true, but llamafactory.bf16 is true.",
        ),
        (
            {"optimizer": {"type": "AdamW"}},
            {"loraplus_lr_ratio": 16.0},
            "llamafactory.loraplus_lr_ratio: is 16.0, but deepspeed.optimizer takes the place of LoRA+'s "
            "optimizer.",
        ),
        (
            {"zero_optimization": {"stage": 4}},
            {},
            "deepspeed.zero_optimization.stage: is 4, but ZeRO has the stages 0, 1, 2 and 3.",
        ),
        (
            {"zero_optimization": {"stage": "2"}},
            {},
            "deepspeed.zero_optimization.stage: is '2', but ZeRO has the stages",
        ),
        (
            {"zero_optimization": {"stag": 2}},
            {},
            "deepspeed.zero_optimization.stag: DeepSpeed has no such key. Did you mean 'stage'?",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "gpu"}}},
            {},
            "deepspeed.zero_optimization.offload_optimizer.device: is 'gpu'. Write one of none, cpu, nvme.",
        ),
        ({"fp16": True}, {}, "deepspeed.fp16: is True, but it takes an object."),
        ({"fp16": {"enabled": "yes"}}, {}, "deepspeed.fp16.enabled: is 'yes', but it takes true, false"),
        (
            {"train_batch_size": 0},
            {},
            "deepspeed.train_batch_size: is 0, but it takes a whole number from 1 on",
        ),
        ({"train_batch_size": "16"}, {}, "deepspeed.train_batch_size: is '16', but it takes a whole number"),
        ({"gradient_clipping": "1"}, {}, "deepspeed.gradient_clipping: is '1', but it takes a number"),
        ({"bfloat16": {"enabled": True}}, {}, "deepspeed.bfloat16: transformers reads bf16 only"),
        (
            {"optimizer": {"params": {"betas": 0.9}}},
            {},
            "deepspeed.optimizer.params.betas: is 0.9, but it takes two numbers",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_both_fields_and_values(
    config: dict[str, Any], recipe: dict[str, Any], fault: str
):
    [told] = agreed(config, **recipe).faults
    assert told.startswith(fault)


def test_the_optimizers_numbers_move_into_the_recipe():
    params = {"lr": 0.002, "betas": [0.8, 0.95], "eps": 1e-6, "weight_decay": 0.1}
    found = agreed({"optimizer": {"type": "AdamW", "params": params}, "gradient_clipping": 0.5})
    assert found.llamafactory == {
        "max_grad_norm": 0.5,
        "learning_rate": 0.002,
        "adam_epsilon": 1e-6,
        "weight_decay": 0.1,
        "adam_beta1": 0.8,
        "adam_beta2": 0.95,
    }
    assert set(found.deepspeed["optimizer"]["params"].values()) == {"auto"}


def test_a_scheduler_follows_a_recipe_that_says_it_in_another_way():
    config = {
        "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 9, "total_num_steps": 90}}
    }
    found = agreed(config, warmup_ratio=0.1)
    assert found.llamafactory == {"warmup_ratio": 0.1, "max_steps": 90}
    assert found.deepspeed["scheduler"]["params"] == {"warmup_num_steps": "auto", "total_num_steps": "auto"}
    assert (
        "deepspeed.scheduler.params.warmup_num_steps 9 is passed over: llamafactory.warmup_ratio 0.1 says it."
        in found.notes
    )


def test_a_key_that_deepspeed_does_not_know_is_told_and_left():
    found = agreed({"gradient_cliping": 1.0})
    assert (
        "deepspeed.gradient_cliping: DeepSpeed knows no such key, and passes over it. Did you mean "
        "'gradient_clipping'?"
    ) in found.notes
    assert found.faults == []


def test_max_grad_norm_reaches_a_config_that_says_nothing_of_clipping():
    found = agreed({"zero_optimization": {"stage": 2}}, max_grad_norm=0.7)
    assert found.deepspeed["gradient_clipping"] == "auto"
    assert "Gradients are not clipped: the DeepSpeed config has no gradient_clipping." in agreed({}).notes


def test_fp16_stays_on_a_gpu_and_becomes_bf16_on_a_cpu():
    config = {"fp16": {"enabled": True, "loss_scale": 0}}
    on_gpu, on_cpu = agreed(config), agreed(config, on_cpu=True)
    assert (on_gpu.llamafactory, on_cpu.llamafactory) == ({"fp16": True}, {"bf16": True})
    assert on_gpu.deepspeed["fp16"] == on_cpu.deepspeed["fp16"] == {"enabled": "auto", "loss_scale": 0}
    assert ("bf16" in on_gpu.deepspeed, on_cpu.deepspeed["bf16"]) == (False, {"enabled": "auto"})
    assert "fp16 becomes bf16: on CPU there is no mixed precision in fp16." in on_cpu.notes


def test_offloading_stays_on_a_cpu_and_is_said_to_move_nothing():
    config = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    found = agreed(config, on_cpu=True)
    assert found.deepspeed["zero_optimization"] == config["zero_optimization"]
    assert any("offload_optimizer moves nothing" in note for note in found.notes)


def test_offloading_of_what_the_stage_does_not_shard_is_said_to_have_no_effect():
    found = agreed({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}})
    assert (
        "deepspeed.zero_optimization.offload_param has no effect with stage 2: it needs stage 3 or more."
        in found.notes
    )


def test_what_is_given_is_never_changed():
    config: dict[str, Any] = {"train_batch_size": 16, "fp16": {"enabled": True}}
    agreed(config)
    assert config == {"train_batch_size": 16, "fp16": {"enabled": True}}


def test_a_config_without_zero_has_stage_0_and_no_config_has_none():
    assert (stage_of({}), stage_of({"zero_optimization": {"stage": 3}}), stage_of(None)) == (0, 3, None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("reduce_bucket_size", "5e8"),
        ("reduce_bucket_size", None),
        ("stage3_max_live_parameters", None),
        ("stage3_prefetch_bucket_size", -1),
        ("sub_group_size", 0.5),
        ("max_live_parameters", True),
    ],
)
def test_a_size_that_deepspeed_would_not_read_is_refused_with_field_value_and_remedy(key: str, value: Any):
    (fault,) = agreed({"zero_optimization": {"stage": 3, key: value}}).faults
    assert fault.startswith(f"deepspeed.zero_optimization.{key}: is {value!r}")
    assert "500000000" in fault


@pytest.mark.parametrize("value", ["500000000", 500000000, 5e8, "auto"])
def test_a_size_may_be_written_as_deepspeed_reads_it(value: Any):
    assert agreed({"zero_optimization": {"stage": 2, "reduce_bucket_size": value}}).faults == []
