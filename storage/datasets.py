"""A dataset's folder: LLaMA-Factory's own layout, so that a dataset of the wild is copied in as it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.core.errors import ConfigError
from storage.commit import new_folder, write_json


@dataclass(frozen=True)
class Dataset:
    """``datasets/<name>/``: ``dataset_info.json`` with one entry of that name, and its data file."""

    name: str
    """The folder, and the entry in ``dataset_info.json``."""

    path: Path
    """LLaMA-Factory's ``dataset_dir``."""

    def info(self) -> dict[str, Any]:
        """The entry in ``dataset_info.json``."""
        try:
            entries = json.loads((self.path / "dataset_info.json").read_text())
            return dict(entries[self.name])
        except (OSError, ValueError) as error:
            raise ConfigError(f"dataset {self.name}: {self.path}/dataset_info.json: {error}.") from None
        except KeyError:
            raise ConfigError(
                f"dataset {self.name}: {self.path}/dataset_info.json has no entry of that name, but "
                f"{', '.join(entries) or 'none'}. Rename the folder or the entry."
            ) from None


def write_dataset(final: Path, rows: Iterable[Mapping[str, Any]], info: Mapping[str, Any] | None) -> Dataset:
    """Write ``rows`` as JSON lines with the LLaMA-Factory entry that describes them, all or nothing.

    Args:
        final: The dataset's folder, which must not exist.
        rows: By default alpaca rows: ``instruction``, ``input`` (may be absent), ``output``.
        info: More keys for the entry (``formatting``, ``columns``, ``tags``), in LLaMA-Factory's words.

    Raises:
        ConfigError: there is no row.
        StorageError: the dataset exists already.
    """
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    if not lines:
        raise ConfigError(f"dataset {final.name}: has no rows. Give at least one.")
    with new_folder(final) as scratch:
        (scratch / "data.jsonl").write_text("\n".join(lines) + "\n")
        entry = {"file_name": "data.jsonl", **(info or {})}
        write_json(scratch / "dataset_info.json", {final.name: entry})
    return Dataset(name=final.name, path=final)
