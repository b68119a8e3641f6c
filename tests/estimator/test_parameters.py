"""How many parameters a model has: against published figures, from headers alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cluster.estimator.parameters import Parameters, count_parameters
from runtime.cli import main
from runtime.core.errors import StorageError
from storage.location import locate
from storage.store import Store
from storage.tensors import tensors_in
from tests.estimator.models import (
    LLAMA_3_8B,
    MIXTRAL_8X7B,
    QWEN3_06B,
    Shapes,
    model_of,
    packed,
    shapes_of,
    write_headers,
)

Count = Callable[..., Parameters]


@pytest.fixture
def count(tmp_path: Path) -> Count:
    """Counts what a folder with these tensors holds."""

    def counted(config: dict[str, Any], shapes: Shapes, *, files: int = 1) -> Parameters:
        folder = write_headers(tmp_path / "model", config, shapes, files=files)
        return count_parameters(tensors_in(locate(str(folder))), config)

    return counted


def by_part(found: Parameters) -> dict[str, int]:
    return {part.name: part.parameters for part in found.parts}


def test_llama_3_8b_over_four_files(count: Count):
    found = count(LLAMA_3_8B, shapes_of(LLAMA_3_8B), files=4)
    assert found.total == found.active == 8_030_261_248
    assert found.size_bytes == 2 * found.total
    assert by_part(found) == {
        "mlp": 32 * 3 * 4096 * 14336,
        "attention": 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024),
        "embedding": 128256 * 4096,
        "head": 128256 * 4096,
        "norm": 65 * 4096,
    }


def test_a_tied_head_is_counted_once_though_it_is_stored(count: Count):
    found = count(QWEN3_06B, shapes_of(QWEN3_06B))
    assert found.tied and found.total == 596_049_920


def test_mixtral_uses_two_of_eight_experts_for_a_token(count: Count):
    found = count(MIXTRAL_8X7B, shapes_of(MIXTRAL_8X7B))
    assert (found.total, found.active) == (46_702_792_704, 12_879_925_248)
    assert by_part(found)["router"] == 32 * 8 * 4096


def awq(name: str, shape: list[int]) -> Shapes:
    out, into = shape
    return {
        f"{name}.qweight": ("I32", [into, out // 8]),
        f"{name}.qzeros": ("I32", [into // 128, out // 8]),
        f"{name}.scales": ("F16", [into // 128, out]),
    }


def bitsandbytes(name: str, shape: list[int]) -> Shapes:
    out, into = shape
    return {
        f"{name}.weight": ("U8", [out * into // 2, 1]),
        f"{name}.weight.absmax": ("U8", [out * into // 64]),
        f"{name}.weight.quant_map": ("F32", [16]),
        f"{name}.weight.quant_state.bitsandbytes__nf4": ("U8", [90]),
    }


@pytest.mark.parametrize(
    ("how", "quantization_config"),
    [
        (awq, {"quant_method": "awq", "bits": 4, "group_size": 128}),
        (bitsandbytes, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    ],
)
def test_packed_weights_count_as_what_they_stand_for(
    count: Count, how: Callable[[str, list[int]], Shapes], quantization_config: dict[str, Any]
):
    config = LLAMA_3_8B | {"quantization_config": quantization_config}
    found = count(config, packed(shapes_of(LLAMA_3_8B), how))
    assert found.total == 8_030_261_248
    assert 0.3 < found.size_bytes / (2 * found.total) < 0.4


def test_a_vision_tower_is_a_part_of_its_own(count: Count):
    shapes = shapes_of(QWEN3_06B) | {"visual.blocks.0.attn.qkv.weight": ("BF16", [3, 5])}
    assert by_part(count({"text_config": QWEN3_06B}, shapes))["vision"] == 15


def test_what_has_no_header_is_refused_by_its_file(tmp_path: Path):
    with pytest.raises(StorageError, match="holds no .safetensors file"):
        tensors_in(locate(str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"<html>Not found</html>")
    with pytest.raises(StorageError, match=r"model\.safetensors: is no safetensors file"):
        tensors_in(locate(str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b'{"a": 1}')
    with pytest.raises(StorageError, match="its header cannot be read"):
        tensors_in(locate(str(tmp_path)))


def test_a_model_of_the_store_is_shown(store: Store, tmp_path: Path):
    folder = write_headers(tmp_path / "qwen", QWEN3_06B, shapes_of(QWEN3_06B))
    store.publish_model(folder, "qwen")
    shown = CliRunner().invoke(main, ["models", "show", "qwen", "--store", store.uri])
    assert shown.exit_code == 0, shown.output
    for words in (
        "qwen/v1 Qwen3ForCausalLM",
        "596,049,920",
        "BF16",
        "tie_word_embeddings",
        "114.7 kB a token",
    ):
        assert words in shown.output
    told = json.loads(CliRunner().invoke(main, ["models", "show", str(folder), "--json"]).output)
    assert told["parameters"]["total"] == 596_049_920
    assert told["kv_cache"]["bytes_per_token"] == 28 * 2 * 8 * 128 * 2


def test_a_quantization_that_stands_beside_the_language_models_sizes_counts_too():
    """Kimi-K2.5: ``text_config`` holds it."""

    def int4(name: str, shape: list[int]) -> Shapes:
        return {
            f"{name}.weight_packed": ("I32", [shape[0], shape[1] // 8]),
            f"{name}.weight_scale": ("BF16", [shape[0], shape[1] // 32]),
        }

    quantization = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32}}},
    }
    shapes = packed(shapes_of(LLAMA_3_8B), int4)
    inside = LLAMA_3_8B | {"quantization_config": quantization}
    outside, nested = model_of(inside, shapes), model_of({"text_config": inside}, shapes)
    assert (nested.total, nested.quantized) == (outside.total, True) == (8_030_261_248, True)
    assert nested.bytes_16bit == outside.bytes_16bit < 0.4 * 2 * 8_030_261_248
