"""What runs on a cluster, as rendering needs it: plain data, made from serve and train specs by the roof."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ServeApp:
    """One serve app."""

    name: str
    application: Mapping[str, Any]
    """Its entry in ``applications`` of Serve's config."""

    graceful_shutdown_timeout_s: float


@dataclass(frozen=True)
class TrainJob:
    """One training job."""

    name: str
    spec: Mapping[str, Any]
    """The train spec, resolved as far as it was; the same JSON as everywhere."""

    run_id: str
    """The run that it begins, or goes on with when it is tried again."""

    num_workers: tuple[int, int]
    """Least and most."""

    cpus_per_worker: float
    gpus_per_worker: float
    memory_bytes_per_worker: int
    accelerator_type: str | None
    """In Ray's words; None: any one product, ``any``: they may mix."""


Manifest = dict[str, Any]
"""One Kubernetes object as plain data."""
