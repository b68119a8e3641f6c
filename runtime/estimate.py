"""Will it fit, and on what: the estimate of a spec, or of a model on all hardware, as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cluster.estimator.device import Device, share_of
from cluster.estimator.hardware import Hardware
from cluster.estimator.model import ModelShape
from cluster.estimator.reading import shape_of
from cluster.estimator.terms import Estimate, Term
from cluster.estimator.words import GIB
from cluster.gpus import Gpu, catalogue, find
from cluster.inventory import Card, Inventory, Node
from runtime.core.config import blamed_on, load_spec, read_mapping
from runtime.core.errors import ConfigError, StorageError
from runtime.core.lookup import did_you_mean
from serve_apps import estimate as serving
from serve_apps.defaults import workers as workers_of
from serve_apps.plan import plan_serve
from serve_apps.plan_memory import device_of as device_of_serving
from serve_apps.spec import ServeSpec
from storage.models import ModelVersion
from storage.store import Store, open_store
from train_jobs import estimate as training
from train_jobs.advice import Draft
from train_jobs.estimate import TrainEstimate, on_nodes
from train_jobs.plan import TrainPlan, resolve
from train_jobs.plan_memory import device_of as device_of_training
from train_jobs.plan_memory import estimate_plan
from train_jobs.source import Source, read_source
from train_jobs.spec import TrainSpec

_RECIPES: dict[str, dict[str, Any]] = {
    "QLoRA": {"finetuning_type": "lora", "quantization_bit": 4},
    "LoRA": {"finetuning_type": "lora"},
    "full": {"finetuning_type": "full"},
}
"""Ways to train a model, each with a row of 2,048 tokens at a time and gradient checkpointing."""
_RECIPE = {"bf16": True, "per_device_train_batch_size": 1, "cutoff_len": 2048}
_CONTEXT = 8192
"""Tokens of the context that a model is judged with for serving, or its own, where that is shorter."""


@dataclass(frozen=True)
class Report:
    """The estimate of one spec."""

    kind: Literal["train", "serve"]
    name: str
    model: str
    workers: int
    """That need as much each."""

    device: str
    """What each computes on."""

    needed_bytes: int
    host_bytes: int
    """Of its node's memory, for each worker, beside what is on its GPU."""

    available_bytes: int | None
    fits: bool | None
    """None where the machine is not known."""

    verdict: str
    terms: list[Term]
    """At the peak, largest first, then those on the host, then those on its disk."""

    ways: list[str]
    """To make it fit, the cheapest first."""

    hardware: list[dict[str, Any]]
    """The least number of each GPU that it fits on."""

    figures: dict[str, Any] = field(default_factory=dict)
    """Of a training: ``tokens_per_s`` as a range; of an engine: ``kv_cache_tokens``, ``sequences`` of
    ``max_model_len``, ``largest_max_model_len``."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def _repr_html_(self) -> str:
        from runtime.estimate_view import report_html

        return report_html(self)


@dataclass(frozen=True)
class Overview:
    """On what a model can be served and trained."""

    model: str
    parameters: int
    context: int
    """Tokens that serving is judged with."""

    rows: list[dict[str, Any]]
    """One a product: ``gpu``, ``memory_bytes``, and for ``serve`` and each way to train how many it takes;
    None where eight are too few."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def _repr_html_(self) -> str:
        from runtime.estimate_view import overview_html

        return overview_html(self)


def gpu_named(name: str) -> Gpu:
    """A GPU of the catalogue.

    Raises:
        ConfigError: it is not in there.
    """
    gpu = find(name)
    if gpu is None:
        known = sorted({one.name for one in catalogue()})
        raise ConfigError(f"--gpu is {name!r}, which is not in the catalogue. {did_you_mean(name, known)}")
    return gpu


def machine_with(gpu: Gpu, count: int) -> Inventory:
    """A node that nobody has yet: so many GPUs, and enough of everything else."""
    # With a UUID, as if NVML had been read: the card is known.
    cards = tuple(Card(index, gpu.memory_bytes, gpu.nvml, f"imagined-{index}") for index in range(count))
    return Inventory.of([Node("imagined", 64.0 * count, 4096 * GIB, cards, gpu.ray)])


