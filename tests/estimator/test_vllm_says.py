"""Sizes and context of families of models: as vLLM reads them out of the same config.json."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cluster.environments import interpreter, process_env
from cluster.estimator.attention_layers import head_size, key_value_heads, text_of
from cluster.estimator.context import context_of
from cluster.estimator.families import FAMILIES
from serve_apps.quantization import ONLINE
from tests.conftest import ROOT
from tests.estimator.models import LLAMA_3_8B, model_of

RECORDED = json.loads(Path(__file__).with_name("vllm_says.json").read_text())
MODELS: dict[str, dict[str, Any]] = RECORDED["models"]
MLA = "DeepSeek-V2-Lite"
"""Whose head_dim vLLM means its latent vector by."""


def said(config: dict[str, Any]) -> dict[str, Any]:
    text = text_of(config)
    context = context_of(text)
    return {
        "num_hidden_layers": text["num_hidden_layers"],
        "hidden_size": text["hidden_size"],
        "num_attention_heads": text["num_attention_heads"],
        "num_key_value_heads": key_value_heads(text),
        "head_dim": head_size(text),
        "unasked": context.unasked,
        "longest": context.longest,
    }


@pytest.mark.parametrize("name", MODELS)
def test_sizes_and_context_are_those_that_vllm_reads(name: str):
    found, wanted = said(MODELS[name]["config"]), dict(MODELS[name]["says"])
    if name == MLA:
        assert wanted.pop("head_dim") == 512 + 64
        del found["head_dim"]
    assert found == wanted


def test_a_model_that_says_no_length_is_taken_for_2048_tokens_and_may_be_set_to_any():
    context = model_of(LLAMA_3_8B).context
    assert (context.unasked, context.longest) == (2048, None)
    scaled = model_of(LLAMA_3_8B | {"rope_scaling": {"type": "linear", "factor": 2}}).context
    assert (scaled.unasked, scaled.longest) == (4096, None)


def test_rotary_positions_of_each_kind_of_layer_have_one_factor():
    ropes = {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {}}
    config = LLAMA_3_8B | {"max_position_embeddings": 4096, "rope_parameters": ropes}
    assert model_of(config).context.unasked == 32768
    assert model_of(config | {"model_type": "gemma3_text", "head_dim": 128}).context.unasked == 4096


@pytest.mark.engine
def test_the_recorded_answers_are_those_of_the_installed_vllm():
    configs = json.dumps({name: model["config"] for name, model in MODELS.items()})
    env = os.environ | process_env("serve") | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [interpreter("serve"), "-m", "tests.estimator.vllm_says"], input=configs, env=env, cwd=ROOT,
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["vllm"] == RECORDED["vllm"]
    assert found["models"] == {name: model["says"] for name, model in MODELS.items()}
    assert set(ONLINE) - {"bitsandbytes"} <= set(found["quantizations"]), "that is a plugin's"
    assert found["families"] == json.loads(FAMILIES.read_text())
