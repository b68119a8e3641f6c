"""A spec becomes a plan: pure data that says all that will run. Everything wrong is refused here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from cluster.estimator.planned import PlannedMemory
from cluster.inventory import Inventory
from runtime.core.config import ConfigModel
from runtime.core.errors import ConfigError
from storage.runs import RunFolder
from storage.store import Store
from storage.workspace import storage_env
from train_jobs import accelerators as gpu_products
from train_jobs import arguments, capacity, deepspeed_presets, named_models, recipes
from train_jobs.deepspeed_config import Reconciled, reconcile, stage_of
from train_jobs.elastic import accumulation_for, worker_counts
from train_jobs.plan_memory import never, with_memory
from train_jobs.precision import without_fp16
from train_jobs.recipe_packages import train_packages
from train_jobs.recipe_view import Recipe
from train_jobs.spec import Checkpoints, Failure, Publish, TrainSpec

# What LLaMA-Factory would do by default makes no sense under Ray: no training at all, a progress bar
# in a log file, a loss only every 500 steps.
# And a NaN loss must show: a run that has one is ended.
_DEFAULTS: dict[str, Any] = {
    "do_train": True,
    "disable_tqdm": True,
    "logging_steps": 5,
    "logging_nan_inf_filter": False,
}


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

    models: dict[str, list[str]] = {}
    """Other models that arguments of LLaMA-Factory name, like ``base``: ``{"adapter_name_or_path": [...],
    "ref_model": [...]}``. Workers put folders of their node in their places."""

    llamafactory: dict[str, Any]
    """Arguments of LLaMA-Factory; the worker adds paths and what else differs by node."""

    dataset_info: dict[str, Any]
    """LLaMA-Factory's ``dataset_info.json`` for this run; file names are relative to their dataset."""

    deepspeed: dict[str, Any] | None
    """DeepSpeed's configuration, or None for plain DDP."""

    num_workers: int
    """Workers, or the most of them where the run is elastic: what the global batch is reckoned with."""

    min_workers: int
    """The least number of workers that the run may have now."""

    max_workers: int
    """The largest number that it may have now. Both equal ``num_workers`` unless the run is elastic, or goes
    on
    with another number than it began with."""

    resources_per_worker: dict[str, float]
    """What each worker reserves with Ray, such as ``{"CPU": 0.5}``."""

    share_bytes: int | None = None
    """Each worker's share of a card, or without GPUs of its node's memory; None: it has no bounds but the
    machine's."""

    memory: PlannedMemory | None = None
    """What each worker is estimated to need, and has; None where the model's files do not tell."""

    use_gpu: bool
    """Whether the workers train on a GPU."""

    accelerator_type: str | None = None
    """The GPU product that all workers are on; None where there is no choice to make."""

    placement_strategy: str = "PACK"
    """Ray's placement strategy."""

    elastic_resize_monitor_interval_s: float = 60.0
    """How often an elastic run looks for more room."""

    checkpoints: Checkpoints = Checkpoints()
    """Which checkpoints stay."""

    failure: Failure = Failure()
    """How often and how long the run tries again."""

    memory_check: Literal["refuse", "warn"] = "refuse"
    """What happens where workers would need more memory than they have."""

    priority: str = "training"
    """The class in which it waits for room."""

    may_wait: bool = True
    """Whether it waits where there is no room now; otherwise it fails at once."""

    merge: bool = False
    """Whether the result is the base with the trained adapter merged in."""

    notes: list[str] = []
    """What is done differently from what the spec's words say here, each with the reason."""

    env_vars: dict[str, str]
    """Environment variables of the workers."""

    publish: Publish | None
    """Where the result goes."""

    @property
    def promised_bytes(self) -> int | None:
        """What each worker keeps to, on its card or in its node's memory: its share, else its estimate."""
        if self.memory is None:
            return self.share_bytes
        return self.share_bytes or self.memory.needed_bytes

    @property
    def caps_memory(self) -> bool:
        """Whether the kernel keeps each worker to its share of its node's memory."""
        return not self.use_gpu and self.share_bytes is not None

    @property
    def adapters(self) -> list[str]:
        """The adapters to go on from."""
        return self.models.get("adapter_name_or_path", [])

    @property
    def template(self) -> str | None:
        """The chat template that the model is trained with."""
        return self.llamafactory.get("template")

    @property
    def kind(self) -> Literal["full", "adapter"]:
        """``full`` or ``adapter``, as a model version's manifest says it."""
        if self.merge:
            return "full"
        # LLaMA-Factory's default is lora.
        return "adapter" if self.llamafactory.get("finetuning_type", "lora") in ("lora", "oft") else "full"


