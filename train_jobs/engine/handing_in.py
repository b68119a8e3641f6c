"""Handing in what a training left: the model alone, merged where that was asked for, published or kept."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from runtime.core.errors import StorageError
from runtime.core.places import cache_root
from storage.commit import commit_folder, now, remove_committed
from storage.location import locate
from storage.manifest import OutputManifest
from storage.models import ModelVersion
from storage.runs import RunFolder
from storage.store import Store
from storage.transfer import copy_file
from train_jobs.engine.faults import RecipeFault
from train_jobs.plan import TrainPlan

MODEL_FILES = (
    "*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.model", "*.tiktoken",
    "config.json", "generation_config.json", "adapter_config.json", "tokenizer*.json", "vocab.json",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*",
    "*preprocessor_config.json", "processor_config.json", "*.py",
)  # fmt: skip
"""What of the trainer's output is the model. Not: ``training_args.bin``, its own logs, plots and states."""

_NOT_MODEL_FILES = {"training_args.bin", "optimizer.bin", "scheduler.bin"}
_REPORTS = ("all_results.json", "*_results.json", "generated_predictions.jsonl", "*.png")
"""What evaluation and prediction leave besides metrics."""
_CONVERTED = "pissa_converted"
"""Where LLaMA-Factory leaves, with pissa_convert, the adapter that fits the base as it is."""
_WEIGHTS = ("*.safetensors", "*.bin")


def hand_in(
    plan: TrainPlan, store: Store, run: RunFolder, arguments: dict[str, Any], output: Path, scratch: Path
) -> None:
    """Publish the model, or keep it with the run where the spec publishes nothing; say which in the run.

    Args:
        arguments: What LLaMA-Factory was given, with the paths of this node.
        output: Its ``output_dir``.
        scratch: A folder on the same file system.

    Raises:
        RecipeFault: there is no model, or the merged one equals its base.
        StorageError: the store takes neither. The model stays on this node, and the message says where.
    """
    _keep_reports(run, output)
    if not plan.llamafactory.get("do_train"):
        run.write_output({"model": None})
        return
    folder = model_only(output, scratch / "model")
    if (output / _CONVERTED).exists():
        _replace(folder, model_only(output / _CONVERTED, scratch / "converted"))
    if plan.merge:
        folder = model_only(merged(arguments, folder, scratch), scratch / "merged-model")
    try:
        run.write_output(_published(plan, store, run, folder))
    except StorageError as error:
        kept = cache_root() / "unpublished" / run.run_id
        shutil.copytree(folder, kept, dirs_exist_ok=True)
        raise type(error)(f"{error} The trained model is kept in {kept} on {socket.gethostname()}.") from None


def _keep_reports(run: RunFolder, output: Path) -> None:
    for file in sorted({file for pattern in _REPORTS for file in output.glob(pattern)}):
        copy_file(locate(str(file)), run.place / "reports" / file.name)


def _published(plan: TrainPlan, store: Store, run: RunFolder, folder: Path) -> dict[str, Any]:
    if plan.publish is None:
        place = run.place / "output"
        # Of an earlier attempt of this very run.
        remove_committed(place)
        commit_folder(folder, place, OutputManifest(created_at=now()))
        return {"model": None}
    if earlier := _published_before(plan, store):
        return {"model": earlier}
    last = next((line for line in reversed(run.metrics()) if "loss" in line), {})
    version = store.publish_model(
        folder,
        plan.publish.name,
        kind=plan.kind,
        base=plan.base,
        base_revision=plan.base_revision,
        template=plan.template,
        run=plan.run_id,
        version=plan.publish.version,
        llamafactory=plan.llamafactory,
        stage=plan.llamafactory.get("stage", "sft"),
        finetuning_type=plan.llamafactory.get("finetuning_type", "lora"),
        merged=plan.merge,
        metrics={key: value for key, value in last.items() if isinstance(value, int | float)},
    )
    return {"model": version.ref}


def _published_before(plan: TrainPlan, store: Store) -> str | None:
    """The version that an attempt of this very run published just before it was lost."""
    assert plan.publish is not None
    found = [model.ref for model in store.models(plan.publish.name) if _run_of(model) == plan.run_id]
    return found[-1] if found else None


def _run_of(model: ModelVersion) -> str | None:
    return model.manifest.run if model.manifest else None


def model_only(source: Path, target: Path) -> Path:
    """A folder of the model's files, and only those, that can be served as it is. Hard links, no copies.

    Raises:
        RecipeFault: there are no weights among them.
    """
    target.mkdir()
    found = {file for pattern in MODEL_FILES for file in source.glob(pattern)} - {
        source / name for name in _NOT_MODEL_FILES
    }
    if not any(file.match(pattern) for file in found for pattern in _WEIGHTS):
        names = ", ".join(sorted(file.name for file in source.iterdir())) or "nothing"
        raise RecipeFault(f"the training left no weights to publish, only: {names}")
    for file in sorted(found):
        (target / file.name).hardlink_to(file)
    return target


def _replace(folder: Path, others: Path) -> None:
    """Put the files of ``others`` into ``folder``, in the place of those of the same names."""
    for file in others.iterdir():
        (folder / file.name).unlink(missing_ok=True)
        (folder / file.name).hardlink_to(file)


def merged(arguments: dict[str, Any], adapter: Path, scratch: Path) -> Path:
    """The base with the adapter merged in, by LLaMA-Factory's export.

    In a process of its own: DeepSpeed has left its marks in this one, and a merge needs the memory of a whole
    model.

    Raises:
        RecipeFault: the export failed, or what it wrote equals the base.
    """
    target, report = scratch / "merged", scratch / "merge.json"
    task = {"arguments": arguments, "adapter": str(adapter), "export_dir": str(target), "report": str(report)}
    command = [sys.executable, "-m", "train_jobs.engine.merge", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout, flush=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RecipeFault(f"merge: {lines[-1] if lines else f'exit code {done.returncode}'}")
    changed = json.loads(report.read_text())["changed"]
    if changed == 0:
        raise RecipeFault(
            "merge: the merged weights equal the base's, to the last bit: the adapter changes nothing. Train "
            "it longer or with a larger learning_rate or lora_alpha, or leave merge: true out to keep it."
        )
    told = "compared with nothing: no tensor of the base has its name" if changed is None else changed
    print(f"merged: tensors that differ from the base: {told}", flush=True)
    return target
