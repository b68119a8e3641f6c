"""Numbers of workers that keep a run's global batch: with fewer workers each accumulates more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.core.errors import ConfigError

if TYPE_CHECKING:
    from train_jobs.plan import TrainPlan


def worker_counts(plan: TrainPlan) -> list[int]:
    """The sizes that the plan allows, ascending: those that divide the global batch."""
    batches = _batches(plan)
    return [n for n in range(plan.min_workers, plan.max_workers + 1) if batches % n == 0]


def accumulation_for(plan: TrainPlan, num_workers: int) -> int:
    """``gradient_accumulation_steps`` with so many workers.

    Raises:
        ConfigError: the global batch cannot be divided so.
    """
    batches = _batches(plan)
    if batches % num_workers:
        raise ConfigError(
            f"scaling.num_workers: is {num_workers}, but the run's global batch is {batches} times "
            f"per_device_train_batch_size ({plan.num_workers} workers x gradient_accumulation_steps "
            f"{batches // plan.num_workers}), which {num_workers} does not divide. Choose a divisor of "
            f"{batches}."
        )
    return batches // num_workers


def _batches(plan: TrainPlan) -> int:
    """Micro batches of one optimizer step, all workers together."""
    return plan.num_workers * int(plan.llamafactory.get("gradient_accumulation_steps") or 1)
