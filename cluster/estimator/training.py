"""How much memory one worker of a training needs, term by term."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.estimator.activations import Activations, Precision, activations, logits_bytes
from cluster.estimator.calibration import Calibration
from cluster.estimator.model import ModelShape
from cluster.estimator.optimizers import is_paged, state_bytes
from cluster.estimator.retained import is_given_back, retained_lora, retained_plain, retained_zero
from cluster.estimator.terms import Estimate, On, Phase, Term

_ZERO = "DeepSpeed, estimate_zero2_ and estimate_zero3_model_states_mem_needs"
_DDP = "torch, DistributedDataParallel"
_LLAMAFACTORY = "LLaMA-Factory, init_adapter"
_FROM_BACKWARD: tuple[Phase, ...] = ("backward", "step")
_IN_PASSES: tuple[Phase, ...] = ("forward", "backward")
_TRAINING: tuple[Phase, ...] = ("forward", "backward", "step")
_FIRST_BUCKET_BYTES = 262_144_000
"""DDP sends all weights around when it begins, 250 MiB at a time."""


@dataclass(frozen=True)
class Zero:
    """DeepSpeed's ZeRO, in its own words."""

    stage: int
    offload_optimizer: bool = False
    offload_param: bool = False
    reduce_bucket_size: int = 500_000_000
    """Numbers, not bytes."""

    max_live_parameters: int = 1_000_000_000
    overlap_comm: bool = False


@dataclass(frozen=True)
class TrainingShape:
    """Everything about a training that decides how much memory one of its workers needs."""

    model: ModelShape
    trained: int
    """Parameters that are trained; of LoRA, the adapter's."""

    frozen_bytes: int
    """Of the weights that are not, as they are loaded."""

    precision: Precision
    optim: str = "adamw_torch"
    zero: Zero | None = None
    """None: plain DDP, which one worker alone uses, too."""

    num_workers: int = 1
    per_device_train_batch_size: int = 1
    gradient_accumulation_steps: int = 1
    cutoff_len: int = 2048
    """Tokens of the longest row, and of every packed one."""

    rows_at_once: int = 1
    """Rows that one row of the dataset becomes: 2 of a pair (DPO, reward models)."""

    gradient_checkpointing: bool = True
    lora_rank: int = 0
    """0: no adapter is trained."""

    reference_bytes: int = 0
    """Of a second model that the loss compares with."""

    flash_attention: bool = True

    @property
    def tokens(self) -> int:
        """That pass through the model at a time."""
        return self.per_device_train_batch_size * self.cutoff_len * self.rows_at_once

    @property
    def accumulates(self) -> bool:
        """Whether gradients are there in the forward pass already."""
        return self.gradient_accumulation_steps > 1


def estimate_training(shape: TrainingShape, calibration: Calibration) -> Estimate:
    """What one worker needs at its peak: on its GPU, and in its host's memory.

    On a machine without GPUs all is in one memory: see :meth:`Estimate.on_one_memory`.
    """
    zero, kept = shape.zero, _kept(shape)
    states = _ddp(shape) if zero is None else _zero(shape, zero, is_lazy=calibration.is_cpu)
    terms = [
        Term("process", calibration.train_process_bytes, "by itself, before the model", calibration.source),
        Term(
            "training itself",
            calibration.train_engine_bytes if zero is None else calibration.train_deepspeed_bytes,
            "trainer and data" if zero is None else "trainer, data and DeepSpeed",
            calibration.source,
        ),
        Term("reference model", shape.reference_bytes, "2 B a parameter", "LLaMA-Factory, create_ref_model"),
        *states,
        *_activations(shape, kept),
    ]
    if calibration.optimizer_temporary_bytes:
        terms.append(_temporaries(shape, calibration.optimizer_temporary_bytes))
    if shape.num_workers > 1:
        terms.append(
            Term(
                "communication",
                calibration.communication_bytes,
                "buffers of the process group",
                calibration.source,
            )
        )
    estimate = Estimate.of(terms)
    return Estimate.of([*terms, *_beyond(shape, estimate, kept, calibration)])


def _kept(shape: TrainingShape) -> Activations:
    return activations(
        shape.model,
        shape.precision,
        lora_rank=shape.lora_rank,
        is_sharded=shape.zero is not None and shape.zero.stage == 3,
    )


def _ddp(shape: TrainingShape) -> list[Term]:
    """Of torch's DistributedDataParallel."""
    trained = shape.trained
    each = 2 if shape.precision == "half" else 4
    words = f"{each} B x {trained:,} trained"
    return [
        Term("frozen weights", shape.frozen_bytes, "as loaded", "the model's files"),
        Term("trained weights", each * trained, words, _LLAMAFACTORY),
        Term(
            "gradients",
            each * trained,
            words,
            "torch",
            phases=_TRAINING if shape.accumulates else _FROM_BACKWARD,
        ),
        Term("gradient buckets", each * trained, words, _DDP, phases=_TRAINING),
        _states(shape, trained, on_host=False),
        *_casts(shape),
        Term(
            "first broadcast",
            min(shape.frozen_bytes + each * trained, _FIRST_BUCKET_BYTES),
            "all weights once around, 250 MiB at a time",
            _DDP,
            phases=("loading",),
        ),
    ]


