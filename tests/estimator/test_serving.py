"""Memory of an engine: against what vLLM itself said of real models on real cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.estimator.device import host_memory, share_of
from cluster.estimator.model import ModelShape
from cluster.gpus import Gpu, find
from serve_apps.estimate import ServeEstimate, estimate_serve, hardware_for
from serve_apps.memory import serving_shape
from serve_apps.plan_memory import check_memory
from tests.estimator.models import (
    GPT_OSS_20B,
    LLAMA_2_7B,
    LLAMA_2_70B,
    LLAMA_3_8B,
    LLAMA_31_70B,
    MIXTRAL_8X7B,
    QWEN3_06B,
    QWEN25_3B,
    Shapes,
    llama,
    model_of,
    packed,
    shapes_of,
    write_headers,
)

GIB = 1 << 30
LLAMA_8B = model_of(LLAMA_3_8B | {"max_position_embeddings": 8192})
LLAMA_31_8B = model_of(LLAMA_3_8B | {"max_position_embeddings": 131072})
DEEPSEEK = LLAMA_3_8B | {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_hidden_layers": 61}


def card(name: str) -> Gpu:
    found = find(name)
    assert found
    return found


def on(product: str, model: ModelShape, share: float = 1.0, **engine: Any) -> ServeEstimate:
    return estimate_serve(engine, model=model, device=share_of(card(product), share), most_gpus=8)


def sizes(found: ServeEstimate) -> dict[str, int]:
    return {term.name: term.size_bytes for term in found.estimate.fixed.terms}


@pytest.mark.parametrize(("ways", "gibibytes"), [(1, 14.96), (2, 7.48)])
def test_weights_of_llama_3_8b_are_what_vllm_says(ways: int, gibibytes: float):
    """vLLM, pull request 10511: "model weights take 14.96GiB", with -tp 2 7.48 GiB, on 79.22 GiB, of which
    it could use 71.29."""
    found = on("A100-SXM4-80GB", LLAMA_8B, tensor_parallel_size=ways, gpu_memory_utilization=0.9)
    assert sizes(found)["weights"] / GIB == pytest.approx(gibibytes, abs=0.005)
    assert found.budget_bytes is not None
    assert found.budget_bytes / GIB == pytest.approx(71.29, rel=0.025)
    assert found.budget_bytes / GIB < 71.29, "nothing is promised that is not there"


@pytest.mark.parametrize(("tokens", "gibibytes"), [(20_000, 2.07), (29_000, 2.99)])
def test_activations_of_a_batch_are_what_vllms_profile_run_saw(tokens: int, gibibytes: float):
    """vLLM, issue 10517: Llama-3.1-8B on an RTX 3090; 17.06 and 17.98 GiB at most, 14.99 of it weights."""
    found = on("RTX-3090", LLAMA_31_8B, max_num_batched_tokens=tokens, max_model_len=tokens)
    assert sizes(found)["activations"] / GIB == pytest.approx(gibibytes, rel=0.1)
    assert sizes(found)["activations"] / GIB > gibibytes


def test_a_prompt_that_passes_at_once_decides_what_fits_on_a_3090():
    """The same issue: 20,000 tokens start and 29,000 do not, for want of KV cache."""
    fits, fails = (
        on("RTX-3090", LLAMA_31_8B, max_model_len=n, max_num_batched_tokens=n, gpu_memory_utilization=0.9)
        for n in (20_000, 29_000)
    )
    assert (fits.fits, fails.fits) == (True, False)


@pytest.mark.parametrize(
    ("config", "ways", "gibibytes", "tokens"),
    [
        # vLLM, issue 10517: 1,952 blocks of 16, and 1,478.
        (LLAMA_3_8B, 1, 3.81, 31_232),
        (LLAMA_3_8B, 1, 2.89, 23_648),
        # vLLM, issue 21348: Qwen3-235B-A22B-FP8 on four H100.
        (
            QWEN3_06B | {"num_hidden_layers": 94, "num_attention_heads": 64, "num_key_value_heads": 4},
            4,
            8.11,
            178_880,
        ),
        # vLLM, recipes pull request 12: 62 GiB for 262,144 tokens of Qwen3-Coder-480B on one worker.
        (
            QWEN3_06B | {"num_hidden_layers": 62, "num_attention_heads": 96, "num_key_value_heads": 8},
            1,
            62.0,
            262_144,
        ),
    ],
)
def test_a_cache_holds_as_many_tokens_as_vllm_says(
    config: dict[str, Any], ways: int, gibibytes: float, tokens: int
):
    found = on("H100-SXM5-80GB", model_of(config), tensor_parallel_size=ways, max_model_len=1024).estimate
    held = found.tokens(found.fixed.device_bytes + int(gibibytes * GIB))
    assert held == pytest.approx(tokens, rel=0.02)
    assert held % 16 == 0


def int8(name: str, shape: list[int]) -> Shapes:
    return {f"{name}.weight": ("I8", shape), f"{name}.weight_scale": ("BF16", [shape[0], 1])}


def test_weights_of_llama_31_70b_in_8_bits_are_what_vllm_says():
    """vLLM, pull request 12569: w8a8, "model weights take 67.72GiB". Embedding and head stay in 16 bits."""
    config = LLAMA_31_70B | {"quantization_config": {"quant_method": "compressed-tensors"}}
    found = on("H100-SXM5-80GB", model_of(config, packed(shapes_of(config), int8)), max_model_len=2048)
    assert sizes(found)["weights"] / GIB == pytest.approx(67.72, abs=0.05)


def test_gpt_oss_20b_is_counted_by_what_its_blocks_stand_for():
    """OpenAI's model card: 20.9 billion parameters, 3.6 of them active, 12.8 GiB of checkpoint."""
    experts = {}
    for layer in range(24):
        name = f"model.layers.{layer}.mlp.experts"
        for matrix, rows in (("gate_up_proj", 5760), ("down_proj", 2880)):
            experts[f"{name}.{matrix}_blocks"] = ("U8", [32, rows, 90, 16])
            experts[f"{name}.{matrix}_scales"] = ("U8", [32, rows, 90])
            experts[f"{name}.{matrix}_bias"] = ("BF16", [32, rows])
        experts[f"model.layers.{layer}.mlp.router.weight"] = ("BF16", [32, 2880])
    rest = {n: s for n, s in shapes_of({**GPT_OSS_20B, "num_local_experts": 0}).items() if ".mlp." not in n}
    model = model_of(GPT_OSS_20B, rest | experts)
    assert model.total / 1e9 == pytest.approx(20.91, abs=0.01)
    assert model.parameters.active / 1e9 == pytest.approx(3.6, abs=0.6)
    assert sizes(on("RTX-4090", model))["weights"] / GIB == pytest.approx(12.8, abs=0.1)
    assert on("RTX-4080", model, max_model_len=8192, max_num_seqs=64).fits is False
    assert on("RTX-4090", model, max_model_len=32768).fits is True


