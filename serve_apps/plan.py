"""From a serve spec to plain data: what Serve is told, what one replica reserves, what vLLM is started with.

Everything that cannot work is refused here, before anything is deployed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.applications import FRONT
from runtime.core.config import ConfigModel
from runtime.core.errors import ConfigError
from serve_apps.adapters import plan_adapters
from serve_apps.arguments import faults
from serve_apps.autoscaling import autoscaling_config
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

_CPU_KV_CACHE_BYTES = 1 << 30
# One process fewer than vLLM's default for CPU: the worker lives inside the EngineCore process, which saves
# one import of vLLM (5 of 20 seconds on 2 cores) and its memory. Given by its path because vLLM turns the
# short name "uni" into "mp" on CPU; what it fears, threads bound too late, does not arise: we bind none.
_CPU_ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


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

    max_ongoing_requests: int
    """Requests Serve lets into one replica at a time: more than the spec's, which the door keeps to."""

    @property
    def reserved(self) -> dict[str, float]:
        """All that one replica reserves, in Ray's names: ``{"CPU": 0.5, "GPU": 2}``."""
        options = self.ray_actor_options
        bundles = self.placement_group_bundles or [{"CPU": options["num_cpus"], "GPU": options["num_gpus"]}]
        return {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in ("CPU", "GPU")}

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
    cluster_resources: Mapping[str, float],
    most_gpus_on_a_node: float | None = None,
    http_host: str | None = "127.0.0.1",
) -> ServePlan:
    """The plan for ``spec``.

    Args:
        spec: What to serve.
        store: Where ``spec.model`` is looked up.
        cluster_resources: All that the cluster has, in Ray's names: ``{"CPU": 2, "GPU": 1}``.
        most_gpus_on_a_node: What the largest node has; None: all GPUs are on one. A replica with more
            workers than that is spread over nodes.
        http_host: Address that Serve's HTTP server listens at.

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
    gpus = spec.resources.gpus
    gpus = _default_gpus(cluster_resources) if gpus is None else gpus
    _check_parallel(spec.engine, model, gpus)
    reserved = {"CPU": spec.resources.cpus, "GPU": gpus * _workers(spec.engine)}
    _check_fits(spec, reserved, cluster_resources)
    over_nodes = _is_over_nodes(spec.engine, gpus, most_gpus_on_a_node)
    if over_nodes and (spec.adapters or spec.engine.get("enable_lora")):
        raise ConfigError(
            f"{'adapters' if spec.adapters else 'engine.enable_lora'} is set, but a replica of {spec.name} "
            f"has {_workers(spec.engine)} workers on several nodes, and only its own node gets an adapter's "
            "files. Merge the adapter (merge: true in its training), or use nodes with more GPUs."
        )
    resolved = _resolved(spec, model, store, gpus, _max_replicas(spec, reserved, cluster_resources))
    autoscaling_config(resolved)  # refuses what cannot work
    return ServePlan(
        spec=resolved,
        served_model_name=list(dict.fromkeys([spec.name, model.ref])),
        engine={
            **plan_adapters(spec, store=store, model=model),
            **(_gpu_arguments(spec.engine, gpus, over_nodes) if gpus else _cpu_arguments(spec.engine)),
        },
        env_vars=_env_vars(spec, on_cpu=not gpus),
        ray_actor_options={"num_cpus": reserved["CPU"], "num_gpus": 0.0 if over_nodes else reserved["GPU"]},
        placement_group_bundles=_bundles(spec) if over_nodes else [],
        max_ongoing_requests=spec.max_ongoing_requests + spec.max_queued_requests + _ROOM_TO_REFUSE,
    )


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


def _workers(engine: Mapping[str, Any]) -> int:
    """vLLM workers that hold one copy of the model."""
    return int(engine.get("tensor_parallel_size", 1)) * int(engine.get("pipeline_parallel_size", 1))


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
    if 0 < gpus < 1 and _workers(engine) > 1:
        raise ConfigError(
            f"resources.gpus is {gpus} but the replica has {_workers(engine)} workers "
            "(engine.tensor_parallel_size x engine.pipeline_parallel_size), and Ray cannot place shares of "
            "several GPUs for one replica. Set resources.gpus: 1."
        )


def _attention_heads(model: ModelVersion) -> int | None:
    """From config.json; a model with images keeps its text part below ``text_config``."""
    config = model.config()
    heads = config.get("num_attention_heads", config.get("text_config", {}).get("num_attention_heads"))
    return int(heads) if heads else None


def _is_over_nodes(engine: Mapping[str, Any], gpus: float, most_gpus_on_a_node: float | None) -> bool:
    """Whether Ray places a replica's workers, on any node: as asked for, or where no node holds all."""
    backend = engine.get("distributed_executor_backend")
    too_many = most_gpus_on_a_node is not None and gpus * _workers(engine) > most_gpus_on_a_node
    if backend == "mp" and too_many:
        raise ConfigError(
            f"engine.distributed_executor_backend is 'mp', all workers on one node, but a replica has "
            f"{_workers(engine)} and the largest node {most_gpus_on_a_node:g} GPUs. Leave it out."
        )
    return backend == "ray" or too_many


