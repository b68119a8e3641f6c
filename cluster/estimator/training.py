"""How much memory one worker of a training needs, term by term."""

from __future__ import annotations

from cluster.estimator.activations import Activations, activations, logits_bytes
from cluster.estimator.calibration import Calibration
from cluster.estimator.retained import is_given_back, retained_lora, retained_plain, retained_zero
from cluster.estimator.states import ddp_states, zero_states
from cluster.estimator.terms import FROM_BACKWARD, Estimate, Term
from cluster.estimator.training_shape import TrainingShape


def estimate_training(shape: TrainingShape, calibration: Calibration) -> Estimate:
    """What one worker needs at its peak: on its GPU, and in its host's memory.

    On a machine without GPUs all is in one memory: see :meth:`Estimate.on_one_memory`.
    """
    zero, kept = shape.zero, _kept(shape)
    states = ddp_states(shape) if zero is None else zero_states(shape, zero, is_lazy=calibration.is_cpu)
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
        Term("freed and kept", after, words, source, phases=FROM_BACKWARD),
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
    peak = estimate.device_bytes - sizes.get("process", 0)
    if shape.precision == "lora":
        stay = ("frozen weights", "trained weights", "gradient buckets", "optimizer states")
        passing = peak - sum(sizes.get(name, 0) for name in stay)
        return (retained_lora(shape.model.total, passing, layer),) * 2
    embedding = 4 * shape.model.embedding
    copies = 4 * (1 if shape.model.tied else 2)
    large += sizes.get("gradient buckets", 0) + (copies * embedding if is_given_back(embedding) else 0)
    return (retained_plain(peak, large),) * 2