def test_workers_beyond_the_kv_heads_hold_a_copy_of_one():
    two_heads = model_of(QWEN25_3B)
    each = {n: on("L4", two_heads, tensor_parallel_size=n).estimate.bytes_per_token for n in (1, 2, 4, 8)}
    assert each == {1: 36 << 10, 2: 18 << 10, 4: 18 << 10, 8: 18 << 10}


def test_every_worker_holds_the_whole_latent_vector_of_mla():
    each = [on("H100-SXM5-80GB", model_of(DEEPSEEK), tensor_parallel_size=n) for n in (1, 8)]
    assert [found.estimate.bytes_per_token for found in each] == [70_272, 70_272]


def test_windowed_layers_keep_the_window_and_the_batches_on_their_way():
    model = model_of(LLAMA_3_8B | {"sliding_window": 4096, "max_position_embeddings": 131072})
    found = on("L4", model, max_model_len=131072, max_num_batched_tokens=2048)
    assert found.estimate.bytes_per_sequence == (4096 + 2 * 2048) * (128 << 10)
    short = on("L4", model, max_model_len=1000)
    assert short.estimate.bytes_per_sequence == 63 * 16 * (128 << 10), "whole blocks"
    gemma = LLAMA_3_8B | {"model_type": "gemma3_text", "sliding_window": 1024, "num_hidden_layers": 30}
    gemma |= {"head_dim": 128}
    every_sixth = on("L4", model_of(gemma), max_model_len=100_000, max_num_batched_tokens=2048).estimate
    assert every_sixth.bytes_per_sequence == 4096 * (5 * 100_000 + 25 * (1024 + 4096))


