"""Small LoRA adapters in PEFT's file format, written by hand: random weights, large enough to be heard."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Shapes = Mapping[str, Sequence[int]]


def write_adapter(
    folder: Path, modules: Shapes, *, r: int = 4, seed: int = 0, scale: float = 1.0, **config: Any
) -> Path:
    """An adapter over ``modules`` (name to ``[out, in]``), with more fields of its config."""
    rng = random.Random(seed)
    tensors: dict[str, tuple[list[int], list[float]]] = {}
    for name, (wide, narrow) in modules.items():
        for factor, shape in (("A", [r, narrow]), ("B", [wide, r])):
            values = [rng.gauss(0, scale) for _ in range(math.prod(shape))]
            tensors[f"base_model.model.{name}.lora_{factor}.weight"] = (shape, values)
    write_tensors(folder / "adapter_model.safetensors", tensors)
    written = {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": r,
        "target_modules": sorted({name.rpartition(".")[2] for name in modules}),
        # As LLaMA-Factory leaves it: a path of the machine that trained.
        "base_model_name_or_path": "/no/such/folder/on/this/machine",
        "bias": "none",
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(written))
    return folder


def write_tensors(file: Path, tensors: Mapping[str, tuple[list[int], list[float]]]) -> None:
    """A safetensors file of 32-bit floats."""
    file.parent.mkdir(parents=True, exist_ok=True)
    header, body = {}, bytearray()
    for name, (shape, values) in tensors.items():
        begin = len(body)
        body += struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(body)]}
    head = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(head)) + head + body)


def shapes_of(folder: Path, ending: str) -> dict[str, list[int]]:
    """Modules of a model whose name ends so, with the shapes of their weights."""
    with (folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    suffix = f"{ending}.weight"
    return {n.removesuffix(".weight"): t["shape"] for n, t in header.items() if n.endswith(suffix)}