def estimate_source(source: Source, store: Store, *, inventory: Inventory, gpu: Gpu | None = None) -> Report:
    """The estimate of a training.

    Args:
        inventory: Where it would run.
        gpu: What the inventory's cards are, where Ray's word for them leaves a choice.

    Raises:
        ConfigError: the spec cannot work.
    """
    plan = source.plan(store, inventory=inventory, memory_must_fit=False)
    _known_shape(store.model(plan.base))
    device = _trains_on(plan, source, inventory)
    if device is None:
        raise _no_gpu(source.spec.name)
    if gpu is not None and device.gpu is not None:
        device = share_of(gpu, device.share)
    found = estimate_plan(
        plan, store=store, inventory=inventory, device=device, accelerator_type=plan.accelerator_type
    )
    if not found:
        raise ConfigError(
            f"the memory of {source.spec.name} is not known: its recipe has an argument that changes it in a "
            "way that is not reckoned. Which those are: docs/estimator.md."
        )
    nodes = inventory.with_product(plan.accelerator_type) if plan.accelerator_type else inventory
    found = on_nodes(found, _most_memory(nodes))
    hardware = training.hardware_for(found.draft, model=found.shape.model, gpus=_one_of_each())
    speed = found.speed
    figures: dict[str, Any] = {"tokens_per_step": found.shape.tokens * _micro_batches(plan)}
    if speed is not None:
        figures |= {"tokens_per_s": [speed.least_tokens_per_s, speed.most_tokens_per_s]}
        if (steps := plan.llamafactory.get("max_steps", -1)) > 0:
            figures["training_s"] = list(speed.seconds(steps * figures["tokens_per_step"]))
    return Report(
        kind="train",
        name=source.spec.name,
        model=plan.base,
        workers=plan.num_workers,
        hardware=_rows(hardware),
        figures=figures,
        **_common(found, found.estimate, found.device, found.estimate.device_bytes),
    )


def estimate_app(spec: ServeSpec, store: Store, *, inventory: Inventory, gpu: Gpu | None = None) -> Report:
    """The estimate of a serve app's engine.

    Raises:
        ConfigError: the spec cannot work.
    """
    store = open_store(spec.store) if spec.store else store
    plan = plan_serve(spec, store=store, inventory=inventory, memory_must_fit=False)
    model = _known_shape(store.model(plan.spec.model))
    workers = workers_of(plan.engine)
    device = device_of_serving(
        inventory=inventory,
        gpus=plan.spec.resources.gpus or 0.0,
        memory_bytes=spec.resources.memory_bytes,
        workers=workers,
        accelerator_type=plan.accelerator_type,
    )
    if device is None:
        raise _no_gpu(spec.name)
    if gpu is not None and device.gpu is not None:
        device = share_of(gpu, device.share)
    found = serving.estimate_serve(
        plan.engine,
        model=model,
        device=device,
        most_gpus=inventory.most_cards_on_a_node,
        node_bytes=_most_memory(inventory) if spec.resources.memory_bytes else None,
    )
    cache = Term(
        "KV cache",
        found.estimate.cache_bytes(found.budget_bytes or 0) or found.estimate.bytes_per_sequence,
        f"{found.estimate.bytes_per_token:,} B a token",
        "vLLM, kv_cache_interface",
    )
    common = _common(found, found.estimate.fixed, found.allowed, found.needed_bytes)
    return Report(
        kind="serve",
        name=spec.name,
        model=plan.spec.model,
        workers=workers,
        hardware=_rows(serving.hardware_for(spec.engine, model=model, gpus=_one_of_each())),
        figures={
            "max_model_len": found.max_model_len,
            "kv_cache_tokens": found.tokens,
            "sequences": found.sequences,
            "largest_max_model_len": found.largest_max_model_len,
        },
        **{**common, "terms": [*([cache] if found.estimate.cache else []), *common["terms"]]},
    )


def estimate(
    target: Mapping[str, Any] | str | Path,
    store: Store,
    *,
    inventory: Inventory,
    gpu: str | None = None,
    num_gpus: int = 1,
    is_llamafactory: bool = False,
) -> Report | Overview:
    """The estimate of a spec, in a file or as its fields, or of a model on all hardware.

    Args:
        inventory: Where it would run, unless ``gpu`` is given.
        gpu: A GPU of the catalogue.
        num_gpus: How many of them.
        is_llamafactory: Whether the file is one as ``llamafactory-cli train`` takes it.

    Raises:
        ConfigError: the target cannot be read, or cannot work.
    """
    chosen = gpu_named(gpu) if gpu else None
    nodes = machine_with(chosen, num_gpus) if chosen else inventory
    if isinstance(target, Mapping):
        return _estimate_fields(target, store, inventory=nodes, gpu=chosen)
    if Path(target).suffix not in (".yaml", ".yml", ".json"):
        return overview(str(target), store, gpus=[chosen] if chosen else None)
    with blamed_on(target):
        if "://" in str(target):  # as tandem train takes it
            return estimate_source(
                read_source(str(target), None, store=store), store, inventory=nodes, gpu=chosen
            )
        return estimate_file(
            Path(target), store, inventory=nodes, gpu=chosen, is_llamafactory=is_llamafactory
        )


def _estimate_fields(
    fields: Mapping[str, Any], store: Store, *, inventory: Inventory, gpu: Gpu | None
) -> Report:
    if "dataset" in fields or "llamafactory" in fields:
        source = Source(resolve(load_spec(TrainSpec, fields)), "spec")
        return estimate_source(source, store, inventory=inventory, gpu=gpu)
    return estimate_app(load_spec(ServeSpec, fields), store, inventory=inventory, gpu=gpu)


