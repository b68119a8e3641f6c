"""How much memory one worker of a training needs, term by term."""

from __future__ import annotations

from dataclasses import replace

from cluster.estimator.activations import Activations, activations, logits_bytes
from cluster.estimator.calibration import Calibration
from cluster.estimator.retained import is_given_back, retained_lora, retained_plain, retained_zero
from cluster.estimator.states import ddp_states, zero_states
from cluster.estimator.terms import FROM_BACKWARD, Estimate, Phase, Term
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
        *_evaluation(shape, kept),
    ]
    if calibration.optimizer_temporary_bytes and shape.trained:
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
        zero_stage=None if shape.zero is None else shape.zero.stage,
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
    scores = _scores(shape, shape.per_device_train_batch_size)
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


def _scores(shape: TrainingShape, batch_size: int) -> int:
    """Attention's scores of one layer where no kernel avoids them: in 16 and 32 bits, and their softmax."""
    rows = batch_size * shape.rows_at_once
    return 0 if shape.flash_attention else 8 * rows * shape.model.attention_heads * shape.cutoff_len**2


def _evaluation(shape: TrainingShape, kept: Activations) -> list[Term]:
    """A batch that passes without gradients: a layer at a time, then the logits of all its tokens at once.

    The logits are counted in transformers' loss and LLaMA-Factory's trainers: in the model's type, in 32
    bits, and their logarithms.
    """
    found = shape.evaluation
    if found is None:
        return []
    model, batch = shape.model, found.per_device_eval_batch_size
    tokens = batch * shape.cutoff_len * shape.rows_at_once
    logits = found.logits_bytes * model.vocab_size * tokens
    rows = f"{batch} x cutoff_len: per_device_eval_batch_size"
    layer = (kept.mlp_gradient + kept.head) * tokens + _scores(shape, batch)
    wide = 4 if shape.precision in ("autocast", "single") else 2
    each = 2 * wide * model.layers * model.kv_heads * model.head_dim
    answers = (
        batch * found.num_beams * (shape.cutoff_len + found.max_new_tokens) if found.max_new_tokens else 0
    )
    passing = (
        Term(
            "logits of an evaluation",
            logits,
            f"{found.logits_bytes} B x {model.vocab_size:,} x {tokens:,} tokens ({rows})",
            "transformers, ForCausalLMLoss without gradients",
            phases=("evaluation",),
        )
        if logits > layer
        else Term(
            "a layer of an evaluation",
            layer,
            f"one layer's MLP and attention, {tokens:,} tokens ({rows})",
            "tensors that a layer makes",
            phases=("evaluation",),
        )
    )
    cache = Term(
        "keys and values of answers",
        each * answers,
        f"{each:,} B x {answers:,} tokens (per_device_eval_batch_size x (cutoff_len + max_new_tokens))",
        "transformers, DynamicCache",
        phases=("evaluation",),
    )
    return [passing, cache]


def _beyond(
    shape: TrainingShape, estimate: Estimate, kept: Activations, calibration: Calibration
) -> list[Term]:
    """What the allocator holds beyond what it was asked for."""
    if not calibration.is_cpu:
        asked = sum(term.size_bytes for term in estimate.at_peak if term.name != "process")
        size = round(calibration.fragmentation * asked)
        words = f"{calibration.fragmentation:.0%} of all but the process"
        return [Term("fragmentation", size, words, calibration.source)]
    trained = Estimate.of(replace(term, phases=_without_evaluation(term)) for term in estimate.terms)
    forward, after = _retained(shape, trained.on_one_memory(), kept)
    words, source = "what glibc does not give back", "measured: cluster/estimator/retained.py"
    return [
        Term("freed and kept", forward, words, source, phases=("forward",)),
        Term("freed and kept", after, words, source, phases=(*FROM_BACKWARD, "evaluation")),
    ]


def _without_evaluation(term: Term) -> tuple[Phase, ...]:
    """What glibc keeps was measured in trainings that did not evaluate."""
    return tuple(phase for phase in term.phases if phase != "evaluation")


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
            frozen=shape.model.total if shape.lora_rank else 0,
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
