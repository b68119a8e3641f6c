"""What of a training stays from step to step: weights, gradients, optimizer states, and their division."""

from __future__ import annotations

from dataclasses import replace

from cluster.estimator.optimizers import is_paged, state_bytes
from cluster.estimator.terms import FROM_BACKWARD, IN_PASSES, ONCE_TRAINING, TRAINING, On, Phase, Term
from cluster.estimator.training_shape import TrainingShape, Zero

_ZERO = "DeepSpeed, estimate_zero2_ and estimate_zero3_model_states_mem_needs"
_DDP = "torch, DistributedDataParallel"
_LLAMAFACTORY = "LLaMA-Factory, init_adapter"
_FIRST_BUCKET_BYTES = 262_144_000
"""DDP sends all weights around when it begins, 250 MiB at a time."""


def ddp_states(shape: TrainingShape) -> list[Term]:
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
            phases=TRAINING if shape.accumulates else FROM_BACKWARD,
        ),
        Term("gradient buckets", each * trained, words, _DDP, phases=ONCE_TRAINING),
        _states(shape, trained, parameter_bytes=each),
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
    """16-bit copies of the linear layers' weights: all until the forward pass ends, then those of a layer.

    torch keeps them without gradients, too.
    """
    if shape.precision == "autocast":
        model = shape.model
        head = model.head or model.embedding
        cast = min(shape.trained, model.per_layer * model.layers + head)
        layer = min(cast, model.per_layer)
    elif shape.precision == "lora":
        cast = shape.trained
        layer = shape.trained // max(1, shape.model.layers)
    else:
        return []
    source = "torch.autocast, weight cache"
    words = f"2 B x {cast:,} in linear layers"
    found = [Term("weights cast", 2 * cast, words, source, phases=("forward", "evaluation"))]
    if shape.gradient_checkpointing:
        found.append(
            Term("weights cast", 2 * layer, f"2 B x {layer:,} of a layer", source, phases=("backward",))
        )
    return found


def zero_states(shape: TrainingShape, zero: Zero, *, is_lazy: bool) -> list[Term]:
    """Of DeepSpeed, whose engine keeps the module in 16 bits and a partitioned copy in 32.

    Args:
        is_lazy: Whether memory that is asked for and never written costs nothing: not on a GPU.
    """
    trained, workers = shape.trained, shape.num_workers
    weights = workers if zero.stage == 3 else 1
    module: On = "host" if zero.offload_param else "device"
    others = workers if zero.stage >= 1 else 1
    gradients: On = "host" if zero.offload_optimizer else "device"
    optimizer: On = "disk" if zero.optimizer_on_disk else gradients
    always = ONCE_TRAINING if zero.offload_optimizer or zero.stage == 3 else None
    from_backward = always or (TRAINING if shape.accumulates else FROM_BACKWARD)
    found = [
        Term(
            "frozen weights",
            shape.frozen_bytes // weights,
            f"as loaded{_over(weights)}",
            "the model's files",
            on="disk" if zero.param_swap else module,
        ),
        *_module(shape, weights, zero, on=module),
        *_gradients(trained, others, zero, on=gradients, phases=from_backward),
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
            phases=ONCE_TRAINING if zero.offload_optimizer else ("step",),
        ),
        _states(shape, trained // others, on=optimizer),
        *_swap_buffers(trained // others, zero),
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


def _module(shape: TrainingShape, shards: int, zero: Zero, *, on: On) -> list[Term]:
    """Trained weights, in 16 bits; on a disk is what ``max_in_cpu`` leaves of them.

    Stage 3 leaves an adapter in 32 bits, as PEFT makes it; the other stages cast it with the rest.
    """
    name, own = "trained weights", shape.trained // shards
    each = 4 if zero.stage == 3 and shape.lora_rank else 2
    if zero.param_swap is None:
        words = f"{each} B x {shape.trained:,} trained{_over(shards)}"
        return [Term(name, each * own, words, _ZERO, on=on)]
    source = "DeepSpeed, _create_param_groups_fp16_flat_cpu_memory"
    in_memory = min(own, zero.param_swap.max_in_cpu)
    left = own - in_memory
    return [
        Term(name, each * in_memory, f"{each} B x {in_memory:,} (max_in_cpu, or all)", source, on="host"),
        Term(name, each * left, f"{each} B x {left:,}, the others", source, on="disk"),
    ]


def _swap_buffers(own: int, zero: Zero) -> list[Term]:
    """What DeepSpeed keeps on the host of what is offloaded to a disk: what it works at.

    Args:
        own: Parameters that this worker trains.
    """
    found = []
    group = min(own, zero.sub_group_size)
    if (count := zero.optimizer_buffer_count) is not None:
        words = f"{count} (buffer_count) x 4 B x {group:,} (sub_group_size, or all)"
        source = "DeepSpeed, OptimizerSwapper"
        found.append(Term("swap buffers", 4 * count * group, words, source, on="host"))
    if swap := zero.param_swap:
        numbers = swap.buffer_count * swap.buffer_size
        words = f"2 B x {swap.buffer_count} (buffer_count) x {swap.buffer_size:,} (buffer_size)"
        if own > swap.max_in_cpu:
            numbers += group
            words += f", and 2 B x {group:,} (sub_group_size, or all)"
        source = "DeepSpeed, AsyncPartitionedParameterSwapper"
        found.append(Term("swap buffers of weights", 2 * numbers, words, source, on="host"))
    return found


def _gradients(trained: int, others: int, zero: Zero, *, on: On, phases: tuple[Phase, ...]) -> list[Term]:
    """In 16 bits. ZeRO-1 divides them only once the backward pass is over."""
    words = f"2 B x {trained:,} trained"
    own = Term("gradients", 2 * trained // others, words + _over(others), _ZERO, on=on, phases=phases)
    if zero.stage != 1:
        return [own]
    source = "DeepSpeed, reduce_ipg_grads"
    in_passes = tuple(phase for phase in phases if phase in IN_PASSES)
    return [
        Term("gradients", 2 * trained, words, source, phases=in_passes),
        replace(own, phases=tuple(phase for phase in phases if phase not in IN_PASSES)),
    ]


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
    gathers = shape.num_workers > 1 or (zero.offload_param and not is_lazy)
    if zero.stage == 3 and gathers:
        live = min(zero.max_live_parameters, shape.model.total)
        found.append(
            Term(
                "gathered weights",
                2 * live,
                f"2 B x {live:,} (stage3_max_live_parameters, or all)",
                "DeepSpeed, partitioned_param_coordinator",
                phases=(*IN_PASSES, "evaluation"),
            )
        )
    return found


def _over(shards: int) -> str:
    return f" / {shards} workers" if shards > 1 else ""


def _states(shape: TrainingShape, parameters: int, *, parameter_bytes: int = 4, on: On = "device") -> Term:
    hidden = shape.model.hidden_size
    each = state_bytes(shape.optim, hidden_size=hidden, parameter_bytes=parameter_bytes)
    paged = is_paged(shape.optim)
    return Term(
        "optimizer states" + (" (paged)" if paged else ""),
        round(each * parameters),
        f"{each:g} B x {parameters:,} ({shape.optim})",
        "the optimizer's own state",
        on="host" if paged and on == "device" else on,
        phases=ONCE_TRAINING,
    )
