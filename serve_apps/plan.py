"""From a serve spec to plain data: what Serve is told, what one replica reserves, what vLLM is started with.

Everything that cannot work is refused here, before anything is deployed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from cluster.applications import FRONT
from cluster.estimator.device import Device, host_memory
from cluster.estimator.planned import PlannedMemory
from cluster.estimator.reading import shape_or_none
from cluster.inventory import Inventory
from cluster.placement import Free, NoRoom, place
from runtime.core.config import ConfigModel
from runtime.core.errors import ConfigError
from serve_apps.accelerators import choices
from serve_apps.adapters import plan_adapters
from serve_apps.arguments import faults
from serve_apps.autoscaling import autoscaling_config
from serve_apps.defaults import cpu_arguments, gpu_arguments, workers
from serve_apps.plan_checks import check_fits, check_open, check_parallel
from serve_apps.plan_memory import check_memory, device_of
from serve_apps.request import request
from serve_apps.spec import ServeSpec
from storage.models import ModelVersion
from storage.store import Store
from storage.workspace import storage_env

IMPORT_PATH = "serve_apps.build:build_app"

FRONT_APPLICATION: dict[str, Any] = {
    "name": FRONT,
    "route_prefix": "/",
    "import_path": "serve_apps.front.build:build_front",
    "args": {},
}
"""The front as an entry of ``applications``, beside those of the apps."""

_MAX_REPLICAS = 4
"""Replicas that a burst may start when nobody said: a training job still finds room on a larger cluster."""
_ROOM_TO_REFUSE = 4096
"""Requests that Serve lets into a replica beyond those that the door works on or keeps waiting: Serve would
keep them waiting without a word, the door refuses them in OpenAI's shape."""


class ServePlan(ConfigModel):
    """All that deploying a serve spec will do, as plain data."""

    spec: ServeSpec
    """The spec with everything resolved: the model's version, its store, the route, the resources."""

    served_model_name: list[str]
    """Names that clients may send as ``model``."""

    engine: dict[str, Any]
    """vLLM's arguments: the user's, and Tandem's defaults where the user said nothing."""

    env_vars: dict[str, str]
    """Environment variables of the replica."""

    ray_actor_options: dict[str, float]
    """What one replica's own process reserves: ``num_cpus`` and ``num_gpus``."""

    placement_group_bundles: list[dict[str, float]] = []
    """What a replica reserves whose workers are on several nodes: the first bundle is the replica's and its
    first worker's, each further one another worker's. Empty: the workers are children of the replica, which
    reserves for all."""

    accelerator_type: str | None = None
    """The GPU product that all replicas are on; None where there is no choice to make."""

    on_cpu: bool = True
    """Whether the engine computes on CPUs: there are no GPUs, or only logical ones."""

    share_bytes: int | None = None
    """Each worker's share of a card, or without GPUs of its node's memory; None: it has no bounds but the
    machine's."""

    memory: PlannedMemory | None = None
    """What each worker of the engine is estimated to need, and has; None where the model's files do not
    tell."""

    max_ongoing_requests: int
    """Requests Serve lets into one replica at a time: more than the spec's, which the door keeps to."""

    @property
    def reserved(self) -> dict[str, float]:
        """All that one replica reserves, in Ray's names: ``{"CPU": 0.5, "GPU": 2}``."""
        options = self.ray_actor_options
        bundles = self.placement_group_bundles or [{"CPU": options["num_cpus"], "GPU": options["num_gpus"]}]
        found = {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in ("CPU", "GPU")}
        return found | ({"memory": options["memory"]} if "memory" in options else {})

    def application(self) -> dict[str, Any]:
        """One entry of ``applications`` in Ray Serve's config file or REST body."""
        return {
            "name": self.spec.name,
            "route_prefix": self.spec.route_prefix,
            "import_path": IMPORT_PATH,
            "args": self.spec.model_dump(mode="json"),
        }


