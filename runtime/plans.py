"""Dry runs: the resolved plan, checked against the store and a cluster, with nothing started."""

from __future__ import annotations

from pathlib import Path

from cluster import local
from cluster.applications import http_host
from cluster.inventory import Inventory
from cluster.ledger.shown import at_its_largest
from cluster.rest import checked_url
from runtime.core.config import blamed_on, load_spec
from serve_apps.plan import ServePlan, plan_serve
from serve_apps.spec import ServeSpec
from storage.store import open_store
from train_jobs.plan import TrainPlan
from train_jobs.source import Source


def train_plan(source: Source, address: str | None, store: str | None) -> TrainPlan:
    """The plan of a training spec, or of a LLaMA-Factory file."""
    with blamed_on(source.origin):
        return source.plan(open_store(store), inventory=nodes_at(address))


def serve_plan(spec: Path, address: str | None, store: str | None) -> ServePlan:
    """The plan of a serve spec."""
    with blamed_on(spec):
        resolved = load_spec(ServeSpec, spec)
        return plan_serve(
            resolved,
            store=open_store(resolved.store or store),
            inventory=nodes_at(address),
            http_host=http_host(checked_url(address)) if address else "127.0.0.1",
        )


def nodes_at(address: str | None) -> Inventory:
    """Those of the cluster at ``address``, of the local one, or of the one that ``tandem up`` would start."""
    url = local.dashboard_of(address)
    if url is None:
        return local.expected(local.LocalClusterSpec())
    return at_its_largest(url)