def resolve(spec: TrainSpec) -> TrainSpec:
    """The same spec with nothing left that means something else on another machine.

    A DeepSpeed file is read in, a preset's name stays, the path of a model's folder becomes absolute.

    Raises:
        ConfigError: the DeepSpeed file cannot be read.
        StorageError: nothing is at the DeepSpeed file's address.
    """
    changes: dict[str, Any] = {}
    if isinstance(spec.deepspeed, str) and spec.deepspeed not in deepspeed_presets.names():
        changes["deepspeed"] = deepspeed_presets.resolve(spec.deepspeed)
    changes["model"] = named_models.absolute(spec.model)
    changes["llamafactory"] = spec.llamafactory | {
        argument: ",".join(named_models.absolute(ref) for ref in named_models.split(value))
        for argument in named_models.ARGUMENTS
        if isinstance(value := spec.llamafactory.get(argument), str)
    }
    return spec.model_copy(update=changes)


def plan_train(
    spec: TrainSpec,
    *,
    store: Store,
    run: RunFolder | None = None,
    inventory: Inventory | None = None,
    new_datasets: Mapping[str, Mapping[str, Any]] | None = None,
    go_on_with: int | None = None,
    origin: str = "spec",
    memory_must_fit: bool = True,
) -> TrainPlan:
    """What ``spec`` means on this store and this cluster.

    Args:
        spec: A validated spec.
        store: Where its model and datasets are.
        run: The run's folder; None in a dry run.
        inventory: The cluster's nodes and cards. None where they are not known: then nothing is refused for
            its size, and a GPU is used only if the spec says so.
        new_datasets: ``dataset_info.json`` entries of datasets that are registered only if the plan holds.
        go_on_with: The number of workers of a run that is resumed with another one; its global batch stays.
        origin: What to call the spec in an error: its file, where it came from one.
        memory_must_fit: Whether workers that would need more memory than they have are refused.

    Raises:
        ConfigError: every fault of the spec, one a line, each with field, value, reason and remedy.
    """
    faults = arguments.faults(spec.llamafactory)
    well_typed = not faults
    faults += _store_faults(store)
    model = _tried(lambda: named_models.base_model(spec.model, store), faults)
    models = _tried(lambda: named_models.named_models(spec.llamafactory, store), faults)
    dataset_info = _tried(lambda: _dataset_info(spec, store, new_datasets or {}), faults)
    deepspeed = _tried(lambda: deepspeed_presets.resolve(spec.deepspeed), faults)
    cluster_resources = inventory.resources if inventory else None
    gpus_per_worker = capacity.gpus_per_worker(spec.scaling, cluster_resources)
    # Logical cards are handed out like real ones, and there is nothing on them to compute with.
    on_cpu = gpus_per_worker == 0 or (inventory is not None and inventory.is_logical)
    agreed = _agreed(spec, deepspeed, on_cpu=on_cpu)
    notes = list(agreed.notes)
    faults += agreed.faults
    products = _tried(lambda: _products(spec, gpus_per_worker, inventory), faults)
    if well_typed:
        recipe = _recipe(spec, agreed, deepspeed, model.config() if model else {}, on_cpu=on_cpu)
        verdict = recipes.judge(recipe, dataset_info or {})
        faults += verdict.faults
        notes += verdict.notes
    faults += _publish_faults(spec.publish, store, run)
    scaling = (
        spec.scaling if go_on_with is None else spec.scaling.model_copy(update={"num_workers": go_on_with})
    )
    faults += capacity.size_faults(scaling, gpus_per_worker, cluster_resources)
    if faults or model is None or models is None or dataset_info is None or products is None:
        raise _refused(origin, faults)
    plan = TrainPlan(
        store_uri=store.uri,
        run_id=run.run_id if run else None,
        run_uri=run.uri if run else None,
        base=model.ref,
        base_revision=model.revision,
        models=models,
        llamafactory=_llamafactory(spec, agreed.llamafactory, on_cpu=on_cpu),
        dataset_info=dataset_info,
        deepspeed=agreed.deepspeed if deepspeed is not None else None,
        num_workers=spec.scaling.max_workers,
        min_workers=scaling.min_workers,
        max_workers=scaling.max_workers,
        resources_per_worker=capacity.resources_per_worker(spec.scaling, gpus_per_worker),
        use_gpu=not on_cpu,
        placement_strategy=spec.scaling.placement_strategy,
        elastic_resize_monitor_interval_s=spec.scaling.elastic_resize_monitor_interval_s,
        checkpoints=spec.checkpoints,
        failure=spec.failure,
        memory_check=spec.memory_check,
        priority=spec.priority,
        merge=spec.merge,
        notes=notes,
        env_vars=_env_vars(on_cpu=on_cpu),
        publish=spec.publish,
    )
    if go_on_with is not None:
        accumulation_for(plan, go_on_with)
    plan, faults = _on_a_product(plan, products, spec, store, inventory, gpus_per_worker)
    if faults and memory_must_fit:
        raise _refused(origin, faults)
    return _with_sizes(plan, origin)


