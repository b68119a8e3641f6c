"""GPU products: which one a job's workers are on, so that one job never mixes them unless asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runtime.core.errors import ConfigError
from runtime.core.lookup import did_you_mean

ANY = "any"


def choices(
    wanted: str | None, *, num_workers: int, gpus_per_worker: float, accelerators: Mapping[str, float] | None
) -> list[str | None]:
    """The products that all workers may be on, as Ray names them: the first on which they fit is taken.

    Args:
        wanted: ``scaling.accelerator_type``.
        num_workers: The least number of workers.
        gpus_per_worker: What each reserves.
        accelerators: GPUs by product; None where the cluster is not known.

    Returns:
        Those that have GPUs enough, the one with most of them first; ``[None]`` where any will do.

    Raises:
        ConfigError: the cluster has no such product, or none with room for all workers.
    """
    if gpus_per_worker == 0 or wanted == ANY:
        return [None]
    if wanted is not None:
        if accelerators is not None and wanted not in accelerators:
            raise ConfigError(
                f"scaling.accelerator_type: is {wanted!r}, which the cluster does not have. "
                f"{did_you_mean(wanted, accelerators)}"
            )
        return [wanted]
    needed = num_workers * gpus_per_worker
    # Most GPUs first, then by the alphabet: the same choice every time. Where there is one product it is said
    # all the same, so that no other joins the run later.
    ordered = sorted((accelerators or {}).items(), key=lambda pair: (-pair[1], pair[0]))
    enough = [product for product, gpus in ordered if gpus >= needed]
    if accelerators and len(accelerators) > 1 and not enough:
        has = ", ".join(f"{count:g} {name}" for name, count in sorted(accelerators.items()))
        raise ConfigError(
            f"scaling: num_workers {num_workers} x gpus_per_worker {gpus_per_worker:g} is {needed:g} GPUs, "
            f"and no product of the cluster has so many ({has}). Lower one of them, or set "
            "accelerator_type: any to mix products."
        )
    return [*enough] or [None]


def note(product: str, passed_over: Sequence[str | None]) -> str:
    """That a product was chosen here, and why.

    Args:
        passed_over: Products with more GPUs on which the run would not fit.
    """
    why = f"; they would not fit on {' or '.join(map(str, passed_over))}" if passed_over else ""
    return f"scaling.accelerator_type is {product}: all workers are on one product of GPU{why}."
