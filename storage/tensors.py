"""What tensors a model's folder holds: names, types and shapes, from its safetensors files' headers alone.

Source of the format: https://huggingface.co/docs/safetensors (8 bytes of length, then JSON, then the data).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from runtime.core.errors import StorageError
from storage.location import Location, side_by_side

_ENDING = ".safetensors"
_INDEX = f"{_ENDING}.index.json"
_FIRST_READ_BYTES = 128 << 10
"""Most headers are shorter, so that one read is enough."""
_LONGEST_HEADER_BYTES = 100_000_000
"""The format's own limit."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a model, without its values."""

    name: str
    dtype: str
    """As safetensors writes it: ``BF16``, ``F8_E4M3``, ``I32``."""

    shape: tuple[int, ...]
    size_bytes: int

    @property
    def elements(self) -> int:
        """Numbers stored; a packed one may hold several parameters."""
        return math.prod(self.shape)


def tensors_in(folder: Location) -> list[Tensor]:
    """Every tensor of the model in ``folder``, by name. Headers are read, weights are not.

    Raises:
        StorageError: it has no safetensors files, or a header cannot be read; names the file.
    """
    names = _files(folder)
    if not names:
        raise StorageError(
            f"{folder}: holds no {_ENDING} file, so what it consists of is not known without loading it. "
            "Save the model again: model.save_pretrained(folder)."
        )
    found = side_by_side(lambda name: _read_header(folder / name), sorted(names))
    return sorted((tensor for tensors in found for tensor in tensors), key=lambda tensor: tensor.name)


def _files(folder: Location) -> set[str]:
    """The files that make up the model: a folder may hold it twice, in another layout."""
    present = {folder.relative(entry) for entry in folder.names()[1]}
    for index in sorted(name for name in present if name.endswith(_INDEX)):
        return set(((folder / index).read_json() or {})["weight_map"].values())
    files = {name for name in present if name.endswith(_ENDING)}
    return {name for name in files if name.startswith(("model", "adapter_model"))} or files


def _read_header(file: Location) -> list[Tensor]:
    begin = file.read_range(0, _FIRST_READ_BYTES)
    length = int.from_bytes(begin[:8], "little")
    if len(begin) < 8 or not 2 <= length <= _LONGEST_HEADER_BYTES:
        raise StorageError(f"{file}: is no safetensors file: its header would be {length} bytes long.")
    text = begin[8 : 8 + length]
    if len(text) < length:
        text += file.read_range(len(begin), length - len(text))
    try:
        entries: dict[str, Any] = json.loads(text)
        return [_tensor(name, entry) for name, entry in entries.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{file}: its header cannot be read ({type(error).__name__}: {error}). Copy the model again."
        ) from None


def _tensor(name: str, entry: dict[str, Any]) -> Tensor:
    begin, end = entry["data_offsets"]
    return Tensor(
        name, str(entry["dtype"]), tuple(int(size) for size in entry["shape"]), int(end) - int(begin)
    )