def _refused(origin: str, faults: list[str]) -> ConfigError:
    return ConfigError(f"{origin}: cannot be run.\n" + "\n".join(f"  {fault}" for fault in faults))


def _on_a_product(
    plan: TrainPlan,
    products: Sequence[str | None],
    spec: TrainSpec,
    store: Store,
    inventory: Inventory | None,
    gpus_per_worker: float,
) -> tuple[TrainPlan, list[str]]:
    """The plan on the first product on which it fits. Where it fits on none, the plan on the one that is
    nearest to it (only room is missing, else the largest cards), and why it does not."""
    tried: list[tuple[TrainPlan, list[str]]] = []
    nearest = []
    for product in products:
        one = plan.model_copy(update={"accelerator_type": product})
        one, memory = with_memory(one, spec, store, inventory, gpus_per_worker)
        is_told = memory if spec.memory_check == "warn" else []
        faults = [] if is_told else memory
        if not faults and inventory is not None:
            faults = never(one, inventory)
        notes = [*one.notes, *is_told]
        if product and spec.scaling.accelerator_type is None and inventory and len(inventory.products) > 1:
            notes.insert(len(plan.notes), gpu_products.note(product, products[: len(tried)]))
        tried.append((one.model_copy(update={"notes": notes}), faults))
        if not memory and not faults:
            return tried[-1]
        has = one.memory.available_bytes if one.memory else None
        nearest.append((not faults, not memory, has or 0))
    return tried[nearest.index(max(nearest))]


def _with_sizes(plan: TrainPlan, origin: str) -> TrainPlan:
    """The plan of an elastic run, with a note where not every size keeps the global batch."""
    sizes = worker_counts(plan)
    if len(sizes) == plan.max_workers - plan.min_workers + 1:
        return plan
    micro_batches = plan.num_workers * plan.llamafactory.get("gradient_accumulation_steps", 1)
    field = f"scaling.num_workers: is [{plan.min_workers}, {plan.max_workers}]"
    why = f"others do not divide the global batch of {micro_batches} micro batches"
    if len(sizes) == 1:
        raise _refused(
            origin,
            [
                f"{field}, but only {sizes[0]} is possible: {why}. Raise "
                f"llamafactory.gradient_accumulation_steps, or write num_workers: {sizes[0]}."
            ],
        )
    shown = ", ".join(str(size) for size in sizes)
    note = f"{field}: the run has {shown} workers at a time; {why}."
    return plan.model_copy(update={"notes": [*plan.notes, note]})