def test_an_fp8_cache_holds_twice_as_many_tokens():
    plain, half = (on("L4", LLAMA_8B, **more) for more in ({}, {"kv_cache_dtype": "fp8"}))
    assert half.estimate.bytes_per_token * 2 == plain.estimate.bytes_per_token == 128 << 10
    assert half.tokens == pytest.approx(2 * (plain.tokens or 0), abs=32)


def test_weights_in_8_bits_are_half_but_for_embedding_and_head():
    plain, fp8 = (sizes(on("L4", LLAMA_8B, **more)) for more in ({}, {"quantization": "fp8"}))
    assert plain["weights"] - fp8["weights"] == 8_030_261_248 - 2 * 128256 * 4096


def test_in_32_bits_everything_is_twice_as_large():
    plain, wide = (on("A100-SXM4-80GB", LLAMA_8B, **more) for more in ({}, {"dtype": "float32"}))
    assert sizes(wide)["weights"] == 2 * sizes(plain)["weights"]
    assert wide.estimate.bytes_per_token == 2 * plain.estimate.bytes_per_token


def test_adapters_have_room_for_as_many_as_work_at_once():
    one = sizes(on("L4", LLAMA_8B, enable_lora=True))["adapters"]
    assert one == 2 * 41_943_040, "rank 16 of all linear layers, in 16 bits"
    more = sizes(on("L4", LLAMA_8B, enable_lora=True, max_loras=4, max_lora_rank=64))["adapters"]
    assert more == 4 * 4 * one
    assert "adapters" not in sizes(on("L4", LLAMA_8B, max_loras=4))


