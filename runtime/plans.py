"""Dry runs: the resolved plan, checked against the store and a cluster, with nothing started."""

from __future__ import annotations

from pathlib import Path

from cluster import local
from cluster.applications import http_host
from cluster.rest import accelerators, checked_url, cluster_resources, most_gpus_on_a_node
from runtime.core.config import blamed_on, load_spec
from serve_apps.plan import ServePlan, plan_serve
from serve_apps.spec import ServeSpec
from storage.store import open_store
from train_jobs.plan import TrainPlan
from train_jobs.source import Source


def train_plan(source: Source, address: str | None, store: str | None) -> TrainPlan:
    """The plan of a training spec, or of a LLaMA-Factory file."""
    with blamed_on(source.origin):
        return source.plan(
            open_store(store), cluster_resources=_resources(address), accelerators=_accelerators(address)
        )


def serve_plan(spec: Path, address: str | None, store: str | None) -> ServePlan:
    """The plan of a serve spec."""
    with blamed_on(spec):
        resolved = load_spec(ServeSpec, spec)
        return plan_serve(
            resolved,
            store=open_store(resolved.store or store),
            cluster_resources=_resources(address),
            most_gpus_on_a_node=most_gpus_on_a_node(url) if (url := local.dashboard_of(address)) else None,
            http_host=http_host(checked_url(address)) if address else "127.0.0.1",
        )


def _resources(address: str | None) -> dict[str, float]:
    """Those of the cluster at ``address``, of the local one, or of the one that ``tandem up`` would start."""
    url = local.dashboard_of(address)
    return cluster_resources(url) if url else local.resources_of(local.LocalClusterSpec())


def _accelerators(address: str | None) -> dict[str, float] | None:
    """GPUs by product, or None where no cluster runs yet: a local one has the products of one machine."""
    url = local.dashboard_of(address)
    return accelerators(url) if url else None