def _agreed(spec: TrainSpec, deepspeed: dict[str, Any] | None, *, on_cpu: bool) -> Reconciled:
    """DeepSpeed's config and the recipe, as they are told to the workers."""
    if deepspeed is not None:
        return reconcile(deepspeed, spec.llamafactory, num_workers=spec.scaling.max_workers, on_cpu=on_cpu)
    recipe, notes = without_fp16(spec.llamafactory) if on_cpu else (spec.llamafactory, [])
    return Reconciled({}, recipe, notes=notes)


def _recipe(
    spec: TrainSpec,
    agreed: Reconciled,
    deepspeed: dict[str, Any] | None,
    base_config: Mapping[str, Any],
    *,
    on_cpu: bool,
) -> Recipe:
    return Recipe(
        agreed.llamafactory,
        zero_stage=stage_of(deepspeed),
        on_cpu=on_cpu,
        merge=spec.merge,
        publishes=spec.publish is not None,
        base_config=base_config,
        packages=train_packages(on_cpu=on_cpu),
    )


def _products(spec: TrainSpec, gpus_per_worker: float, inventory: Inventory | None) -> list[str | None]:
    return gpu_products.choices(
        spec.scaling.accelerator_type,
        num_workers=spec.scaling.min_workers,
        gpus_per_worker=gpus_per_worker,
        accelerators=inventory.accelerators if inventory else None,
    )


def _tried(look_up: Callable[[], Found], faults: list[str]) -> Found | None:
    """What ``look_up`` returns, or None with its refusal added to ``faults``: all are told at once."""
    try:
        return look_up()
    except ConfigError as error:
        faults.append(str(error))
        return None


def _store_faults(store: Store) -> list[str]:
    """A store that only this process sees is none for a job."""
    if store.root.backend.shared:
        return []
    return [
        f"store: is {store.uri!r}, which only this process sees; workers are others. Use a folder, gs:// or "
        "s3://."
    ]


def _reads_training_rows(spec: TrainSpec) -> bool:
    """Whether ``dataset`` is read: an evaluation alone needs its own rows only."""
    arguments_ = spec.llamafactory
    return bool(arguments_.get("do_train", True)) or not arguments_.get("eval_dataset")


def _dataset_info(spec: TrainSpec, store: Store, new: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The entries of the spec's datasets from their own folders, as one ``dataset_info``."""
    named = [(name, "dataset") for name in spec.datasets] if _reads_training_rows(spec) else []
    evaluated = spec.llamafactory.get("eval_dataset")
    if isinstance(evaluated, str):
        named += [(name.strip(), "llamafactory.eval_dataset") for name in evaluated.split(",")]
    return {
        name: dict(new[name]) if name in new else store.dataset(name, field=field).info()
        for name, field in named
    }


def _publish_faults(publish: Publish | None, store: Store, run: RunFolder | None) -> list[str]:
    """A version that is taken: better known now than when the training is done."""
    if publish is None or publish.version is None:
        return []
    mine = run.run_id if run else None
    taken = {
        model.ref
        for model in store.models(publish.name)
        # A run that was lost just after it published ends well when it is taken up again.
        if mine is None or model.manifest is None or model.manifest.run != mine
    }
    ref = f"{publish.name}/{publish.version}"
    if ref not in taken:
        return []
    return [
        f"publish.version: is {publish.version!r}, but {ref} exists already, and a version never changes. "
        "Choose another, or remove the line for the next number."
    ]


def _llamafactory(spec: TrainSpec, recipe: Mapping[str, Any], *, on_cpu: bool) -> dict[str, Any]:
    owned: dict[str, Any] = {"dataset": ",".join(spec.datasets)} if _reads_training_rows(spec) else {}
    if on_cpu:
        owned["use_cpu"] = True
    return _DEFAULTS | dict(recipe) | owned


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