def _casts(shape: TrainingShape) -> list[Term]:
    """16-bit copies of the linear layers' weights: all until the forward pass ends, then those of a layer."""
    if shape.precision == "autocast":
        model = shape.model
        head = model.head or model.embedding
        cast = min(shape.trained, model.per_layer * model.layers + head)
        layer = model.per_layer
    elif shape.precision == "lora":
        cast = shape.trained
        layer = shape.trained // max(1, shape.model.layers)
    else:
        return []
    source = "torch.autocast, weight cache"
    found = [Term("weights cast", 2 * cast, f"2 B x {cast:,} in linear layers", source, phases=("forward",))]
    if shape.gradient_checkpointing:
        found.append(
            Term("weights cast", 2 * layer, f"2 B x {layer:,} of a layer", source, phases=("backward",))
        )
    return found


def _zero(shape: TrainingShape, zero: Zero, *, is_lazy: bool) -> list[Term]:
    """Of DeepSpeed, whose engine keeps the module in 16 bits and a partitioned copy in 32.

    Args:
        is_lazy: Whether memory that is asked for and never written costs nothing: not on a GPU.
    """
    trained, workers = shape.trained, shape.num_workers
    weights = workers if zero.stage == 3 else 1
    module: On = "host" if zero.offload_param else "device"
    others = workers if zero.stage >= 1 else 1
    optimizer: On = "host" if zero.offload_optimizer else "device"
    always = _TRAINING if zero.offload_optimizer or zero.stage == 3 else None
    from_backward = always or (_TRAINING if shape.accumulates else _FROM_BACKWARD)
    found = [
        Term(
            "frozen weights",
            shape.frozen_bytes // weights,
            f"as loaded{_over(weights)}",
            "the model's files",
            on=module,
        ),
        Term(
            "trained weights",
            2 * trained // weights,
            f"2 B x {trained:,} trained{_over(weights)}",
            _ZERO,
            on=module,
        ),
        Term(
            "gradients",
            2 * trained // others,
            f"2 B x {trained:,} trained{_over(others)}",
            _ZERO,
            on=optimizer,
            phases=from_backward,
        ),
        Term(
            "master weights",
            4 * trained // others,
            f"4 B x {trained:,} trained{_over(others)}",
            _ZERO,
            on=optimizer,
        ),
        Term(
            "gradients in 32 bits",
            4 * trained // others,
            f"4 B x {trained:,} trained{_over(others)}",
            _ZERO,
            on=optimizer,
            phases=_TRAINING if zero.offload_optimizer else ("step",),
        ),
        _states(shape, trained // others, on_host=zero.offload_optimizer),
        *_buckets(shape, zero, is_lazy=is_lazy),
    ]
    if zero.stage < 3:
        found.append(
            Term(
                "weights in 32 bits",
                4 * trained,
                f"4 B x {trained:,} trained, until DeepSpeed casts them back",
                _LLAMAFACTORY,
                on="host",
                phases=("loading",),
            )
        )
    return found


def _buckets(shape: TrainingShape, zero: Zero, *, is_lazy: bool) -> list[Term]:
    """What DeepSpeed needs to send and to gather."""
    found = []
    if zero.stage in (1, 2):
        size = zero.reduce_bucket_size * (2 if zero.overlap_comm else 1)
        if is_lazy:  # filled once, and copied
            size = 2 * min(size, shape.trained)
        found.append(
            Term(
                "reduce bucket",
                2 * size,
                f"2 B x {size:,} (reduce_bucket_size)",
                "DeepSpeed, setup_buckets",
                phases=("backward",),
            )
        )
    # One worker alone has them all, unless they are on the host and it computes elsewhere.
    gathers = shape.num_workers > 1 or shape.lora_rank or (zero.offload_param and not is_lazy)
    if zero.stage == 3 and gathers:
        live = min(zero.max_live_parameters, shape.model.total)
        found.append(
            Term(
                "gathered weights",
                2 * live,
                f"2 B x {live:,} (stage3_max_live_parameters, or all)",
                "DeepSpeed, partitioned_param_coordinator",
                phases=_IN_PASSES,
            )
        )
    return found


def _over(shards: int) -> str:
    return f" / {shards} workers" if shards > 1 else ""


def _states(shape: TrainingShape, parameters: int, *, on_host: bool) -> Term:
    each = state_bytes(shape.optim, hidden_size=shape.model.hidden_size)
    paged = is_paged(shape.optim)
    return Term(
        "optimizer states" + (" (paged)" if paged else ""),
        round(each * parameters),
        f"{each:g} B x {parameters:,} ({shape.optim})",
        "the optimizer's own state",
        on="host" if on_host or paged else "device",
        phases=_TRAINING,
    )


def _temporaries(shape: TrainingShape, each: int) -> Term:
    """Of an optimizer that works tensor by tensor; DeepSpeed's is one flat tensor."""
    zero = shape.zero
    if zero is not None and zero.offload_optimizer:
        largest = 0  # cpu_adam works in place
    elif zero is not None and zero.stage >= 1:
        largest = shape.trained // shape.num_workers
    elif shape.lora_rank:
        largest = shape.lora_rank * shape.model.intermediate_size
    else:
        largest = max((tensor.elements for tensor in shape.model.tensors), default=0)
    return Term(
        "optimizer's temporaries",
        each * largest,
        f"{each} B x {largest:,} of the largest tensor",
        "torch.optim, _single_tensor_adam",
        phases=("step",),
    )


def _activations(shape: TrainingShape, kept: Activations) -> list[Term]:
    tokens, layers = shape.tokens, shape.model.layers
    scores = 0 if shape.flash_attention else _scores(shape)
    found = [
        Term(
            "logits",
            logits_bytes(shape.model, tokens),
            f"12 B x {shape.model.vocab_size:,} x {tokens:,} tokens",
            "transformers, ForCausalLMLoss",
            phases=("forward",),
        ),
        Term(
            "head's input",
            kept.head * tokens,
            f"{kept.head:,} B x {tokens:,} tokens",
            "tensors that autograd saves",
            phases=("forward",),
        ),
    ]
    if not shape.gradient_checkpointing:
        size = (kept.layer * tokens + scores) * layers
        words = f"{kept.layer:,} B x {layers} layers x {tokens:,} tokens"
        return [*found, Term("activations", size, words, "tensors that autograd saves", phases=("forward",))]
    return [
        *found,
        Term(
            "activations",
            kept.checkpoint * layers * tokens,
            f"{kept.checkpoint:,} B x {layers} layers x {tokens:,} tokens: each layer's input",
            "torch.utils.checkpoint",
            phases=("forward",),
        ),
        Term(
            "activations",
            (kept.layer + kept.mlp_gradient) * tokens + scores,
            f"{kept.layer + kept.mlp_gradient:,} B x {tokens:,} tokens: one layer, computed again",
            "tensors that autograd saves",
            phases=("backward",),
        ),
    ]


def _scores(shape: TrainingShape) -> int:
    """Attention's scores of one layer where no kernel avoids them: in 16 and 32 bits, and their softmax."""
    rows = shape.per_device_train_batch_size * shape.rows_at_once
    return 8 * rows * shape.model.attention_heads * shape.cutoff_len**2


def _beyond(
    shape: TrainingShape, estimate: Estimate, kept: Activations, calibration: Calibration
) -> list[Term]:
    """What the allocator holds beyond what it was asked for."""
    if not calibration.is_cpu:
        asked = sum(term.size_bytes for term in estimate.at_peak if term.name != "process")
        size = round(calibration.fragmentation * asked)
        words = f"{calibration.fragmentation:.0%} of all but the process"
        return [Term("fragmentation", size, words, calibration.source)]
    forward, after = _retained(shape, estimate.on_one_memory(), kept)
    words, source = "what glibc does not give back", "measured: cluster/estimator/retained.py"
    return [
        Term("freed and kept", forward, words, source, phases=("forward",)),
        Term("freed and kept", after, words, source, phases=_FROM_BACKWARD),
    ]


def _retained(shape: TrainingShape, estimate: Estimate, kept: Activations) -> tuple[int, int]:
    """In the forward pass, and after it."""
    sizes: dict[str, int] = {}
    for term in estimate.terms:
        sizes[term.name] = max(sizes.get(term.name, 0), term.size_bytes)
    logits = sizes.get("logits", 0)
    large = logits if is_given_back(logits // 3) else 0
    layer = kept.layer * shape.tokens
    zero = shape.zero
    if zero is not None and zero.stage >= 1:
        passing = sum(sizes.get(name, 0) for name in ("activations", "logits", "head's input")) - large
        return retained_zero(
            zero.stage,
            offloads=zero.offload_optimizer,
            is_lora=shape.lora_rank > 0,
            trained=shape.trained,
            passing_bytes=passing + (layer if shape.gradient_checkpointing else 0),
        )
    peak = estimate.device_bytes - sizes["process"]
    if shape.precision == "lora":
        stay = ("frozen weights", "trained weights", "gradient buckets", "optimizer states")
        passing = peak - sum(sizes.get(name, 0) for name in stay)
        return (retained_lora(shape.model.total, passing, layer),) * 2
    embedding = 4 * shape.model.embedding
    copies = 4 * (1 if shape.model.tied else 2)
    large += sizes.get("gradient buckets", 0) + (copies * embedding if is_given_back(embedding) else 0)
    return (retained_plain(peak, large),) * 2
