"""An engine's arguments as the estimator looks at them: vLLM's own names, and its defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cluster.estimator.attention_layers import window_of
from cluster.estimator.model import ModelShape
from cluster.estimator.serving import ServingShape
from serve_apps.drafting import Drafting, drafting_of
from serve_apps.quantization import ONLINE

DEFAULT_UTILIZATION = 0.92
"""vLLM's ``gpu_memory_utilization``. Source: vllm/config/cache.py."""

_GIB = 1 << 30
_LEAST_MODEL_LEN = 1024
_HUMAN = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT]?)")
_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_NOT_RECKONED = (
    "hf_overrides", "hf_config_path", "model_class_overrides",  # another model than its files say
    "language_model_only", "mm_encoder_only",  # parts of it
    "quantization_config", "cpu_offload_params", "offload_params", "offload_group_size",
    "num_gpu_blocks_override", "kv_cache_dtype_skip_layers", "enable_eplb", "mm_ipc_gpu_memory_gb",
)  # fmt: skip
"""Arguments that change how much memory an engine takes in ways that are not reckoned here."""
_NOT_RECKONED_ABOVE_1 = ("decode_context_parallel_size", "prefill_context_parallel_size")


def default_utilization(share: float) -> float | None:
    """The ``gpu_memory_utilization`` that a plan says where the user does not; None: vLLM's own.

    Args:
        share: Of one card, which the replica reserves.
    """
    return round(0.9 * share, 4) if share < 1 else None


def serving_shape(
    engine: Mapping[str, Any], *, model: ModelShape, card_bytes: int | None, product: str | None = None
) -> ServingShape:
    """What the estimator is told of an engine.

    Args:
        engine: vLLM's arguments.
        model: The model that it serves.
        card_bytes: Memory of the GPU, which some of vLLM's defaults follow; None: no GPU.
        product: The GPU's name.
    """
    ways = int(engine.get("tensor_parallel_size", 1))
    stages = int(engine.get("pipeline_parallel_size", 1))
    batched, seqs = _defaults(card_bytes, product or "", ways * stages)
    length = _shortest(engine, model)
    if not engine.get("enable_chunked_prefill", True):
        batched = max(batched, length)  # a prompt passes at once
    seqs = _number(engine.get("max_num_seqs")) or seqs
    batched = _number(engine.get("max_num_batched_tokens")) or min(batched, seqs * length)
    in_32_bits = engine.get("dtype") in ("float32", "float")
    online = ONLINE.get(str(engine.get("quantization")))
    plain = 4.0 if in_32_bits else None
    return ServingShape(
        model=model,
        max_model_len=length,
        tensor_parallel_size=ways,
        pipeline_parallel_size=stages,
        max_num_batched_tokens=batched,
        max_num_seqs=seqs,
        weight_bytes=online.linear_bytes or plain if online else plain,
        expert_bytes=online.expert_bytes if online else None,
        kv_cache_dtype=str(engine.get("kv_cache_dtype") or "auto"),
        element_bytes=4.0 if in_32_bits else 2.0,
        captures_graphs=card_bytes is not None and not engine.get("enforce_eager"),
        max_loras=(_number(engine.get("max_loras")) or 1) if engine.get("enable_lora") else 0,
        max_lora_rank=_number(engine.get("max_lora_rank")) or 16,
        # Without a GPU the weights are on the host as they are.
        offload_bytes=0 if card_bytes is None else int(float(engine.get("cpu_offload_gb") or 0) * _GIB),
        draft=_draft_shape(drafting_of(engine), engine, ways, plain),
    )


def _draft_shape(
    drafting: Drafting, engine: Mapping[str, Any], ways: int, weight_bytes: float | None
) -> ServingShape | None:
    """The model that drafts, as an engine of its own: its weights and cache are beside the other's."""
    if drafting.model is None:
        return None
    return ServingShape(
        model=drafting.model,
        max_model_len=1,
        tensor_parallel_size=drafting.tensor_parallel_size or ways,
        weight_bytes=weight_bytes,
        kv_cache_dtype=str(engine.get("kv_cache_dtype") or "auto"),
        element_bytes=weight_bytes or 2.0,
    )


def not_reckoned(engine: Mapping[str, Any], model: ModelShape) -> tuple[str, ...]:
    """Arguments that change the memory of an engine in ways that are not reckoned here, by name.

    With one of them its estimate is not known: neither that it fits nor that it does not.
    """
    found = [name for name in _NOT_RECKONED if engine.get(name)]
    found += [name for name in _NOT_RECKONED_ABOVE_1 if (_number(engine.get(name)) or 1) > 1]
    if engine.get("offload_backend") == "prefetch":
        found.append("offload_backend")
    quantization = engine.get("quantization")
    if quantization is not None and not model.quantized and quantization not in ONLINE:
        found.append("quantization")
    if engine.get("cpu_offload_gb") and quantization in ONLINE and not model.quantized:
        found.append("cpu_offload_gb")  # which is done first, and in how many bits, is not known
    if unknown := drafting_of(engine).unknown:
        found.append(unknown)
    return tuple(found)


def _defaults(card_bytes: int | None, product: str, workers: int) -> tuple[int, int]:
    """``max_num_batched_tokens`` and ``max_num_seqs`` of the API server.

    Source: vllm/engine/arg_utils.py, get_batch_defaults.
    """
    if card_bytes is None:
        return 2048 * workers, 128 * workers
    if card_bytes >= 160 * _GIB:
        return 16384, 1024
    if card_bytes >= 70 * _GIB and "a100" not in product.lower():
        return 8192, 1024
    return 2048, 256


def max_model_len(engine: Mapping[str, Any]) -> int | None:
    """As it is written; -1 where vLLM shall take the longest that it has room for; None where it is not."""
    given = engine.get("max_model_len")
    if isinstance(given, str) and given.strip().lower() in ("auto", "-1"):
        return -1
    return -1 if given == -1 else _number(given)


def _shortest(engine: Mapping[str, Any], model: ModelShape) -> int:
    """The length that must fit: as it is written, else the model's own; short where vLLM may choose."""
    given = max_model_len(engine)
    own = model.context.unasked
    if engine.get("disable_sliding_window"):
        own = min(own, window_of(model.text) or own)
    if given is None:
        return own
    return min(own, _LEAST_MODEL_LEN) if given == -1 else given


def _number(value: Any) -> int | None:
    """A number from 1 on, as vLLM's parser reads it: ``8k`` is 8,000 and ``8K`` 8,192; None without one.

    Source: vllm/utils/argparse_utils.py, human_readable_int.
    """
    if isinstance(value, str) and (found := _HUMAN.fullmatch(value.strip())):
        digits, unit = found.groups()
        if unit in _DECIMAL:
            value = int(float(digits) * _DECIMAL[unit])
        elif "." not in digits:  # with a binary unit vLLM takes whole numbers only
            value = int(digits) * _BINARY.get(unit, 1)
    return value if type(value) is int and value > 0 else None
