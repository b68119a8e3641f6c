"""Families that name their sizes otherwise, or leave them out: estimated like any other model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.estimator.families import completed
from runtime.core.errors import ConfigError
from runtime.estimate import Overview, estimate
from serve_apps.plan_checks import check_parallel
from storage.store import open_store
from tests.estimator.models import QWEN3_06B, Shapes, model_of, shapes_of, write_headers
from tests.inventories import nodes

CLUSTER = nodes({"CPU": 8.0})
RECORDED = json.loads(Path(__file__).with_name("vllm_says.json").read_text())["models"]


def without(config: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}


def renamed(shapes: Shapes, prefix: str) -> Shapes:
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def gpt2() -> Shapes:
    """As its checkpoint names them: 124 million parameters."""
    block: dict[str, list[int]] = {
        "ln_1.weight": [768], "ln_1.bias": [768], "ln_2.weight": [768], "ln_2.bias": [768],
        "attn.c_attn.weight": [768, 2304], "attn.c_attn.bias": [2304], "attn.c_proj.weight": [768, 768],
        "attn.c_proj.bias": [768], "mlp.c_fc.weight": [768, 3072], "mlp.c_fc.bias": [3072],
        "mlp.c_proj.weight": [3072, 768], "mlp.c_proj.bias": [768],
    }  # fmt: skip
    names = {"wte.weight": [50257, 768], "wpe.weight": [1024, 768], "ln_f.weight": [768], "ln_f.bias": [768]}
    for number in range(12):
        names |= {f"h.{number}.{name}": shape for name, shape in block.items()}
    return {name: ("F32", shape) for name, shape in names.items()}


def test_gpt2_is_estimated_by_its_own_words(tmp_path: Path):
    folder = write_headers(tmp_path / "gpt2", RECORDED["gpt2"]["config"], gpt2())
    found = estimate(str(folder), open_store(str(tmp_path / "store")), inventory=CLUSTER, gpu="L4")
    assert isinstance(found, Overview)
    assert (found.parameters, found.context) == (124_439_808, 1024)
    assert found.rows[0]["serve"] == found.rows[0]["full"] == 1


@pytest.mark.parametrize("name", RECORDED)
def test_every_familys_sizes_are_found(name: str):
    config = RECORDED[name]["config"]
    model = model_of(config, {"model.embed_tokens.weight": ("BF16", [65024, 4096])})
    says = RECORDED[name]["says"]
    assert (model.layers, model.hidden_size) == (says["num_hidden_layers"], says["hidden_size"])
    assert (model.attention_heads, model.kv_heads) == (
        says["num_attention_heads"], says["num_key_value_heads"],
    )  # fmt: skip
    cache = model.kv_cache("auto", element_bytes=2, tensor_parallel_size=1)
    assert cache and cache.head_dim == says["head_dim"]


def test_dbrx_counts_the_experts_that_are_picked():
    text = completed(RECORDED["dbrx-base"]["config"])
    assert (text["num_experts"], text["num_experts_per_tok"], text["intermediate_size"]) == (16, 4, 10752)


def test_the_embedding_tells_what_the_config_does_not():
    config = without(QWEN3_06B, "vocab_size", "hidden_size")
    shapes = shapes_of(QWEN3_06B) | {"model.wpe.weight": ("BF16", [4096, 99])}
    model = model_of(config, shapes)
    assert (model.vocab_size, model.hidden_size) == (151936, 1024)


def test_internvls_language_model_is_looked_into():
    config = {"model_type": "internvl_chat", "llm_config": QWEN3_06B, "vision_config": {"hidden_size": 1024}}
    shapes = renamed(shapes_of(QWEN3_06B), "language_model.")
    model = model_of(config, shapes | {"vision_model.embeddings.class_embedding": ("BF16", [1, 1, 1024])})
    assert (model.layers, model.vocab_size, model.head_dim) == (28, 151936, 128)
    assert model.of_text == model.total - 1024


def test_of_a_model_that_speaks_the_part_that_thinks_is_loaded():
    config = {"model_type": "qwen2_5_omni", "thinker_config": {"text_config": QWEN3_06B}}
    thinks, speaks = (renamed(shapes_of(QWEN3_06B), f"{part}.") for part in ("thinker", "talker"))
    assert model_of(config, thinks | speaks).total == model_of(QWEN3_06B).total


def test_heads_of_every_family_are_divided_over_workers(tmp_path: Path):
    folder = write_headers(tmp_path / "gpt2", RECORDED["gpt2"]["config"], gpt2())
    model = open_store(str(tmp_path / "store")).model(str(folder))
    check_parallel({"tensor_parallel_size": 4}, model, 1.0)
    with pytest.raises(ConfigError, match="does not divide the 12 attention heads"):
        check_parallel({"tensor_parallel_size": 5}, model, 1.0)


@pytest.mark.parametrize("field", ["num_hidden_layers", "num_attention_heads"])
def test_a_size_that_is_nowhere_is_named(tmp_path: Path, field: str):
    folder = write_headers(tmp_path / "odd", without(QWEN3_06B, field), shapes_of(QWEN3_06B))
    for target in (str(folder), {"name": "a", "model": str(folder)}):
        with pytest.raises(ConfigError) as told:
            estimate(target, open_store(str(tmp_path / "store")), inventory=CLUSTER, gpu="L4")
        assert f"{field} in its config.json is None" in str(told.value)
        assert "not in the catalogue" not in str(told.value)
