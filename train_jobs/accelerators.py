"""GPU products: which one a job's workers are on, so that one job never mixes them unless asked."""

from __future__ import annotations

from collections.abc import Mapping

from runtime.core.errors import ConfigError
from runtime.core.lookup import did_you_mean

ANY = "any"


def choose(
    wanted: str | None, *, num_workers: int, gpus_per_worker: float, accelerators: Mapping[str, float] | None
) -> tuple[str | None, str | None]:
    """The product for all workers, and a note where it was chosen here.

    Args:
        wanted: ``scaling.accelerator_type``.
        num_workers: The least number of workers.
        gpus_per_worker: What each reserves.
        accelerators: GPUs by product; None where the cluster is not known.

    Returns:
        The product as Ray names it, None where any will do; and a note or None.

    Raises:
        ConfigError: the cluster has no such product, or none with room for all workers.
    """
    if gpus_per_worker == 0 or wanted == ANY:
        return None, None
    if wanted is not None:
        if accelerators is not None and wanted not in accelerators:
            raise ConfigError(
                f"scaling.accelerator_type: is {wanted!r}, which the cluster does not have. "
                f"{did_you_mean(wanted, accelerators)}"
            )
        return wanted, None
    if not accelerators:
        return None, None
    # Most GPUs first, then by the alphabet: the same choice every time.
    product, gpus = min(accelerators.items(), key=lambda pair: (-pair[1], pair[0]))
    needed = num_workers * gpus_per_worker
    if len(accelerators) == 1:
        # Said all the same, so that no other product joins the run later; no choice was made, so no note.
        return (product if gpus >= needed else None), None
    if gpus < needed:
        has = ", ".join(f"{count:g} {name}" for name, count in sorted(accelerators.items()))
        raise ConfigError(
            f"scaling: num_workers {num_workers} x gpus_per_worker {gpus_per_worker:g} is {needed:g} GPUs, "
            f"and no product of the cluster has so many ({has}). Lower one of them, or set "
            "accelerator_type: any to mix products."
        )
    return product, f"scaling.accelerator_type is {product}: all workers are on one product of GPU."
