"""What glibc keeps of memory that was given back: a process without a GPU is larger than what it uses.

Pieces of 32 MiB and more are mapped one by one and given back at once; smaller ones lie in arenas, which keep
their size. The numbers are fitted to 50 of 58 trainings of 2 to 240 million parameters; 8 were predicted
before they ran (docs/estimator.md).
"""

from __future__ import annotations

_MAPPED_ONE_BY_ONE = 32 << 20


def is_given_back(size_bytes: int) -> bool:
    """Whether a piece of so many bytes leaves the process when it is freed."""
    return size_bytes >= _MAPPED_ONE_BY_ONE


def retained_plain(peak_bytes: int, given_back_bytes: int) -> int:
    """Of a training with plain DDP.

    Args:
        peak_bytes: All that is in use at the peak.
        given_back_bytes: What of it is in large pieces.
    """
    return round(0.23 * max(0, peak_bytes - given_back_bytes))


def retained_lora(base: int, dynamic_bytes: int, layer_bytes: int) -> int:
    """Of an adapter's training.

    Args:
        base: Parameters of the frozen base.
        dynamic_bytes: What comes and goes in a step.
        layer_bytes: Activations of one layer.
    """
    return round(1.3 * min(base, 130_000_000) + max(0.6 * dynamic_bytes, 2.5 * layer_bytes))


def retained_zero(
    stage: int, *, offloads: bool, frozen: int, trained: int, passing_bytes: int
) -> tuple[int, int]:
    """Of a training under DeepSpeed, whose optimizer's flat pieces come on top of freed activations.

    Args:
        frozen: Parameters below an adapter, in 16 bits; 0 without one.
        trained: Parameters that are trained.
        passing_bytes: Activations of a step, in pieces that are not given back.

    Returns:
        In the forward pass, which takes its place again, and after it.
    """
    is_third = stage == 3
    stay = 0
    if frozen:
        # The whole weights, once: stage 3 gathers them before it knows which to keep.
        stay = 2 * frozen if is_third else 0
        weights, kept = 0.0, 1.6 if is_third else 1.45
    elif offloads:
        weights, kept = (6.0, 1.6) if is_third else (0.0, 1.9)
    else:
        weights, kept = (6.0, 0.9) if is_third else (2.0, 1.2)
    after = round(stay + weights * trained + kept * passing_bytes)
    return max(0, after - passing_bytes), after
