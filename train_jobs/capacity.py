"""What each worker reserves, and what the cluster can never hold, however long the job waits."""

from __future__ import annotations

from collections.abc import Mapping

from train_jobs.spec import Scaling


def gpus_per_worker(scaling: Scaling, cluster: Mapping[str, float] | None) -> float:
    """GPUs each worker reserves: what the spec says, else what suits the cluster.

    Args:
        cluster: All that the cluster has, such as ``{"CPU": 2.0, "GPU": 1.0}``; None where it is not known.
    """
    if scaling.gpus_per_worker is not None:
        return scaling.gpus_per_worker
    gpus = (cluster or {}).get("GPU", 0.0)
    if gpus == 0:
        return 0.0
    return 0.5 if gpus == 1 else 1.0


def resources_per_worker(scaling: Scaling, gpus: float) -> dict[str, float]:
    """What each worker reserves, in Ray's words: ``{"CPU": 0.5, "GPU": 1.0, "memory": 4294967296.0}``."""
    wanted = {
        "CPU": scaling.cpus_per_worker,
        "GPU": gpus,
        "memory": float(scaling.memory_bytes_per_worker or 0),
    }
    return {name: amount for name, amount in wanted.items() if amount or name == "CPU"}


def size_faults(scaling: Scaling, gpus: float, cluster: Mapping[str, float] | None) -> list[str]:
    """One line for each kind of resource that even the least number of workers finds too little of.

    Args:
        gpus: GPUs each worker reserves.
        cluster: All that the cluster has; None where it is not known: then nothing is refused.
    """
    if cluster is None:
        return []
    workers, cpus = scaling.min_workers, scaling.cpus_per_worker
    has_cpus, has_gpus = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
    faults = []
    if workers * cpus > has_cpus:
        faults.append(
            f"scaling: num_workers {workers} x cpus_per_worker {cpus:g} is {workers * cpus:g} CPUs, but the "
            f"whole cluster has {has_cpus:g}. Lower one of them."
        )
    if workers * gpus > has_gpus:
        remedy = "Lower one of them." if has_gpus else "Set gpus_per_worker: 0 to train on CPUs."
        faults.append(
            f"scaling: num_workers {workers} x gpus_per_worker {gpus:g} is {workers * gpus:g} GPUs, but the "
            f"whole cluster has {has_gpus:g}. {remedy}"
        )
    elif 0 < gpus < 1 and workers > has_gpus:
        faults.append(
            f"scaling: num_workers is {workers}, but the cluster has {has_gpus:g} GPUs: NCCL does not let "
            f"two workers share one GPU. Set num_workers: {has_gpus:g} and a larger "
            "llamafactory.per_device_train_batch_size."
        )
    return faults
