"""A spec becomes a plan: pure data that says all that will run. Everything wrong is refused here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from runtime.core.config import ConfigModel
from runtime.core.errors import ConfigError
from storage.models import ModelVersion
from storage.runs import RunFolder
from storage.store import Store
from storage.workspace import storage_env
from train_jobs import arguments, deepspeed_presets
from train_jobs.spec import Publish, TrainSpec

# What LLaMA-Factory would do by default makes no sense under Ray: no training at all, a progress bar
# in a log file, a loss only every 500 steps.
_DEFAULTS: dict[str, Any] = {"do_train": True, "disable_tqdm": True, "logging_steps": 5}


Found = TypeVar("Found")


class TrainPlan(ConfigModel):
    """What will run, resolved. ``--dry-run`` prints it; the driver reads it back from ``plan.json``."""

    environment: str = "train"
    """The environment of driver and workers."""

    store_uri: str
    """The store's address."""

    run_id: str | None
    """The run, or None in a dry run."""

    run_uri: str | None
    """The run's folder, or None in a dry run."""

    base: str
    """The model to start from, as ``name/version`` or an address. Workers fetch it through the node cache."""

    base_revision: str | None
    """The revision of ``base``, where it has one."""

    adapters: list[str] = []
    """The adapters to go on from, like ``base``."""

    llamafactory: dict[str, Any]
    """Arguments of LLaMA-Factory; the worker adds paths and what else differs by node."""

    dataset_info: dict[str, Any]
    """LLaMA-Factory's ``dataset_info.json`` for this run; file names are relative to their dataset."""

    deepspeed: dict[str, Any] | None
    """DeepSpeed's configuration, or None for plain DDP."""

    num_workers: int
    """Workers."""

    resources_per_worker: dict[str, float]
    """What each worker reserves with Ray, such as ``{"CPU": 0.5}``."""

    use_gpu: bool
    """Whether the workers train on a GPU."""

    env_vars: dict[str, str]
    """Environment variables of the workers."""

    publish: Publish | None
    """Where the result goes."""

    @property
    def template(self) -> str | None:
        """The chat template that the model is trained with."""
        return self.llamafactory.get("template")

    @property
    def kind(self) -> Literal["full", "adapter"]:
        """``full`` or ``adapter``, as a model version's manifest says it."""
        # LLaMA-Factory's default is lora.
        return "adapter" if self.llamafactory.get("finetuning_type", "lora") in ("lora", "oft") else "full"


def resolve(spec: TrainSpec) -> TrainSpec:
    """The same spec with nothing left that means something else on another machine.

    A DeepSpeed file is read in, a preset's name stays, the path of a model's folder becomes absolute.

    Raises:
        ConfigError: the DeepSpeed file cannot be read.
    """
    changes: dict[str, Any] = {}
    if isinstance(spec.deepspeed, str) and spec.deepspeed not in deepspeed_presets.names():
        changes["deepspeed"] = deepspeed_presets.resolve(spec.deepspeed)
    if spec.model.startswith(("./", "../", "~")):
        changes["model"] = str(Path(spec.model).expanduser().absolute())
    return spec.model_copy(update=changes)


def plan_train(
    spec: TrainSpec,
    *,
    store: Store,
    run: RunFolder | None = None,
    cluster_resources: Mapping[str, float] | None = None,
    origin: str = "spec",
) -> TrainPlan:
    """What ``spec`` means on this store and this cluster.

    Args:
        spec: A validated spec.
        store: Where its model and datasets are.
        run: The run's folder; None in a dry run.
        cluster_resources: All that the cluster has, such as ``{"CPU": 2.0, "GPU": 1.0}``. None where it is
            not known: then nothing is refused for its size, and a GPU is used only if the spec says so.
        origin: What to call the spec in an error: its file, where it came from one.

    Raises:
        ConfigError: every fault of the spec, one a line, each with field, value, reason and remedy.
    """
    faults = arguments.faults(spec.llamafactory)
    faults += _store_faults(store)
    model = _tried(lambda: _base_model(spec, store), faults)
    adapters = _tried(lambda: _adapters(spec, store), faults)
    dataset_info = _tried(lambda: _dataset_info(spec, store), faults)
    deepspeed = _tried(lambda: deepspeed_presets.resolve(spec.deepspeed), faults)
    gpus_per_worker = _gpus_per_worker(spec, cluster_resources)
    faults += _publish_faults(spec.publish, store)
    faults += _size_faults(spec, gpus_per_worker, cluster_resources)
    if faults or model is None or dataset_info is None:
        raise ConfigError(f"{origin}: cannot be run.\n" + "\n".join(f"  {fault}" for fault in faults))
    return TrainPlan(
        store_uri=store.uri,
        run_id=run.run_id if run else None,
        run_uri=run.uri if run else None,
        base=model.ref,
        base_revision=model.revision,
        adapters=adapters or [],
        llamafactory=_llamafactory(spec, on_cpu=gpus_per_worker == 0),
        dataset_info=dataset_info,
        deepspeed=deepspeed,
        num_workers=spec.scaling.num_workers,
        resources_per_worker=_resources(spec.scaling.cpus_per_worker, gpus_per_worker),
        use_gpu=gpus_per_worker > 0,
        env_vars=_env_vars(on_cpu=gpus_per_worker == 0),
        publish=spec.publish,
    )


