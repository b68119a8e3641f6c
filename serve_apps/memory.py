"""An engine's arguments as the estimator looks at them: vLLM's own names, and its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.estimator.model import ModelShape
from cluster.estimator.serving import ServingShape

DEFAULT_UTILIZATION = 0.92
"""vLLM's ``gpu_memory_utilization``. Source: vllm/config/cache.py."""

_GIB = 1 << 30
_LEAST_MODEL_LEN = 1024
_LOADED_BYTES = {"fp8": 1.0, "bitsandbytes": 0.5 + 4 / 64, "experts_int8": 1.0, "fp_quant": 0.5}
"""Of a parameter, where vLLM quantizes while it loads."""


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
    max_model_len = _max_model_len(engine, model)
    if not engine.get("enable_chunked_prefill", True):
        batched = max(batched, max_model_len)  # a prompt passes at once
    seqs = _number(engine.get("max_num_seqs"), seqs)
    batched = _number(engine.get("max_num_batched_tokens"), min(batched, seqs * max_model_len))
    in_32_bits = engine.get("dtype") in ("float32", "float")
    return ServingShape(
        model=model,
        max_model_len=max_model_len,
        tensor_parallel_size=ways,
        pipeline_parallel_size=stages,
        max_num_batched_tokens=batched,
        max_num_seqs=seqs,
        weight_bytes=_LOADED_BYTES.get(str(engine.get("quantization")), 4.0 if in_32_bits else None),
        kv_cache_bytes=_cache_bytes(str(engine.get("kv_cache_dtype", "auto")), 4.0 if in_32_bits else 2.0),
        captures_graphs=card_bytes is not None and not engine.get("enforce_eager"),
        max_loras=_number(engine.get("max_loras"), 1) if engine.get("enable_lora") else 0,
        max_lora_rank=_number(engine.get("max_lora_rank"), 16),
    )


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


def _max_model_len(engine: Mapping[str, Any], model: ModelShape) -> int:
    given = engine.get("max_model_len")
    if isinstance(given, int) and given > 0:
        return given
    own = int(model.text.get("max_position_embeddings") or 2048)
    # -1: vLLM takes the longest that it has room for.
    return min(own, _LEAST_MODEL_LEN) if given == -1 else own


def _cache_bytes(kv_cache_dtype: str, of_model: float) -> float:
    if kv_cache_dtype.startswith(("fp8", "int8")):
        return 1.0
    if kv_cache_dtype.startswith(("int4", "nvfp4")):
        return 0.5
    return of_model if kv_cache_dtype == "auto" else 2.0


def _number(value: Any, default: int) -> int:
    return value if isinstance(value, int) and value > 0 else default
