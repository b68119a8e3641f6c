"""From a serve spec to plain data: what Serve is told, what one replica reserves, what vLLM is started with.

Everything that cannot work is refused here, before anything is deployed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.applications import FRONT
from cluster.estimator.device import Device, host_memory
from cluster.estimator.model import ModelShape
from cluster.estimator.planned import PlannedMemory
from cluster.estimator.reading import shape_or_none
from cluster.inventory import Inventory
from cluster.placement import Free, NoRoom, place
from runtime.core.config import ConfigModel
from runtime.core.errors import ConfigError
from serve_apps.adapters import plan_adapters
from serve_apps.arguments import faults
from serve_apps.autoscaling import autoscaling_config
from serve_apps.defaults import cpu_arguments, gpu_arguments, workers
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

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
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
    _check_open(spec, http_host)
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
    _check_parallel(spec.engine, model, gpus)
    reserved = {"CPU": spec.resources.cpus, "GPU": gpus * workers(spec.engine)}
    _check_fits(spec, reserved, cluster_resources)
    over_nodes = _is_over_nodes(spec.engine, gpus, inventory.most_cards_on_a_node)
    if over_nodes and (spec.adapters or spec.engine.get("enable_lora")):
        raise ConfigError(
            f"{'adapters' if spec.adapters else 'engine.enable_lora'} is set, but a replica of {spec.name} "
            f"has {workers(spec.engine)} workers on several nodes, and only its own node gets an adapter's "
            "files. Merge the adapter (merge: true in its training), or use nodes with more GPUs."
        )
    resolved = _resolved(spec, model, store, gpus, _max_replicas(spec, reserved, cluster_resources))
    autoscaling_config(resolved)  # refuses what cannot work
    arguments = plan_adapters(spec, store=store, model=model) | dict(spec.engine)
    device = device_of(
        inventory=inventory,
        gpus=gpus,
        memory_bytes=spec.resources.memory_bytes,
        workers=workers(arguments),
    )
    on_cpu = _is_on_cpu(gpus, inventory)
    engine, memory, found = _engine(
        arguments,
        shape_or_none(model),
        device,
        gpus=0.0 if on_cpu else gpus,
        over_nodes=over_nodes,
        most_gpus=inventory.most_cards_on_a_node,
    )
    if found and memory_must_fit and spec.memory_check == "refuse":
        raise ConfigError(f"serve app {spec.name} cannot be deployed.\n  " + "\n  ".join(found))
    plan = ServePlan(
        spec=resolved,
        served_model_name=list(dict.fromkeys([spec.name, model.ref])),
        engine=engine,
        on_cpu=on_cpu,
        share_bytes=device.available_bytes if device else None,
        memory=memory,
        env_vars=_env_vars(spec, on_cpu=on_cpu),
        ray_actor_options={
            "num_cpus": reserved["CPU"],
            "num_gpus": 0.0 if over_nodes else reserved["GPU"],
            **({"memory": float(spec.resources.memory_bytes)} if spec.resources.memory_bytes else {}),
        },
        placement_group_bundles=_bundles(spec) if over_nodes else [],
        max_ongoing_requests=spec.max_ongoing_requests + spec.max_queued_requests + _ROOM_TO_REFUSE,
    )
    found_place = place(Free.of(inventory), request(plan))
    if isinstance(found_place, NoRoom) and memory_must_fit:
        raise ConfigError(f"serve app {spec.name} can never have room here: {found_place.reason}")
    return plan


def _engine(
    arguments: Mapping[str, Any],
    model: ModelShape | None,
    device: Device | None,
    *,
    gpus: float,
    over_nodes: bool,
    most_gpus: int,
) -> tuple[dict[str, Any], PlannedMemory | None, list[str]]:
    """vLLM's arguments, what each worker needs and has, and why that cannot be."""
    if gpus:
        engine = gpu_arguments(arguments, gpus=gpus, over_nodes=over_nodes)
    else:
        engine = cpu_arguments(arguments, model=model, device=device or host_memory(None))
    if model is None or device is None:
        return engine, None, []
    return engine, *check_memory(engine, model=model, device=device, most_gpus=most_gpus)


def _is_on_cpu(gpus: float, inventory: Inventory) -> bool:
    """Logical cards are handed out like real ones, and there is nothing on them to compute with."""
    return gpus == 0 or inventory.is_logical


def _check_open(spec: ServeSpec, http_host: str | None) -> None:
    if spec.auth == "none" and http_host not in _LOOPBACK:
        raise ConfigError(
            f"auth is 'none', but Serve listens at {http_host or '0.0.0.0'}, where others could ask without "
            "a key. Set auth: keys (a key: tandem keys create NAME), or let Serve listen at 127.0.0.1."
        )


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


def _check_parallel(engine: Mapping[str, Any], model: ModelVersion, gpus: float) -> None:
    tensor_parallel_size = engine.get("tensor_parallel_size", 1)
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        if engine.get(name, 1) < 1:
            raise ConfigError(f"engine.{name} is {engine[name]}. Set it to 1 or more.")
    if engine.get("distributed_executor_backend") == "ray" and gpus != 1:
        raise ConfigError(
            "engine.distributed_executor_backend is 'ray': each worker gets a whole GPU of any node, but "
            f"resources.gpus is {gpus:g}. Set resources.gpus: 1, or leave the backend out."
        )
    heads = _attention_heads(model)
    if heads and heads % tensor_parallel_size:
        fitting = [str(n) for n in range(1, heads + 1) if heads % n == 0]
        raise ConfigError(
            f"engine.tensor_parallel_size is {tensor_parallel_size}, which does not divide the {heads} "
            f"attention heads of {model.ref}. Set it to one of {', '.join(fitting)}."
        )
    if 0 < gpus < 1 and workers(engine) > 1:
        raise ConfigError(
            f"resources.gpus is {gpus} but the replica has {workers(engine)} workers "
            "(engine.tensor_parallel_size x engine.pipeline_parallel_size), and Ray cannot place shares of "
            "several GPUs for one replica. Set resources.gpus: 1."
        )


def _attention_heads(model: ModelVersion) -> int | None:
    """From config.json; a model with images keeps its text part below ``text_config``."""
    config = model.config()
    heads = config.get("num_attention_heads", config.get("text_config", {}).get("num_attention_heads"))
    return int(heads) if heads else None


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


def _bundles(spec: ServeSpec) -> list[dict[str, float]]:
    """One GPU each; the replica itself is beside the first, where vLLM wants its driver."""
    count = workers(spec.engine)
    return [{"CPU": spec.resources.cpus, "GPU": 1.0}, *({"GPU": 1.0} for _ in range(count - 1))]


def _check_fits(
    spec: ServeSpec, reserved: Mapping[str, float], cluster_resources: Mapping[str, float]
) -> None:
    replicas = max(1, spec.autoscaling.min_replicas)
    fields = {
        "CPU": "resources.cpus",
        "GPU": "resources.gpus x engine.tensor_parallel_size x engine.pipeline_parallel_size",
    }
    for resource, field in fields.items():
        wanted, total = reserved[resource] * replicas, cluster_resources.get(resource, 0)
        if wanted > total:
            times = f" times autoscaling.min_replicas ({replicas})" if replicas > 1 else ""
            raise ConfigError(
                f"{field} is {reserved[resource]:g}{times}: {wanted:g} {resource}s, but the whole cluster "
                f"has {total:g}. Ask for less, or add nodes."
            )


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