def test_workers_divide_one_side_of_an_adapter_and_hold_the_other():
    """vLLM's fully_sharded_loras is off: of q, k, v, gate and up A is whole, of o and down B."""
    four = sizes(on("L4", LLAMA_8B, enable_lora=True, tensor_parallel_size=4))["adapters"]
    others = 32 * (2 * 4096 + 2 * 1024 + 3 * 14336)
    assert four == 2 * 16 * (32 * 7 * 4096 + others // 4)


@pytest.mark.parametrize(("stages", "layers"), [(2, 40), (3, 27), (7, 12)])
def test_a_pipeline_is_as_large_as_its_largest_stage(stages: int, layers: int):
    """80 layers; the embedding is on the first stage, the head on the last."""
    found = on("A100-SXM4-80GB", model_of(LLAMA_2_70B), pipeline_parallel_size=stages)
    block = (68_976_648_192 - 2 * 32000 * 8192) / 80
    assert sizes(found)["weights"] == pytest.approx(2 * (layers * block + 32000 * 8192), rel=1e-6)
    assert found.estimate.bytes_per_token == layers * 2 * 8 * 128 * 2


def test_a_tied_head_is_on_the_last_stage_too():
    found = on("L4", model_of(QWEN3_06B), pipeline_parallel_size=2)
    table = 151936 * 1024
    assert sizes(found)["weights"] == pytest.approx(2 * ((596_049_920 - table) / 2 + table), rel=1e-6)


def test_graphs_are_captured_on_gpus_unless_told_otherwise():
    assert sizes(on("L4", LLAMA_8B))["CUDA graphs"] == 512 << 20
    assert "CUDA graphs" not in sizes(on("L4", LLAMA_8B, enforce_eager=True))
    on_cpu = estimate_serve({}, model=LLAMA_8B, device=host_memory(64 * GIB), most_gpus=0)
    assert "CUDA graphs" not in sizes(on_cpu)


@pytest.mark.parametrize(
    ("product", "tokens", "seqs"),
    [
        ("A100-SXM4-80GB", 2048, 256),
        ("H100-SXM5-80GB", 8192, 1024),
        ("H200-SXM5-141GB", 8192, 1024),
        ("B200", 16384, 1024),
        ("RTX-4090", 2048, 256),
        (None, 2048, 128),
    ],
)
def test_batches_are_those_of_vllms_api_server_on_that_card(product: str | None, tokens: int, seqs: int):
    gpu = card(product) if product else None
    found = serving_shape(
        {}, model=LLAMA_31_8B, card_bytes=gpu.memory_bytes if gpu else None, product=gpu.nvml if gpu else None
    )
    assert (found.max_num_batched_tokens, found.max_num_seqs) == (tokens, seqs)


def test_a_prompt_passes_at_once_without_chunks():
    def of(**engine: Any) -> int:
        return serving_shape(engine, model=LLAMA_31_8B, card_bytes=24 * GIB).max_num_batched_tokens

    assert of(enable_chunked_prefill=False, max_model_len=30_000) == 30_000
    assert of(enable_chunked_prefill=False, max_model_len=500) == 2048
    assert of(max_model_len=100, max_num_seqs=4) == 400


def test_experts_are_all_in_memory_and_their_activations_are_of_those_picked():
    found = on("H200-SXM5-141GB", model_of(MIXTRAL_8X7B), max_num_batched_tokens=16384, max_num_seqs=16)
    assert sizes(found)["weights"] == 2 * 46_702_792_704
    assert sizes(found)["activations"] == 16384 * (8 * 4096 + 6 * 2 * 14336)


def test_a_share_of_a_card_is_a_share_of_its_budget():
    model = model_of(QWEN25_3B)
    whole, half = (on("L4", model, share, max_model_len=4096) for share in (1.0, 0.5))
    assert half.budget_bytes == pytest.approx((whole.budget_bytes or 0) / 2, rel=1e-3)
    said = on("L4", model, 0.5, max_model_len=4096, gpu_memory_utilization=0.4)
    assert said.budget_bytes == pytest.approx(0.4 * 0.97 * card("L4").memory_bytes, rel=1e-6)
    assert (said.allowed.name, whole.allowed.name) == ("0.4 of NVIDIA L4", "0.92 of NVIDIA L4")


def test_concurrency_is_the_cache_by_whole_sequences():
    found = on("A100-SXM4-80GB", LLAMA_8B, max_model_len=8192)
    assert found.tokens and found.sequences == pytest.approx(found.tokens / 8192, rel=1e-3)
    assert found.largest_max_model_len == 8192, "no longer than the model's own"
    small = on("RTX-3090", LLAMA_31_8B, max_model_len=4096)
    assert small.tokens is not None and 8192 < small.tokens < 131072
    assert small.largest_max_model_len == small.tokens


def test_a_cache_of_a_given_size_is_what_vllm_takes():
    model = model_of(LLAMA_2_7B)
    found = on("A100-SXM4-80GB", model, kv_cache_memory_bytes=8 * GIB)
    assert found.budget_bytes == found.estimate.fixed.device_bytes + 8 * GIB
    assert (found.tokens, found.sequences) == (16_384, 4.0)


GEMMA_3_27B = llama(
    5376, 21504, 62, 32, context=131072, num_key_value_heads=16, vocab_size=262208, head_dim=128,
    sliding_window=1024, model_type="gemma3_text", tie_word_embeddings=True,
)  # fmt: skip


def test_the_longest_context_of_a_model_with_windows_is_the_one_that_still_fits():
    model = model_of(GEMMA_3_27B)
    found = on("A100-SXM4-80GB", model, max_model_len=131072)
    assert found.fits and found.largest_max_model_len == 131072
    assert found.tokens == pytest.approx(131072 * (found.sequences or 0), abs=16), "as vLLM counts them"
    small = on("A100-SXM4-80GB", model, max_model_len=131072, gpu_memory_utilization=0.78)
    longest = small.largest_max_model_len
    assert small.fits is False and longest and 16384 < longest < 131072
    fits, fails = (
        on("A100-SXM4-80GB", model, max_model_len=n, gpu_memory_utilization=0.78)
        for n in (longest, longest + 16)
    )
    assert (fits.fits, fails.fits) == (True, False)
    advised = next(str(way) for way in small.ways if "max_model_len" in str(way))
    assert advised == f"engine.max_model_len: {longest // 256 * 256}"


def test_where_all_layers_are_windowed_any_length_fits():
    model = model_of(LLAMA_3_8B | {"sliding_window": 4096, "max_position_embeddings": 131072})
    assert on("L4", model).largest_max_model_len == 131072


@pytest.mark.parametrize(
    ("written", "read"),
    [("8k", 8000), ("8K", 8192), ("25.6k", 25600), ("8192", 8192), (" 1m ", 10**6), (4096, 4096)],
)
def test_lengths_are_read_as_vllm_reads_them(written: Any, read: int):
    """vllm/utils/argparse_utils.py, human_readable_int."""
    shape = serving_shape(
        {"max_model_len": written, "max_num_batched_tokens": written}, model=LLAMA_31_8B, card_bytes=24 * GIB
    )
    assert (shape.max_model_len, shape.max_num_batched_tokens) == (read, read)


@pytest.mark.parametrize("written", ["auto", "AUTO", "-1", -1])
def test_where_vllm_chooses_the_length_it_takes_the_longest_that_fits(written: Any):
    found = on("L4", LLAMA_31_8B, max_model_len=written)
    assert found.fits is True
    assert found.max_model_len == found.largest_max_model_len
    assert found.sequences == pytest.approx(1, rel=0.01)
    assert on("L4", LLAMA_31_8B, max_model_len=found.max_model_len).fits is True


def test_without_a_known_cache_weights_are_refused_and_nothing_else():
    unknown = model_of(LLAMA_3_8B | {"mamba_d_state": 16, "max_position_embeddings": 10**6})
    found = on("L4", unknown)
    assert (found.fits, found.tokens, found.sequences, found.largest_max_model_len) == (None,) * 4
    assert "without its KV cache" in found.verdict
    assert on("RTX-4060", unknown).fits is False, "its weights alone are too much"
    assert on("L4", LLAMA_31_8B, kv_cache_dtype="turboquant_3bit_nc").estimate.bytes_per_token < 64 << 10


def test_a_cache_of_a_given_size_must_hold_a_sequence_and_fit_itself():
    small, large = (on("A100-SXM4-80GB", LLAMA_8B, kv_cache_memory_bytes=n) for n in (1, 10**12))
    assert (small.fits, large.fits) == (False, False)
    assert [str(way) for way in small.ways] == ["engine.kv_cache_memory_bytes: 1073741824"]
    (way,) = large.ways
    size = int(str(way).removeprefix("engine.kv_cache_memory_bytes: "))
    assert on("A100-SXM4-80GB", LLAMA_8B, kv_cache_memory_bytes=size).fits is True
    assert on("A100-SXM4-80GB", LLAMA_8B, kv_cache_memory_bytes=size + 1).fits is False
    assert large.verdict.startswith("does not fit by 8")


PHI_35_MINI = llama(
    3072, 8192, 32, 32, context=131072, vocab_size=32064, model_type="phi3",
    original_max_position_embeddings=4096, rope_scaling={"type": "longrope"},
)  # fmt: skip
DEEPSEEK_CODER = llama(
    4096, 11008, 32, 32, context=16384, vocab_size=32256, rope_scaling={"type": "linear", "factor": 4.0}
)


def test_a_model_of_two_context_lengths_is_served_with_the_shorter_and_may_be_asked_for_the_longer():
    phi = model_of(PHI_35_MINI)
    unasked = on("A10", phi)
    assert (unasked.fits, unasked.max_model_len) == (True, 4096)
    assert unasked.largest_max_model_len and 16384 < unasked.largest_max_model_len < 131072
    assert on("A10", phi, max_model_len=131072).fits is False
    assert on("A100-SXM4-80GB", phi, max_model_len="auto").max_model_len == 4096, "vLLM chooses no longer one"
    assert on("A100-SXM4-80GB", phi, max_model_len=8192).largest_max_model_len == 131072


def test_positions_that_are_scaled_make_the_context_longer():
    found = on("A10", model_of(DEEPSEEK_CODER))
    assert (found.max_model_len, found.fits) == (65536, False)
    assert on("A10", model_of(DEEPSEEK_CODER), max_model_len=8192).fits is True


def test_without_its_window_a_model_is_served_no_longer_than_that():
    model = model_of(LLAMA_3_8B | {"sliding_window": 4096, "max_position_embeddings": 32768})
    assert on("L4", model).max_model_len == 32768
    assert on("L4", model, disable_sliding_window=True).max_model_len == 4096


def test_offloaded_weights_are_in_the_nodes_memory():
    plain, off = (on("L4", LLAMA_8B, max_model_len=4096, cpu_offload_gb=gib) for gib in (0, 12))
    assert sizes(plain)["weights"] - sizes(off)["weights"] == 12 * GIB
    assert (plain.estimate.fixed.host_bytes, off.estimate.fixed.host_bytes) == (0, 12 * GIB)
    assert (on("RTX-4070", LLAMA_8B, max_model_len=4096).fits, on("RTX-4070", LLAMA_8B, max_model_len=4096,
            cpu_offload_gb=8).fits) == (False, True)  # fmt: skip
    at_most = on("L4", LLAMA_8B, cpu_offload_gb=100)
    assert sizes(at_most)["weights"] == 2 * 2 * 128256 * 4096, "embedding and head stay"
    on_cpu = estimate_serve({"cpu_offload_gb": 12}, model=LLAMA_8B, device=host_memory(64 * GIB), most_gpus=0)
    assert sizes(on_cpu)["weights"] == sizes(plain)["weights"]


@pytest.fixture
def drafter(tmp_path: Path) -> Path:
    return write_headers(tmp_path / "drafter", QWEN3_06B, shapes_of(QWEN3_06B))


def test_a_model_that_drafts_is_loaded_beside_and_keeps_every_token_too(drafter: Path):
    plain = on("L4", LLAMA_8B, max_model_len=4096)
    spec = {"model": str(drafter), "num_speculative_tokens": 3}
    both = on("L4", LLAMA_8B, max_model_len=4096, speculative_config=spec)
    assert sizes(both)["draft model"] == 2 * 596_049_920
    assert both.estimate.bytes_per_token - plain.estimate.bytes_per_token == 28 * 2 * 8 * 128 * 2
    assert both.estimate.least_bytes > plain.estimate.least_bytes + 2 * 596_049_920
    words = on("L4", LLAMA_8B, max_model_len=4096, spec_model=str(drafter), spec_tokens=3)
    assert sizes(words) == sizes(both)
    two = on("L4", LLAMA_8B, tensor_parallel_size=2, speculative_config=spec)
    one = on("L4", LLAMA_8B, tensor_parallel_size=2,
             speculative_config=spec | {"draft_tensor_parallel_size": 1})  # fmt: skip
    assert sizes(one)["draft model"] == 2 * sizes(two)["draft model"] == sizes(both)["draft model"]


def test_drafting_without_a_model_takes_nothing(drafter: Path):
    found = on("L4", LLAMA_8B, max_model_len=4096, speculative_config={"method": "ngram"})
    assert found.fits is True and "draft model" not in sizes(found)


@pytest.mark.parametrize(
    ("quantization", "linear", "expert"),
    [
        ("fp8_per_tensor", 1, 1), ("fp8_per_channel", 1, 1), ("mxfp8", 1 + 1 / 32, 1 + 1 / 32),
        ("fp8_per_block", 1 + 4 / 16384, 1 + 4 / 16384), ("mxfp4", 17 / 32, 17 / 32),
        ("experts_int8", 2, 1), ("int8_per_channel_weight_only", 2, 1), ("nvfp4_per_token", 2, 9 / 16),
    ],
)  # fmt: skip
def test_weights_that_vllm_quantizes_while_loading_are_as_large_as_it_makes_them(
    quantization: str, linear: float, expert: float
):
    """vllm/config/quantization.py, _ONLINE_SHORTHANDS: some are of routed experts only."""
    table, experts = 2 * 32000 * 4096, 32 * 8 * 3 * 4096 * 14336
    rest = 46_702_792_704 - table - experts
    found = on("H200-SXM5-141GB", model_of(MIXTRAL_8X7B), quantization=quantization)
    assert sizes(found)["weights"] == pytest.approx(2 * table + linear * rest + expert * experts, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hf_overrides", {"num_hidden_layers": 2}), ("num_gpu_blocks_override", 100), ("quantization", "own"),
        ("quantization_config", {"linear": "mxfp4"}), ("offload_backend", "prefetch"),
        ("offload_group_size", 8), ("cpu_offload_params", ["experts"]), ("decode_context_parallel_size", 2),
        ("speculative_config", {"model": "org/somewhere", "num_speculative_tokens": 3}),
        ("speculative_config", {"method": "mtp", "num_speculative_tokens": 1}),
        ("spec_method", "eagle3"),
    ],
)  # fmt: skip
def test_with_an_argument_that_is_not_reckoned_nothing_is_known_and_nothing_refused(name: str, value: Any):
    engine = {name: value}
    device = share_of(card("RTX-4060"))
    found = estimate_serve(engine, model=LLAMA_31_8B, device=device, most_gpus=8)
    assert on("RTX-4060", LLAMA_31_8B).fits is False
    assert (found.fits, found.tokens, found.largest_max_model_len, found.ways) == (None, None, None, [])
    assert f"not known: it depends on engine.{name}, which" in found.verdict
    assert hardware_for(engine, model=LLAMA_31_8B, gpus=[card("B300")]) == []
    planned = check_memory(engine, model=LLAMA_31_8B, device=device, most_gpus=8, elsewhere={})
    assert planned == (None, [])


def test_offloading_weights_that_are_quantized_is_not_reckoned_nor_advised():
    found = on("RTX-4060", LLAMA_8B, cpu_offload_gb=2, quantization="fp8")
    assert found.fits is None and "engine.cpu_offload_gb" in found.verdict
    plain = on("RTX-4060", LLAMA_8B, cpu_offload_gb=2)
    assert plain.fits is False and "quantization" not in " ".join(str(way) for way in plain.ways)


def test_an_argument_at_its_default_changes_nothing():
    engine = {
        "hf_overrides": {},
        "cpu_offload_gb": 0,
        "decode_context_parallel_size": 1,
        "quantization": None,
    }
    found = on("L4", LLAMA_8B, speculative_config=None, offload_backend="auto", **engine)
    assert found.fits is True and sizes(found) == sizes(on("L4", LLAMA_8B))


def test_a_head_that_drafts_is_not_taken_for_a_whole_model(tmp_path: Path):
    eagle = write_headers(tmp_path / "EAGLE3-LLaMA", LLAMA_3_8B, shapes_of(LLAMA_3_8B))
    found = on("L4", LLAMA_8B, speculative_config={"model": str(eagle), "num_speculative_tokens": 3})
    assert found.fits is None and "engine.speculative_config" in found.verdict