def plan_serve(
    spec: ServeSpec,
    *,
    store: Store,
    inventory: Inventory,
    http_host: str | None = "127.0.0.1",
    memory_must_fit: bool = True,
) -> ServePlan:
    """The plan for ``spec``.

    Args:
        spec: What to serve.
        store: Where ``spec.model`` is looked up.
        inventory: The cluster's nodes and cards. A replica with more workers than any node has cards is
            spread over nodes.
        http_host: Address that Serve's HTTP server listens at.
        memory_must_fit: Whether an engine that would need more memory than it has is refused.

    Raises:
        ConfigError: it can never work; one message with every fault of ``engine``, or the first other one.
    """
    if found := faults(spec.engine):
        raise ConfigError(
            "\n".join([f"serve app {spec.name} cannot be deployed.", *(f"  {f}" for f in found)])
        )
    if spec.name == FRONT:
        raise ConfigError(f"name is {FRONT!r}, the app that answers for all others. Choose another name.")
    check_open(spec, http_host)
    if not store.root.backend.shared:
        raise ConfigError(
            f"store is {store.uri!r}, which only this process sees; replicas are others. Use a folder, "
            "gs:// or s3://."
        )
    model = store.model(spec.model)
    if model.is_adapter:
        raise ConfigError(
            f"model is {model.ref!r}, an adapter over {model.base}. Serve its base and name it there: model: "
            f"{model.base}, adapters: {{{model.name}: {spec.model}}}."
        )
    if model.manifest is not None and model.manifest.stage == "rm":
        raise ConfigError(
            f"model is {model.ref!r}, a reward model (stage: rm): it rates answers and writes none, and vLLM "
            "would leave out the head that rates. Name the model that answers."
        )
    cluster_resources = inventory.resources
    gpus = spec.resources.gpus
    gpus = _default_gpus(cluster_resources) if gpus is None else gpus
    check_parallel(spec.engine, model, gpus)
    reserved = {"CPU": spec.resources.cpus, "GPU": gpus * workers(spec.engine)}
    check_fits(spec, reserved, cluster_resources)
    products = choices(
        spec.resources.accelerator_type,
        gpus_per_replica=reserved["GPU"],
        most_replicas=spec.autoscaling.max_replicas or max(1, spec.autoscaling.min_replicas),
        inventory=inventory,
    )
    plan_on = partial(_plan_on, spec=spec, model=model, store=store, inventory=inventory, gpus=gpus)
    chosen = _chosen(products, plan_on)
    if chosen.memory_faults and memory_must_fit and spec.memory_check == "refuse":
        raise ConfigError(
            f"serve app {spec.name} cannot be deployed.\n  " + "\n  ".join(chosen.memory_faults)
        )
    if chosen.no_room and memory_must_fit:
        raise ConfigError(f"serve app {spec.name} can never have room here: {chosen.no_room}")
    return chosen.plan


@dataclass(frozen=True)
class _Candidate:
    """The plan on one product, and what speaks against it."""

    plan: ServePlan
    memory_faults: list[str]
    no_room: str | None
    """Why even the empty cluster has no place for the first replicas."""

    @property
    def is_refused(self) -> bool:
        return bool(self.no_room or (self.memory_faults and self.plan.spec.memory_check == "refuse"))


def _chosen(products: Iterable[str | None], plan_on: Callable[[str | None], _Candidate]) -> _Candidate:
    """The plan on the first product on which it fits. Where it fits on none, the one that is nearest to it:
    where only room is missing, else with the largest cards."""
    tried: list[_Candidate] = []
    faults: list[ConfigError] = []
    for product in products:
        try:
            one = plan_on(product)
        except ConfigError as error:
            faults.append(error)
            continue
        if not one.memory_faults and not one.no_room:
            return one
        tried.append(one)
    if not tried:
        raise faults[0]
    return max(reversed(tried), key=lambda one: (not one.is_refused, not one.memory_faults))


def _plan_on(
    product: str | None,
    *,
    spec: ServeSpec,
    model: ModelVersion,
    store: Store,
    inventory: Inventory,
    gpus: float,
) -> _Candidate:
    """The plan with all replicas on one product; None: on whatever there is.

    Raises:
        ConfigError: it can never work there, however much memory there is.
    """
    nodes = inventory if product is None else inventory.with_product(product)
    most_gpus = nodes.most_cards_on_a_node
    reserved = {"CPU": spec.resources.cpus, "GPU": gpus * workers(spec.engine)}
    over_nodes = _is_over_nodes(spec.engine, gpus, most_gpus)
    if over_nodes and (spec.adapters or spec.engine.get("enable_lora")):
        raise ConfigError(
            f"{'adapters' if spec.adapters else 'engine.enable_lora'} is set, but a replica of {spec.name} "
            f"has {workers(spec.engine)} workers on several nodes, and only its own node gets an adapter's "
            "files. Merge the adapter (merge: true in its training), or use nodes with more GPUs."
        )
    resolved = _resolved(spec, model, store, gpus, _max_replicas(spec, reserved, nodes.resources))
    autoscaling_config(resolved)  # refuses what cannot work
    arguments = plan_adapters(spec, store=store, model=model) | dict(spec.engine)
    device = _device(spec, inventory, gpus, product)
    is_shared = gpus > 0 or spec.resources.memory_bytes is not None
    on_cpu = _is_on_cpu(gpus, inventory)
    shape = shape_or_none(model)
    if on_cpu:
        share = device if device and is_shared else host_memory(None)
        engine = cpu_arguments(arguments, model=shape, device=share)
    else:
        engine = gpu_arguments(arguments, gpus=gpus, over_nodes=over_nodes)
    memory: PlannedMemory | None = None
    memory_faults: list[str] = []
    if shape is not None and device is not None:
        memory, memory_faults = check_memory(
            engine,
            model=shape,
            device=device,
            most_gpus=most_gpus,
            elsewhere=_elsewhere(spec, inventory, gpus, product),
        )
    plan = ServePlan(
        spec=resolved,
        served_model_name=list(dict.fromkeys([spec.name, model.ref])),
        engine=engine,
        accelerator_type=product,
        on_cpu=on_cpu,
        share_bytes=device.available_bytes if device and is_shared else None,
        memory=memory,
        env_vars=_env_vars(spec, on_cpu=on_cpu),
        ray_actor_options={
            "num_cpus": reserved["CPU"],
            "num_gpus": 0.0 if over_nodes else reserved["GPU"],
            **({"memory": float(spec.resources.memory_bytes)} if spec.resources.memory_bytes else {}),
        },
        placement_group_bundles=_bundles(spec, product) if over_nodes else [],
        max_ongoing_requests=spec.max_ongoing_requests + spec.max_queued_requests + _ROOM_TO_REFUSE,
    )
    placed = place(Free.of(inventory), request(plan))
    return _Candidate(plan, memory_faults, placed.reason if isinstance(placed, NoRoom) else None)


