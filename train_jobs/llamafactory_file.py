"""A LLaMA-Factory file of the wild becomes a train spec: ``tandem train --llamafactory FILE.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.core.config import load_spec
from runtime.core.errors import ConfigError
from storage.address import is_address
from storage.store import Store
from train_jobs import deepspeed_presets, llamafactory_data, llamafactory_yaml, named_models
from train_jobs.arguments import OWNED
from train_jobs.spec import TrainSpec

_EXAMPLES = {
    "ds_z0_config.json": "zero0",
    "ds_z2_config.json": "zero2",
    "ds_z2_offload_config.json": "zero2-offload",
    "ds_z3_config.json": "zero3",
    "ds_z3_offload_config.json": "zero3-offload",
}
"""The DeepSpeed configs that LLaMA-Factory's examples name, and our preset for each."""
_LAUNCHER = {
    "ray_run_name": "The run's name says which it is.",
    "ray_storage_path": "The store keeps runs.",
    "placement_strategy": "It becomes scaling.placement_strategy.",
    "resources_per_worker": "It becomes scaling.gpus_per_worker and scaling.cpus_per_worker.",
    "nproc_per_node": "--num-workers says how many workers there are.",
    "nnodes": "--num-workers says how many workers there are.",
    "node_rank": "Ray Train sets the ranks.",
}
"""Words for launchers, which LLaMA-Factory's earlier versions or its environment variables took."""
_TAKEN = (
    "model_name_or_path", "dataset", "dataset_dir", "output_dir", "deepspeed", "ray_num_workers", "use_cpu",
)  # fmt: skip
"""Arguments of ``arguments.OWNED`` that the spec says in its own words."""


@dataclass(frozen=True)
class LlamaFactoryFile:
    """What a file means here. Nothing is registered before ``register``."""

    spec: TrainSpec
    notes: list[str]
    """What was taken over otherwise than it stands there, and what was left out."""
    new_datasets: Mapping[str, llamafactory_data.NewDataset]
    """Datasets that the spec names and the store does not have yet."""

    @property
    def new_entries(self) -> dict[str, Mapping[str, Any]]:
        """Their entries of ``dataset_info.json``, for ``plan_train(new_datasets=...)``."""
        return {name: new.entry for name, new in self.new_datasets.items()}

    def register(self, store: Store) -> None:
        """Put the new datasets into the store.

        Raises:
            Conflict: somebody registered one meanwhile.
        """
        for name, new in self.new_datasets.items():
            store.add_dataset(name, [str(file) for file in new.files], info=new.info)


def spec_from_llamafactory(
    path: str | Path, *, store: Store, num_workers: int | None = None, name: str | None = None
) -> tuple[TrainSpec, list[str]]:
    """The train spec of a LLaMA-Factory file, its datasets registered; and notes.

    Raises:
        ConfigError: the file cannot be used; says why and what to do.
    """
    found = read_llamafactory(path, store=store, num_workers=num_workers, name=name)
    found.register(store)
    return found.spec, found.notes


def read_llamafactory(
    path: str | Path, *, store: Store, num_workers: int | None = None, name: str | None = None
) -> LlamaFactoryFile:
    """What a LLaMA-Factory file means here; nothing is registered.

    Args:
        path: A YAML or JSON file as ``llamafactory-cli train`` takes it.
        store: Where its model and datasets are looked for first or second, and its result goes.
        num_workers: Workers. Default: the file's ``ray_num_workers``, else 1.
        name: The run's name. Default: ``run_name``, else the last part of ``output_dir``, else the file's.

    Raises:
        ConfigError: the file cannot be used; says why and what to do.
    """
    origin = Path(path).expanduser().absolute()
    given = llamafactory_yaml.read(origin)
    try:
        return _converted(given, origin, store, num_workers, name)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _converted(
    given: dict[str, Any], origin: Path, store: Store, num_workers: int | None, name: str | None
) -> LlamaFactoryFile:
    notes = _left_out(given)
    trains, evaluated = _asked(given)
    trained = _listed(given.get("dataset"))
    data = llamafactory_data.find(
        [*dict.fromkeys([*trained, *evaluated])], given.get("dataset_dir"), origin, store
    )
    arguments = {key: value for key, value in given.items() if key not in OWNED and key not in _LAUNCHER}
    arguments |= _models(arguments, store, notes)
    arguments["do_train"] = trains
    if evaluated:
        arguments["eval_dataset"] = ",".join(data.names[one] for one in evaluated)
    run = llamafactory_data.legal_name(name or _name(given, origin))
    spec = {
        "name": run,
        "model": _model(str(given.get("model_name_or_path") or ""), "model_name_or_path", store, notes),
        # An evaluation alone may name no dataset to train on.
        "dataset": [data.names[one] for one in trained or evaluated],
        "llamafactory": {key: value for key, value in arguments.items() if value is not None},
        "scaling": _scaling(given, num_workers),
        "deepspeed": _deepspeed(given.get("deepspeed"), origin, notes),
        "publish": {"name": run} if trains else None,
    }
    if trains:
        where = f" and not to {given['output_dir']}" if given.get("output_dir") else ""
        notes.append(f"The result goes to the store as the model {run}{where}.")
    return LlamaFactoryFile(load_spec(TrainSpec, spec), notes + data.notes, data.new)


