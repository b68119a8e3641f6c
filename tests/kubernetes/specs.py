"""Cluster specs, apps and jobs as data, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.workloads import ServeApp, TrainJob
from runtime.core.config import load_spec

GIB = 1 << 30
A100 = "NVIDIA-A100-SXM4-80GB"

L4_GROUP: dict[str, Any] = {
    "name": "l4",
    "accelerator_type": "NVIDIA-L4",
    "gpus": 1,
    "cpus": 7,
    "memory": "28GiB",
    "count": 3,
}
A100_GROUP: dict[str, Any] = {
    "name": "a100",
    "accelerator_type": A100,
    "gpus": 8,
    "cpus": 90,
    "memory": "1000GiB",
    "min": 0,
    "max": 4,
}
CPU_GROUP: dict[str, Any] = {"name": "cpu", "cpus": 15, "memory": "56GiB", "count": 2}


def spec(**changes: Any) -> ClusterSpec:
    """Three nodes of one L4 each and a bucket; ``changes`` replace top-level fields, as YAML has them."""
    fields: dict[str, Any] = {
        "name": "lab",
        "namespace": "tandem-lab",
        "image": "registry.example.com/team/tandem:0.1.0",
        "node_groups": [L4_GROUP],
        "store": {"uri": "gs://team/tandem"},
    }
    return load_spec(ClusterSpec, fields | changes)


def app(name: str = "qwen", *, graceful_shutdown_timeout_s: float = 20.0) -> ServeApp:
    """A serve app, as Serve's config has it."""
    application = {
        "name": name,
        "route_prefix": f"/{name}",
        "import_path": "serve_apps.build:build_app",
        "args": {"name": name, "model": "qwen3-4b/v1", "store": "gs://team/tandem"},
    }
    return ServeApp(name, application, graceful_shutdown_timeout_s)


def job(
    name: str = "sft",
    *,
    num_workers: tuple[int, int] = (3, 3),
    gpus_per_worker: float = 1.0,
    cpus_per_worker: float = 2.0,
    memory_bytes_per_worker: int = 8 * GIB,
    accelerator_type: str | None = None,
    spec: Mapping[str, Any] | None = None,
) -> TrainJob:
    """A training job of three workers with a GPU each."""
    return TrainJob(
        name=name,
        spec=spec or {"name": name, "model": "qwen3-4b/v1", "dataset": "alpaca"},
        run_id=f"{name}-0a1b2c3d",
        num_workers=num_workers,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        memory_bytes_per_worker=memory_bytes_per_worker,
        accelerator_type=accelerator_type,
    )
