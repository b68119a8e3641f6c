"""What to write otherwise in a serve spec so that its engine fits, the cheapest changes first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cluster.estimator.advice import Change
from cluster.estimator.model import ModelShape
from cluster.estimator.serving import ServingEstimate

Engine = Mapping[str, Any]
_LEAST_MODEL_LEN = 1024
_MOST_WORKERS = 8


def changes(
    model: ModelShape, *, on_gpu: bool, estimate: ServingEstimate, budget_bytes: int, most_gpus: int
) -> list[Change[Engine]]:
    """Changes of ``engine``.

    Args:
        model: What it serves.
        estimate: Of the engine as it is.
        budget_bytes: What each of its workers may take.
        most_gpus: GPUs that one replica could have.
    """
    found = [_shorter(estimate, budget_bytes)]
    if on_gpu:
        found += [
            _set("max_num_seqs", 64, when=lambda engine: _above(engine, "max_num_seqs", 64)),
            _set("enforce_eager", True, when=lambda engine: not engine.get("enforce_eager")),
            _set("kv_cache_dtype", "fp8", when=lambda engine: engine.get("kv_cache_dtype") is None),
            *_parallel(model, most_gpus),
        ]
        if not model.quantized:
            found.append(_set("quantization", "fp8", when=lambda e: e.get("quantization") is None))
    return found


def _shorter(estimate: ServingEstimate, budget_bytes: int) -> Change[Engine]:
    """The longest context that the cache has room for as things are, in whole 256s."""
    fitting = estimate.tokens(budget_bytes) // 256 * 256
    shorter = max(_LEAST_MODEL_LEN, fitting)

    def apply(engine: Engine) -> Engine | None:
        return {**engine, "max_model_len": shorter} if shorter < estimate.max_model_len else None

    return Change("engine.max_model_len", apply, _length_words)


def _length_words(engine: Engine) -> str:
    return f"engine.max_model_len: {engine['max_model_len']}"


def _parallel(model: ModelShape, most_gpus: int) -> list[Change[Engine]]:
    def more(ways: int) -> Callable[[Engine], bool]:
        return lambda engine: engine.get("tensor_parallel_size", 1) < ways

    return [
        _set("tensor_parallel_size", ways, when=more(ways), kind="tensor_parallel_size")
        for ways in (2, 4, _MOST_WORKERS)
        if ways <= most_gpus and model.attention_heads % ways == 0
    ]


def _set(name: str, value: Any, *, when: Callable[[Engine], bool], kind: str = "") -> Change[Engine]:
    said = str(value).lower() if isinstance(value, bool) else value
    return Change(
        f"engine.{name}: {said}",
        lambda engine: {**engine, name: value} if when(engine) else None,
        kind=kind,
    )


def _above(engine: Engine, name: str, limit: int) -> bool:
    value = engine.get(name)
    return value is None or (isinstance(value, int) and value > limit)