def _asked(given: Mapping[str, Any]) -> tuple[bool, list[str]]:
    """Whether it trains, and the datasets that it evaluates on.

    Raises:
        ConfigError: it is a file for another command.
    """
    if given.get("export_dir"):
        raise ConfigError(
            "export_dir is for llamafactory-cli export. To merge an adapter, train it with merge: true in a "
            "train spec."
        )
    if not given.get("model_name_or_path"):
        raise ConfigError(
            "names no model. Add model_name_or_path: a folder, a model of the store, or org/name."
        )
    evaluated = _listed(given.get("eval_dataset"))
    if not given.get("dataset") and not evaluated:
        raise ConfigError("names no dataset, so that it is no file for training. Add dataset.")
    only_evaluates = bool(given.get("do_eval") or given.get("do_predict"))
    return bool(given.get("do_train", not only_evaluates)), evaluated


def _left_out(given: Mapping[str, Any]) -> list[str]:
    """A note for each argument that has no effect here.

    Raises:
        ConfigError: one of them asks for something that cannot be had.
    """
    resumed = given.get("resume_from_checkpoint")
    if isinstance(resumed, str):
        raise ConfigError(
            f"resume_from_checkpoint is {resumed!r}, a checkpoint of another launcher. Remove the line; to "
            "go on from an adapter of it, name it in adapter_name_or_path."
        )
    reasons = {key: why for key, why in OWNED.items() if key not in _TAKEN} | _LAUNCHER
    return [
        f"{key} {given[key]} is left out. {reasons[key]}"
        for key in given
        if key in reasons and given[key] not in (None, False)
    ]


def _listed(value: Any) -> list[str]:
    items = value.split(",") if isinstance(value, str) else value or []
    return [str(item).strip() for item in items]


def _name(given: Mapping[str, Any], origin: Path) -> str:
    last = str(given.get("output_dir") or "").rstrip("/").rpartition("/")[2]
    return str(given.get("run_name") or given.get("ray_run_name") or last or origin.stem)


def _model(ref: str, argument: str, store: Store, notes: list[str]) -> str:
    """What a model's name means: a folder that is there, a model of the store, else one of the Hub."""
    if "://" in ref:
        return ref
    if Path(ref).expanduser().is_dir():
        return str(Path(ref).expanduser().absolute())
    if is_address(ref):
        raise ConfigError(
            f"{argument} is {ref!r}, and there is no such folder. It is taken from {Path.cwd()}."
        )
    if store.models(ref.partition("/")[0]):
        return ref
    if ref.count("/") != 1:
        # Refused by the plan, which names the models that there are.
        return ref
    notes.append(f"{argument} {ref} is no folder and not in the store: it is hf://{ref}.")
    return f"hf://{ref}"


def _models(arguments: Mapping[str, Any], store: Store, notes: list[str]) -> dict[str, str]:
    return {
        argument: ",".join(
            _model(ref, argument, store, notes) for ref in named_models.split(arguments[argument])
        )
        for argument in named_models.ARGUMENTS
        if isinstance(arguments.get(argument), str)
    }


def _deepspeed(value: Any, origin: Path, notes: list[str]) -> Any:
    if not isinstance(value, str) or "://" in value:
        return value
    for file in (Path(value).expanduser(), origin.parent / value):
        if file.is_file():
            return str(file.absolute())
    preset = _EXAMPLES.get(Path(value).name)
    if preset is not None:
        notes.append(f"deepspeed {value} is not there: the preset {preset} takes its place.")
        return preset
    if value in deepspeed_presets.names():
        return value
    raise ConfigError(
        f"deepspeed is {value!r}, and there is no such file, from {Path.cwd()} or from {origin.parent}. "
        f"Correct the path, or write a preset: {', '.join(deepspeed_presets.names())}."
    )


def _scaling(given: Mapping[str, Any], num_workers: int | None) -> dict[str, Any]:
    scaling: dict[str, Any] = {"num_workers": num_workers or given.get("ray_num_workers") or 1}
    resources = given.get("resources_per_worker")
    if isinstance(resources, Mapping):
        fields = {"GPU": "gpus_per_worker", "CPU": "cpus_per_worker"}
        scaling |= {fields[kind]: amount for kind, amount in resources.items() if kind in fields}
    if given.get("placement_strategy"):
        scaling["placement_strategy"] = given["placement_strategy"]
    if given.get("use_cpu"):
        scaling["gpus_per_worker"] = 0
    return scaling