def _tried(look_up: Callable[[], Found], faults: list[str]) -> Found | None:
    """What ``look_up`` returns, or None with its refusal added to ``faults``: all are told at once."""
    try:
        return look_up()
    except ConfigError as error:
        faults.append(str(error))
        return None


def _base_model(spec: TrainSpec, store: Store) -> ModelVersion:
    model = store.model(spec.model, field="model")
    if model.is_adapter:
        raise ConfigError(
            f"model is {model.ref!r}, an adapter over {model.base}, which holds no weights to start from. "
            f"Set model: {model.base}; to train it further, llamafactory.adapter_name_or_path: {model.ref}."
        )
    return model


def _adapters(spec: TrainSpec, store: Store) -> list[str]:
    """The adapters to go on from, by name or address, each looked up."""
    named = spec.llamafactory.get("adapter_name_or_path")
    refs = [ref.strip() for ref in named.split(",")] if isinstance(named, str) else []
    found = [store.model(ref, field="llamafactory.adapter_name_or_path") for ref in refs]
    for model in found:
        if not model.is_adapter:
            raise ConfigError(
                f"llamafactory.adapter_name_or_path is {model.ref!r}, which is a full model and no adapter. "
                f"Set model: {model.ref} instead, or name an adapter."
            )
    return [model.ref for model in found]


def _store_faults(store: Store) -> list[str]:
    """A store that only this process sees is none for a job."""
    if store.root.backend.shared:
        return []
    return [
        f"store: is {store.uri!r}, which only this process sees; workers are others. Use a folder, gs:// or s3://."
    ]


def _dataset_info(spec: TrainSpec, store: Store) -> dict[str, Any]:
    """The entries of the spec's datasets from their own folders, as one ``dataset_info``."""
    named = [(name, "dataset") for name in spec.datasets]
    evaluated = spec.llamafactory.get("eval_dataset")
    if isinstance(evaluated, str):
        named += [(name.strip(), "llamafactory.eval_dataset") for name in evaluated.split(",")]
    entries = {}
    for name, field in named:
        dataset = store.dataset(name, field=field)
        entries[name] = dataset.info()
    return entries


def _publish_faults(publish: Publish | None, store: Store) -> list[str]:
    """A version that is taken: better known now than when the training is done."""
    if publish is None or publish.version is None:
        return []
    taken = {model.ref for model in store.models(publish.name)}
    ref = f"{publish.name}/{publish.version}"
    if ref not in taken:
        return []
    return [
        f"publish.version: is {publish.version!r}, but {ref} exists already, and a version never changes. "
        "Choose another, or remove the line for the next number."
    ]


def _gpus_per_worker(spec: TrainSpec, cluster: Mapping[str, float] | None) -> float:
    if spec.scaling.gpus_per_worker is not None:
        return spec.scaling.gpus_per_worker
    gpus = (cluster or {}).get("GPU", 0.0)
    if gpus == 0:
        return 0.0
    return 0.5 if gpus == 1 else 1.0


def _size_faults(spec: TrainSpec, gpus_per_worker: float, cluster: Mapping[str, float] | None) -> list[str]:
    """What the cluster can never hold, however long the job waits."""
    if cluster is None:
        return []
    workers, cpus = spec.scaling.num_workers, spec.scaling.cpus_per_worker
    has_cpus, has_gpus = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
    faults = []
    if workers * cpus > has_cpus:
        faults.append(
            f"scaling: num_workers {workers} x cpus_per_worker {cpus:g} is {workers * cpus:g} CPUs, but the "
            f"whole cluster has {has_cpus:g}. Lower one of them."
        )
    if workers * gpus_per_worker > has_gpus:
        remedy = "Lower one of them." if has_gpus else "Set gpus_per_worker: 0 to train on CPUs."
        faults.append(
            f"scaling: num_workers {workers} x gpus_per_worker {gpus_per_worker:g} is "
            f"{workers * gpus_per_worker:g} GPUs, but the whole cluster has {has_gpus:g}. {remedy}"
        )
    elif 0 < gpus_per_worker < 1 and workers > has_gpus:
        faults.append(
            f"scaling: num_workers is {workers}, but the cluster has {has_gpus:g} GPUs: NCCL does not let "
            f"two workers share one GPU. Set num_workers: {has_gpus:g} and a larger "
            "llamafactory.per_device_train_batch_size."
        )
    return faults


def _resources(cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}


def _llamafactory(spec: TrainSpec, *, on_cpu: bool) -> dict[str, Any]:
    owned: dict[str, Any] = {"dataset": ",".join(spec.datasets)}
    if on_cpu:
        owned["use_cpu"] = True
    return _DEFAULTS | spec.llamafactory | owned


def _env_vars(*, on_cpu: bool) -> dict[str, str]:
    """Environment variables of the Train controller and the workers, besides the environment's own."""
    env_vars = {
        # Off: Ray prints every line of a worker twice otherwise.
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        # How often the controller looks at the workers (default 2 s). A checkpoint counts as committed, and a
        # finished run as finished, only at the next look.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        # One process less: it watches for nodes that a cloud takes back, and this job would not survive that.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    }
    # Two workers on two cores: one thread each, or they wait for each other.
    return env_vars | storage_env() | ({"OMP_NUM_THREADS": "1"} if on_cpu else {})
