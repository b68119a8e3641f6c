"""A cluster spec, and train and serve specs, as the manifests of Kubernetes objects."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.applications import FRONT
from cluster.cluster_spec import ClusterSpec
from cluster.inventory import Inventory
from cluster.kubernetes.notes import notes
from cluster.kubernetes.render import render
from cluster.kubernetes.workloads import Manifest, ServeApp, TrainJob
from cluster.monitoring.dashboards import dashboards
from runtime.core.config import blamed_on, load_spec, origin_of, read_mapping
from runtime.core.errors import ConfigError
from serve_apps.plan import FRONT_APPLICATION, IMPORT_PATH, plan_serve
from serve_apps.spec import ServeSpec
from storage.store import Store, open_store
from train_jobs import accelerators, capacity
from train_jobs.plan import plan_train, resolve
from train_jobs.spec import TrainSpec

_FRONT_SHUTDOWN_S = 20.0
"""Ray's default: the front has no streams of its own that last longer."""


@dataclass(frozen=True)
class Rendered:
    """What was rendered."""

    spec: ClusterSpec
    manifests: list[Manifest]
    """In the order in which they are applied."""

    notes: list[str]
    """What to know before applying them."""


def rendered(cluster: Path, specs: Sequence[Path] = (), *, offline: bool = False) -> Rendered:
    """The manifests for a cluster and what runs on it.

    Args:
        cluster: The cluster spec's file.
        specs: Files of train and serve specs.
        offline: Do not look at the store. A store on a volume is mounted in pods only, and never looked at.

    Raises:
        ConfigError: a spec cannot work on this cluster; names file, field, value and remedy.
    """
    spec = load_spec(ClusterSpec, cluster)
    with blamed_on(cluster):
        _check_image(spec)
    store = None if offline or spec.store.has_volume else open_store(spec.store.root)
    apps: list[ServeApp] = []
    jobs: list[TrainJob] = []
    for file in specs:
        with blamed_on(file):
            _add(file, spec, store, apps, jobs)
    if apps:
        apps.append(ServeApp(FRONT, FRONT_APPLICATION, _FRONT_SHUTDOWN_S))
    shown = dashboards() if spec.monitoring.enabled and spec.monitoring.dashboards else {}
    with blamed_on(cluster):
        manifests = render(spec, apps=apps, jobs=jobs, ray_dashboards=shown)
        told = notes(spec, apps=apps, jobs=jobs)
    if specs and store is None:
        told.append("the store was not looked at: the cluster checks models, datasets and memory.")
    return Rendered(spec, manifests, told)


def _check_image(spec: ClusterSpec) -> None:
    if spec.image is None:
        raise ConfigError(
            "image is missing, and pods run one. Build it (cluster/images/Dockerfile says how), push it, and "
            "write image: registry/tandem:1.0."
        )


def _add(
    file: Path, spec: ClusterSpec, store: Store | None, apps: list[ServeApp], jobs: list[TrainJob]
) -> None:
    fields = read_mapping(file)
    if "dataset" in fields:
        _refuse_twice(file, str(fields.get("name")), [job.name for job in jobs])
        jobs.append(train_job(load_spec(TrainSpec, file), spec, store, origin=origin_of(file)))
    elif "model" in fields:
        _refuse_twice(file, str(fields.get("name")), [app.name for app in apps])
        apps.append(serve_app(load_spec(ServeSpec, file), spec, store))
    else:
        raise ConfigError(
            "is neither a train spec (it would have dataset) nor a serve spec (it would have model). "
            "Give the "
            "cluster spec first, then those."
        )


def _refuse_twice(file: Path, name: str, names: Sequence[str]) -> None:
    if name in names:
        raise ConfigError(f"{file}: name is {name!r}, as another spec's. Give each a name of its own.")


def serve_app(app: ServeSpec, spec: ClusterSpec, store: Store | None) -> ServeApp:
    """What rendering needs of a serve app. With a store its model's version is resolved, and it must fit."""
    if app.auth == "none":
        raise ConfigError(
            "auth is 'none', but pods answer to all who reach them. Set auth: keys (a key: tandem keys "
            "create NAME "
            f"--store {spec.store.root})."
        )
    application = _unresolved(app, spec) if store is None else _resolved(app, spec.inventory(), store)
    return ServeApp(app.name, application, app.graceful_shutdown_timeout_s)


def _resolved(app: ServeSpec, inventory: Inventory, store: Store) -> Mapping[str, Any]:
    at = open_store(app.store) if app.store else store
    return plan_serve(app, store=at, inventory=inventory, http_host="0.0.0.0").application()


def _unresolved(app: ServeSpec, spec: ClusterSpec) -> Mapping[str, Any]:
    here = app.model_copy(
        update={"store": app.store or spec.store.root, "route_prefix": app.route_prefix or f"/{app.name}"}
    )
    return {
        "name": app.name,
        "route_prefix": here.route_prefix,
        "import_path": IMPORT_PATH,
        "args": here.model_dump(mode="json"),
    }


def train_job(job: TrainSpec, spec: ClusterSpec, store: Store | None, *, origin: str) -> TrainJob:
    """What rendering needs of a training job. With a store its model and datasets are looked up, and it must
    fit."""
    resolved, inventory = resolve(job), spec.inventory()
    plan = plan_train(resolved, store=store, inventory=inventory, origin=origin) if store else None
    gpus_per_worker = capacity.gpus_per_worker(resolved.scaling, inventory.resources)
    wanted = resolved.scaling.accelerator_type
    first, *_ = accelerators.choices(
        wanted,
        num_workers=resolved.scaling.min_workers,
        gpus_per_worker=gpus_per_worker,
        accelerators=inventory.accelerators,
    )
    fields = json.loads(resolved.to_json())
    return TrainJob(
        name=resolved.name,
        spec=fields,
        run_id=run_id(resolved.name, fields),
        num_workers=(resolved.scaling.min_workers, resolved.scaling.max_workers),
        cpus_per_worker=resolved.scaling.cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        memory_bytes_per_worker=resolved.scaling.memory_bytes_per_worker or 0,
        accelerator_type=wanted if wanted == accelerators.ANY else plan.accelerator_type if plan else first,
    )


def run_id(name: str, spec: Mapping[str, Any]) -> str:
    """The id of a job's run: the same for the same spec, so that a manifest applied twice is one run."""
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
    return f"{name}-{digest[:8]}"
