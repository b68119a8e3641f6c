"""How much memory one worker of an engine needs, and what its KV cache has room for."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.estimator.calibration import Calibration
from cluster.estimator.kv_cache import KvCache
from cluster.estimator.model import ModelShape
from cluster.estimator.terms import Estimate, Term

_BLOCK_TOKENS = 16
"""vLLM hands out the KV cache in blocks."""

_LOADER = "vLLM, the model's own parallel layers"


@dataclass(frozen=True)
class ServingShape:
    """Everything about an engine that decides how much memory one of its workers needs."""

    model: ModelShape
    max_model_len: int
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 256
    weight_bytes: float | None = None
    """Bytes of a parameter where the engine converts it while it loads (1: fp8); None: as the files say."""

    kv_cache_bytes: float = 2
    """Of one number in the cache: 1 for fp8."""

    captures_graphs: bool = True
    max_loras: int = 0
    max_lora_rank: int = 16


@dataclass(frozen=True)
class ServingEstimate:
    """What one worker needs before its KV cache, and what so many bytes of cache hold."""

    fixed: Estimate
    """All but the KV cache."""

    bytes_per_token: int
    """Of KV cache, on one GPU."""

    bytes_per_sequence: int
    """Of one of ``max_model_len`` tokens, on one GPU."""

    max_model_len: int

    @property
    def least_bytes(self) -> int:
        """With room for one sequence of ``max_model_len``: with less vLLM does not start."""
        return self.fixed.device_bytes + self.bytes_per_sequence

    def cache_bytes(self, budget_bytes: int) -> int:
        """What is left for the KV cache of what the worker may take."""
        return max(0, budget_bytes - self.fixed.device_bytes)

    def tokens(self, budget_bytes: int) -> int:
        """That the cache holds at once."""
        blocks = self.cache_bytes(budget_bytes) // max(1, self.bytes_per_token * _BLOCK_TOKENS)
        return blocks * _BLOCK_TOKENS

    def sequences(self, budget_bytes: int, tokens: int) -> float:
        """Sequences of so many tokens at a time: vLLM's "maximum concurrency"."""
        each = self.bytes_per_token * -(-tokens // _BLOCK_TOKENS) * _BLOCK_TOKENS
        return self.cache_bytes(budget_bytes) / max(1, min(each, self._of_windowed(tokens)))

    def _of_windowed(self, tokens: int) -> int:
        """A model with windows keeps less of a long sequence than of as many tokens of short ones."""
        if tokens < self.max_model_len:
            return self.bytes_per_token * tokens
        return self.bytes_per_sequence


def estimate_serving(shape: ServingShape, calibration: Calibration) -> ServingEstimate:
    """What one worker of an engine needs; the largest, where pipeline stages differ."""
    cache = shape.model.kv_cache(shape.kv_cache_bytes)
    ways = shape.tensor_parallel_size
    # A KV head is not divided: with more workers than heads each has a copy of one.
    kv_ways = 1 if cache is None or cache.is_mla else min(ways, cache.heads)
    stages = shape.pipeline_parallel_size
    per_token = per_sequence = 0
    if cache is not None:
        layers = _of_largest_stage(cache.layers, stages)
        per_token = round((cache.bytes_per_token + cache.windowed_bytes_per_token) * layers / kv_ways)
        per_sequence = round(_of_one_sequence(shape, cache) * layers / kv_ways)
    workers = ways * stages
    terms = [
        Term(
            "process",
            calibration.serve_process_bytes,
            "the interpreter and its libraries, or the GPU's context",
            calibration.source,
        ),
        Term("weights", _weights(shape), _weights_words(shape), _LOADER),
        Term(
            "activations",
            _activations(shape),
            f"{shape.max_num_batched_tokens:,} tokens in a layer, {shape.max_num_seqs:,} rows of logits",
            "vLLM, profile_run",
        ),
        Term(
            "adapters",
            _adapters(shape),
            f"{shape.max_loras} of rank {shape.max_lora_rank}",
            "vLLM, LoRA slots",
        ),
    ]
    if shape.captures_graphs:
        terms.append(
            Term("CUDA graphs", calibration.graphs_bytes, "captured decode steps", calibration.source)
        )
    if workers > 1:
        terms.append(
            Term(
                "communication",
                calibration.communication_bytes,
                "buffers of the process group",
                calibration.source,
            )
        )
    return ServingEstimate(Estimate.of(terms), per_token, per_sequence, shape.max_model_len)


def _of_largest_stage(layers: int, stages: int) -> float:
    """Its share of all layers."""
    return -(-layers // stages) / max(1, layers)


def _of_one_sequence(shape: ServingShape, cache: KvCache) -> int:
    """Of one of ``max_model_len``: windowed layers keep the batches on their way, too.

    Source: vllm/v1/kv_cache_interface.py, SlidingWindowSpec; vllm/config/vllm.py, max_in_flight_tokens.
    """
    tokens = shape.max_model_len
    window = tokens
    if cache.window is not None:
        batches = max(2, shape.pipeline_parallel_size)  # two with asynchronous scheduling
        window = min(tokens, cache.window + batches * shape.max_num_batched_tokens)
    return tokens * cache.bytes_per_token + window * cache.windowed_bytes_per_token


def _weights(shape: ServingShape) -> int:
    """Of the worker that has most: the embedding is on the first stage, the head on the last."""
    model, stages = shape.model, shape.pipeline_parallel_size
    ends = max(model.embedding, model.head or (model.embedding if model.tied else 0))
    if stages == 1:
        ends = model.embedding + model.head
    blocks = model.total - model.embedding - model.head
    each = _bytes_per_parameter(shape)
    # Head and embedding stay in 16 bits in nearly every quantized format.
    in_blocks = blocks * each * _of_largest_stage(model.layers, stages)
    return round((in_blocks + ends * max(2.0, each)) / shape.tensor_parallel_size)


def _bytes_per_parameter(shape: ServingShape) -> float:
    """Of the blocks' weights."""
    model = shape.model
    if not model.quantized:
        return shape.weight_bytes or 2.0
    outside = sum(p.size_bytes for p in model.parameters.parts if p.name in ("embedding", "head"))
    blocks = model.total - model.embedding - model.head
    return (model.parameters.size_bytes - outside) / max(1, blocks)


def _weights_words(shape: ServingShape) -> str:
    divided = [
        f"{count} {what}"
        for count, what in (
            (shape.tensor_parallel_size, "tensor-parallel workers"),
            (shape.pipeline_parallel_size, "stages"),
        )
        if count > 1
    ]
    each = f"{_bytes_per_parameter(shape):.3g} B x {shape.model.total:,}"
    return " / ".join([each, *divided])


def _activations(shape: ServingShape) -> int:
    """The largest of what is there at once while one batch passes, and the sampler's copies of the logits.

    Source: vLLM's profile run, seen as ``peak activation memory`` in its log (docs/estimator.md).
    """
    model, ways = shape.model, shape.tensor_parallel_size
    tokens = shape.max_num_batched_tokens
    in_layer = tokens * (4 * 2 * model.hidden_size + 3 * 2 * -(-model.intermediate_size // ways))
    rows = min(shape.max_num_seqs, tokens)
    # Gathered from all workers in 16 bits, then in 32 bits with two temporaries of top-k and top-p.
    logits = rows * model.vocab_size * (2 + 3 * 4)
    return max(in_layer, logits)


def _adapters(shape: ServingShape) -> int:
    """Room for every adapter that may be at work at once, in the largest rank.

    Of several workers each has its part of the side on which the layer itself is divided, and all of the
    other, hidden_size (``fully_sharded_loras`` is off).
    """
    if not shape.max_loras:
        return 0
    hidden = shape.model.hidden_size
    each = 0
    for tensor in shape.model.linear_layers(["all"]):
        whole = hidden if hidden in tensor.shape else min(tensor.shape)
        each += shape.max_lora_rank * (whole + (sum(tensor.shape) - whole) // shape.tensor_parallel_size)
    return round(
        2 * shape.max_loras * each * _of_largest_stage(shape.model.layers, shape.pipeline_parallel_size)
    )