def estimate_file(
    path: Path,
    store: Store,
    *,
    inventory: Inventory,
    gpu: Gpu | None = None,
    is_llamafactory: bool = False,
) -> Report:
    """The estimate of the spec in a file: a train spec has a ``dataset``, a serve spec has none.

    Args:
        is_llamafactory: Whether it is a file as ``llamafactory-cli train`` takes it.

    Raises:
        ConfigError: it cannot be read, or cannot work.
    """
    if is_llamafactory:
        source = read_source(None, str(path), store=store)
        return estimate_source(source, store, inventory=inventory, gpu=gpu)
    fields = read_mapping(path)
    if "dataset" in fields or "llamafactory" in fields:
        source = read_source(str(path), None, store=store)
        return estimate_source(source, store, inventory=inventory, gpu=gpu)
    return estimate_app(load_spec(ServeSpec, path), store, inventory=inventory, gpu=gpu)


def overview(reference: str, store: Store, *, gpus: Iterable[Gpu] | None = None) -> Overview:
    """On what a model can be served, and trained in each way.

    Args:
        reference: As a spec's ``model`` takes it.
        gpus: Of these products only.

    Raises:
        ConfigError: there is no such model, or its files do not tell.
    """
    version = store.model(reference, field="MODEL")
    model = _known_shape(version)
    chosen = list(gpus or _one_of_each())
    context = min(_CONTEXT, model.context.unasked)
    engine = {"max_model_len": context}
    counts = {"serve": _counts(serving.hardware_for(engine, model=model, gpus=chosen))}
    for name, arguments in _RECIPES.items():
        draft = Draft({**_RECIPE, **arguments}, None, 1)
        counts[name] = _counts(training.hardware_for(draft, model=model, gpus=chosen))
    rows = [
        {"gpu": gpu.name, "memory_bytes": gpu.memory_bytes}
        | {what: found.get(gpu.name) for what, found in counts.items()}
        for gpu in sorted(chosen, key=lambda one: (one.memory_bytes, one.name))
    ]
    return Overview(version.ref, model.total, context, rows)


def _one_of_each() -> list[Gpu]:
    """One product for each size of memory and each architecture: the others differ in speed only."""
    seen: dict[tuple[int, str], Gpu] = {}
    for gpu in catalogue():
        seen.setdefault((round(gpu.memory_bytes / GIB), gpu.architecture), gpu)
    return list(seen.values())


def _counts(found: list[Hardware]) -> dict[str, int]:
    return {one.gpu.name: one.count for one in found}


def _rows(found: list[Hardware]) -> list[dict[str, Any]]:
    return [
        {
            "gpu": one.gpu.name,
            "count": one.count,
            "memory_bytes": one.gpu.memory_bytes,
            "needed_bytes": one.needed_bytes,
            "filled": round(one.filled, 3),
        }
        for one in found
    ]


def _most_memory(inventory: Inventory) -> int | None:
    """What the largest node hands out."""
    return max((node.memory_bytes for node in inventory.nodes), default=0) or None


def _trains_on(plan: TrainPlan, source: Source, inventory: Inventory) -> Device | None:
    return device_of_training(
        inventory=inventory,
        gpus_per_worker=plan.resources_per_worker.get("GPU", 0.0),
        accelerator_type=plan.accelerator_type,
        num_workers=plan.num_workers,
        memory_bytes=source.spec.scaling.memory_bytes_per_worker,
    )


def _micro_batches(plan: TrainPlan) -> int:
    return plan.num_workers * int(plan.llamafactory.get("gradient_accumulation_steps", 1))


def _common(
    found: TrainEstimate | serving.ServeEstimate, estimate: Estimate, device: Device, needed_bytes: int
) -> dict[str, Any]:
    return {
        "device": device.name,
        "needed_bytes": needed_bytes,
        "host_bytes": estimate.host_bytes,
        "available_bytes": device.available_bytes,
        "fits": found.fits,
        "verdict": found.verdict,
        "terms": [*estimate.at_peak, *estimate.on_host, *estimate.on_disk],
        "ways": [str(way) for way in found.ways],
    }


def _known_shape(model: ModelVersion) -> ModelShape:
    """The model, as an estimate needs it.

    Raises:
        ConfigError: its files do not tell; says what is missing.
    """
    try:
        return shape_of(model)
    except (ConfigError, StorageError) as error:
        raise ConfigError(
            f"model is {model.ref!r}, whose files do not tell what it consists of: an estimate reads the "
            f"headers of its .safetensors files and its config.json. {error}"
        ) from error


def _no_gpu(name: str) -> ConfigError:
    return ConfigError(
        f"the memory of {name} is not known: its GPU is not in the catalogue. Name one that is, with --gpu."
    )
