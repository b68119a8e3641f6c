"""How much memory one worker of an engine needs, and what its KV cache has room for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cluster.estimator.calibration import Calibration
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

    expert_bytes: float | None = None
    """The same of one of a routed expert; None: as of any other."""

    kv_cache_dtype: str = "auto"
    """vLLM's word for what the cache keeps of a number."""

    element_bytes: float = 2
    """Of a number in the model's own type, which ``auto`` keeps."""

    captures_graphs: bool = True
    max_loras: int = 0
    max_lora_rank: int = 16
    offload_bytes: int = 0
    """Of the blocks' weights, that stay in the node's memory at most, for each worker."""

    draft: ServingShape | None = None
    """The model that drafts tokens for it, in the same worker; None: none does."""


@dataclass(frozen=True)
class SequenceCache:
    """KV cache of one sequence, on one worker."""

    bytes_per_token: int
    """In the layers that keep every token."""

    windowed_bytes_per_token: int
    """In those that keep the last ``window`` tokens only."""

    window: int | None
    """With the batches on their way, which windowed layers keep, too; None: no layer is windowed."""

    def bytes_for(self, tokens: int) -> int:
        """Of one sequence of so many tokens, in whole blocks."""
        kept = -(-tokens // _BLOCK_TOKENS) * _BLOCK_TOKENS
        windowed = kept if self.window is None else min(kept, self.window)
        return kept * self.bytes_per_token + windowed * self.windowed_bytes_per_token

    def longest(self, cache_bytes: int) -> int | None:
        """Tokens of the longest sequence that so many bytes hold, in whole blocks; None: of any length.

        ``bytes_for`` the other way round: up to the window all layers grow, beyond it those that keep all.
        """
        each = self.bytes_per_token + self.windowed_bytes_per_token
        tokens = cache_bytes // each if each else None
        if self.window is not None and (tokens is None or tokens > self.window):
            beyond = cache_bytes - self.window * self.windowed_bytes_per_token
            tokens = beyond // self.bytes_per_token if self.bytes_per_token else None
        return None if tokens is None else tokens // _BLOCK_TOKENS * _BLOCK_TOKENS


@dataclass(frozen=True)
class ServingEstimate:
    """What one worker needs before its KV cache, and what so many bytes of cache hold."""

    fixed: Estimate
    """All but the KV cache."""

    cache: SequenceCache | None
    """None where the model's config does not tell: then the estimate is of all else."""

    max_model_len: int

    @property
    def bytes_per_token(self) -> int:
        """Of KV cache, on one worker, in all layers; 0 where it is not known."""
        return self.cache.bytes_per_token + self.cache.windowed_bytes_per_token if self.cache else 0

    @property
    def bytes_per_sequence(self) -> int:
        """Of KV cache, on one worker, of a sequence of ``max_model_len``; 0 where it is not known."""
        return self.cache.bytes_for(self.max_model_len) if self.cache else 0

    @property
    def least_bytes(self) -> int:
        """With room for one sequence of ``max_model_len``: with less vLLM does not start."""
        return self.fixed.device_bytes + self.bytes_per_sequence

    def cache_bytes(self, budget_bytes: int) -> int:
        """What is left for the KV cache of what the worker may take."""
        return max(0, budget_bytes - self.fixed.device_bytes)

    def sequences(self, budget_bytes: int) -> float | None:
        """Of ``max_model_len`` at a time: vLLM's "maximum concurrency"; None: not known, or any number."""
        each = self.bytes_per_sequence
        return self.cache_bytes(budget_bytes) / each if each else None

    def tokens(self, budget_bytes: int) -> int | None:
        """Tokens of those sequences, as vLLM counts what its cache holds; None: not known, or any number.

        Source: vllm/v1/core/kv_cache_utils.py, get_kv_cache_capacity.
        """
        each = self.bytes_per_sequence
        if not each:
            return None
        return self.cache_bytes(budget_bytes) * self.max_model_len // each // _BLOCK_TOKENS * _BLOCK_TOKENS

    def longest(self, budget_bytes: int) -> int | None:
        """Tokens of the longest sequence that has room; None: not known, or of any length."""
        return self.cache.longest(self.cache_bytes(budget_bytes)) if self.cache else None


def estimate_serving(shape: ServingShape, calibration: Calibration) -> ServingEstimate:
    """What one worker of an engine needs; the largest, where pipeline stages differ."""
    ways, stages = shape.tensor_parallel_size, shape.pipeline_parallel_size
    workers = ways * stages
    offloaded = min(shape.offload_bytes, _weights(shape) - _at_the_ends(shape))
    terms = [
        Term(
            "process",
            calibration.serve_process_bytes,
            "the interpreter and its libraries, or the GPU's context",
            calibration.source,
        ),
        Term("weights", _weights(shape) - offloaded, _weights_words(shape), _LOADER),
        Term(
            "offloaded weights", offloaded, "cpu_offload_gb, of the blocks", "vLLM, UVAOffloader", on="host"
        ),
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
    if shape.draft is not None:
        terms.append(
            Term(
                "draft model", _weights(shape.draft), _weights_words(shape.draft), "vLLM, DraftModelProposer"
            )
        )
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
    return ServingEstimate(Estimate.of(terms), _whole_cache(shape), shape.max_model_len)


def _whole_cache(shape: ServingShape) -> SequenceCache | None:
    """With that of the model that drafts: every token is in both."""
    own = _sequence_cache(shape)
    if own is None or shape.draft is None:
        return own
    draft = replace(shape.draft, max_num_batched_tokens=shape.max_num_batched_tokens)
    other = _sequence_cache(draft)
    if other is None:
        return None
    return SequenceCache(
        bytes_per_token=own.bytes_per_token + other.bytes_per_token,
        windowed_bytes_per_token=own.windowed_bytes_per_token + other.windowed_bytes_per_token,
        window=max((cache.window for cache in (own, other) if cache.window is not None), default=None),
    )


def _of_largest_stage(layers: int, stages: int) -> float:
    """Its share of all layers."""
    return -(-layers // stages) / max(1, layers)


def _sequence_cache(shape: ServingShape) -> SequenceCache | None:
    """Of the stage with most layers: windowed ones keep the batches on their way, too.

    Source: vllm/v1/kv_cache_interface.py, SlidingWindowSpec; vllm/config/vllm.py, max_in_flight_tokens.
    """
    cache = shape.model.kv_cache(
        shape.kv_cache_dtype,
        element_bytes=shape.element_bytes,
        tensor_parallel_size=shape.tensor_parallel_size,
    )
    if cache is None:
        return None
    share = _of_largest_stage(cache.layers, shape.pipeline_parallel_size)
    batches = max(2, shape.pipeline_parallel_size)  # two with asynchronous scheduling
    return SequenceCache(
        bytes_per_token=round(cache.bytes_per_token * share),
        windowed_bytes_per_token=round(cache.windowed_bytes_per_token * share),
        window=None if cache.window is None else cache.window + batches * shape.max_num_batched_tokens,
    )


def _weights(shape: ServingShape) -> int:
    """Of the worker that has most: the embedding is on the first stage, the head on the last."""
    model = shape.model
    blocks = model.total - model.embedding - model.head
    share = _of_largest_stage(model.layers, shape.pipeline_parallel_size)
    in_blocks = blocks * _bytes_per_parameter(shape) * share
    return round(in_blocks / shape.tensor_parallel_size) + _at_the_ends(shape)


def _at_the_ends(shape: ServingShape) -> int:
    """Of head and embedding, which stay in 16 bits in nearly every quantized format."""
    model = shape.model
    ends = max(model.embedding, model.head or (model.embedding if model.tied else 0))
    if shape.pipeline_parallel_size == 1:
        ends = model.embedding + model.head
    return round(ends * max(2.0, _bytes_per_parameter(shape)) / shape.tensor_parallel_size)


def _bytes_per_parameter(shape: ServingShape) -> float:
    """Of the blocks' weights, on average."""
    model = shape.model
    blocks = model.total - model.embedding - model.head
    if not model.quantized:
        each = shape.weight_bytes or 2.0
        experts = model.experts
        return each + ((shape.expert_bytes or each) - each) * experts / max(1, blocks)
    outside = sum(p.size_bytes for p in model.parameters.parts if p.name in ("embedding", "head"))
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