def _bundles(spec: ServeSpec) -> list[dict[str, float]]:
    """One GPU each; the replica itself is beside the first, where vLLM wants its driver."""
    workers = _workers(spec.engine)
    return [{"CPU": spec.resources.cpus, "GPU": 1.0}, *({"GPU": 1.0} for _ in range(workers - 1))]


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


def _gpu_arguments(engine: Mapping[str, Any], gpus: float, over_nodes: bool) -> dict[str, Any]:
    # vLLM prefers Ray's own executor when it finds itself inside a Ray actor; "mp" keeps the workers
    # children of the replica, on the GPUs that the replica reserved.
    defaults: dict[str, Any] = {}
    if over_nodes:
        defaults["distributed_executor_backend"] = "ray"
    elif _workers(engine) > 1:
        defaults["distributed_executor_backend"] = "mp"
    if gpus < 1:
        defaults["gpu_memory_utilization"] = round(0.9 * gpus, 4)
    arguments = {**defaults, **engine}
    # Ray's fraction is a count for its scheduler, not a memory limit: nothing would stop vLLM from taking
    # the neighbour's memory, so it is checked here.
    if arguments.get("gpu_memory_utilization", 0) > gpus:
        raise ConfigError(
            f"engine.gpu_memory_utilization is {arguments['gpu_memory_utilization']} but resources.gpus is "
            f"{gpus}: the replica reserves only that share of the GPU. "
            f"Lower gpu_memory_utilization to {gpus} or less, or set resources.gpus: 1."
        )
    return arguments


def _cpu_arguments(engine: Mapping[str, Any]) -> dict[str, Any]:
    pipelined = engine.get("pipeline_parallel_size", 1) > 1
    if pipelined and engine.get("enforce_eager"):
        raise ConfigError(
            "engine.enforce_eager is true, but vLLM's CPU engine would end at its first request with "
            f"pipeline_parallel_size {engine['pipeline_parallel_size']}. Leave it out."
        )
    # Eager only so that a replica answers in seconds: compiling takes up to a minute more on 2 cores. For
    # throughput on CPU set engine.enforce_eager: false.
    defaults: dict[str, Any] = {"enforce_eager": not pipelined}
    # vLLM would take 90% of the machine's memory. Its variable VLLM_CPU_KVCACHE_SPACE (GiB), where set on
    # the cluster, wins over this.
    defaults["kv_cache_memory_bytes"] = _CPU_KV_CACHE_BYTES
    defaults["distributed_executor_backend"] = _CPU_ONE_PROCESS if _workers(engine) == 1 else "mp"
    return {**defaults, **engine}


def _env_vars(spec: ServeSpec, *, on_cpu: bool) -> dict[str, str]:
    # The model is in the store: no request to a hub, unless it is there; and no statistics sent.
    env_vars = {"VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1"}
    if not spec.model.startswith("hf://"):
        env_vars["HF_HUB_OFFLINE"] = "1"
    if on_cpu:
        # vLLM would bind a thread to every core and refuses to share them with a neighbour ("auto" wants a
        # NUMA node per worker). Unbound and few, a training worker fits beside it.
        env_vars["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        env_vars["OMP_NUM_THREADS"] = str(max(1, int(spec.resources.cpus / _workers(spec.engine))))
    return env_vars | storage_env()