def _device(spec: ServeSpec, inventory: Inventory, gpus: float, product: str | None) -> Device | None:
    return device_of(
        inventory=inventory,
        gpus=gpus,
        memory_bytes=spec.resources.memory_bytes,
        workers=workers(spec.engine),
        accelerator_type=product,
    )


def _elsewhere(
    spec: ServeSpec, inventory: Inventory, gpus: float, product: str | None
) -> dict[str, Device | None]:
    """What each worker would have on the products that the spec does not name, and that have cards enough."""
    if spec.resources.accelerator_type is None:
        return {}  # all were tried
    wanted = gpus * workers(spec.engine) * max(1, spec.autoscaling.min_replicas)
    return {
        name: _device(spec, inventory, gpus, name)
        for name in inventory.products
        if name != product and inventory.accelerators[name] >= wanted
    }


def _is_on_cpu(gpus: float, inventory: Inventory) -> bool:
    """Logical cards are handed out like real ones, and there is nothing on them to compute with."""
    return gpus == 0 or inventory.is_logical


def _max_replicas(
    spec: ServeSpec, reserved: Mapping[str, float], cluster_resources: Mapping[str, float]
) -> int:
    if spec.autoscaling.max_replicas is not None:
        return spec.autoscaling.max_replicas
    wanted = {name: amount for name, amount in reserved.items() if amount}
    fitting = min(int(cluster_resources.get(name, 0) / amount) for name, amount in wanted.items())
    return max(1, spec.autoscaling.min_replicas, min(fitting, _MAX_REPLICAS))


def _resolved(
    spec: ServeSpec, model: ModelVersion, store: Store, gpus: float, max_replicas: int
) -> ServeSpec:
    return spec.model_copy(
        update={
            "model": model.ref,
            "store": store.uri,
            "route_prefix": spec.route_prefix or f"/{spec.name}",
            "resources": spec.resources.model_copy(update={"gpus": gpus}),
            "autoscaling": spec.autoscaling.model_copy(update={"max_replicas": max_replicas}),
        }
    )


def _default_gpus(cluster_resources: Mapping[str, float]) -> float:
    """GPUs per worker when the spec does not say: on a single GPU half is left for a training worker."""
    total = cluster_resources.get("GPU", 0)
    return 0.0 if total < 1 else 0.5 if total == 1 else 1.0


def _is_over_nodes(engine: Mapping[str, Any], gpus: float, most_cards: int) -> bool:
    """Whether Ray places a replica's workers, on any node: as asked for, or where no node holds all."""
    backend = engine.get("distributed_executor_backend")
    too_many = gpus * workers(engine) > most_cards
    if backend == "mp" and too_many:
        raise ConfigError(
            f"engine.distributed_executor_backend is 'mp', all workers on one node, but a replica has "
            f"{workers(engine)} and the largest node {most_cards} GPUs. Leave it out."
        )
    return backend == "ray" or too_many


def _bundles(spec: ServeSpec, product: str | None) -> list[dict[str, float]]:
    """One GPU each; the replica itself is beside the first, where vLLM wants its driver."""
    each = {"GPU": 1.0} | pinned_to(product)
    return [{"CPU": spec.resources.cpus, **each}, *(dict(each) for _ in range(workers(spec.engine) - 1))]


def pinned_to(product: str | None) -> dict[str, float]:
    """What a process asks Ray for to be on nodes of this product, each of which has 1 of it."""
    return {f"accelerator_type:{product}": 0.001} if product else {}


def _env_vars(spec: ServeSpec, *, on_cpu: bool) -> dict[str, str]:
    # The model is in the store: no request to a hub, unless it is there; and no statistics sent.
    env_vars = {"VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1"}
    if not spec.model.startswith("hf://"):
        env_vars["HF_HUB_OFFLINE"] = "1"
    if on_cpu:
        # vLLM would bind a thread to every core and refuses to share them with a neighbour ("auto" wants a
        # NUMA node per worker). Unbound and few, a training worker fits beside it.
        env_vars["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        env_vars["OMP_NUM_THREADS"] = str(max(1, int(spec.resources.cpus / workers(spec.engine))))
    return env_vars | storage_env()
