"""Merges a LoRA adapter into its base with LLaMA-Factory's export, and says what changed.

python -m train_jobs.engine.merge '{"arguments": {...}, "adapter": ..., "export_dir": ..., "report": ...}'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from llamafactory.train.tuner import export_model
from safetensors import safe_open

_PASSED = (
    "template",
    "trust_remote_code",
    "finetuning_type",
    "model_revision",
    "use_fast_tokenizer",
    "resize_vocab",
)
"""Arguments of the training that loading the model needs too."""


def export_arguments(task: dict[str, Any]) -> dict[str, Any]:
    """What ``llamafactory-cli export`` would be given."""
    arguments = task["arguments"]
    # Adapters that the training went on from come first, as they did there.
    adapters = [name for name in [arguments.get("adapter_name_or_path"), task["adapter"]] if name]
    created_anew = arguments.get("create_new_adapter", False)
    return {name: arguments[name] for name in _PASSED if name in arguments} | {
        "model_name_or_path": arguments["model_name_or_path"],
        "adapter_name_or_path": ",".join(adapters) if created_anew else task["adapter"],
        "export_dir": task["export_dir"],
        "export_device": "cpu",
        "infer_dtype": _dtype(arguments["model_name_or_path"]),
    }


def _dtype(model: str) -> str:
    """The base's own precision: a merge in another one would change every weight."""
    known = {"float16", "bfloat16", "float32"}
    config = json.loads((Path(model) / "config.json").read_text())
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return dtype if dtype in known else "auto"


def changed_tensors(merged: Path, base: Path) -> int | None:
    """How many tensors of ``merged`` are not, to the bit, those of the same name in ``base``.

    None where they have no name in common, and nothing can be compared: a base in another format, or one
    whose names another version of transformers has changed.
    """
    known = {name: file for file in sorted(base.glob("*.safetensors")) for name in _names(file)}
    compared = changed = 0
    for file in sorted(merged.glob("*.safetensors")):
        with safe_open(file, framework="pt") as after:
            for name in set(_names(file)) & known.keys():
                with safe_open(known[name], framework="pt") as before:
                    compared += 1
                    changed += not _equal(before.get_tensor(name), after.get_tensor(name))
    return changed if compared else None


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def _equal(before: torch.Tensor, after: torch.Tensor) -> bool:
    return before.shape == after.shape and torch.equal(before.to(after.dtype), after)


def main() -> None:
    """Merge, compare, and write the report."""
    task = json.loads(sys.argv[1])
    export_model(export_arguments(task))
    changed = changed_tensors(Path(task["export_dir"]), Path(task["arguments"]["model_name_or_path"]))
    Path(task["report"]).write_text(json.dumps({"changed": changed}))


if __name__ == "__main__":
    main()
