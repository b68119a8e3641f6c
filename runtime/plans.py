"""Dry runs: the resolved plan, checked against the store and a cluster, with nothing started."""

from __future__ import annotations

from pathlib import Path

from cluster import local
from cluster.rest import cluster_resources
from runtime.core.config import blamed_on, load_spec, origin_of
from serve_apps.plan import ServePlan, plan_serve
from serve_apps.spec import ServeSpec
from storage.store import open_store
from train_jobs.plan import TrainPlan, plan_train, resolve
from train_jobs.spec import TrainSpec


def train_plan(spec: Path, address: str | None, store: str | None) -> TrainPlan:
    """The plan of a training spec."""
    with blamed_on(spec):
        resolved = resolve(load_spec(TrainSpec, spec))
        return plan_train(
            resolved,
            store=open_store(store),
            cluster_resources=_resources(address),
            origin=origin_of(spec),
        )


def serve_plan(spec: Path, address: str | None, store: str | None) -> ServePlan:
    """The plan of a serve spec."""
    with blamed_on(spec):
        resolved = load_spec(ServeSpec, spec)
        return plan_serve(
            resolved, store=open_store(resolved.store or store), cluster_resources=_resources(address)
        )


def _resources(address: str | None) -> dict[str, float]:
    """Those of the cluster at ``address``, of the local one, or of the one that ``tandem up`` would start."""
    url = local.dashboard_of(address)
    return cluster_resources(url) if url else local.resources_of(local.LocalClusterSpec())
