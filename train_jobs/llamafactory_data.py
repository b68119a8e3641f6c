"""The datasets that a LLaMA-Factory file names: those of its ``dataset_info.json`` go into the store."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.core.errors import ConfigError
from runtime.core.lookup import did_you_mean
from storage.dataset_files import check_files
from storage.datasets import INFO_NAME, Dataset
from storage.store import Store

_ELSEWHERE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")


@dataclass(frozen=True)
class NewDataset:
    """Checked files that are not in the store yet."""

    files: list[Path]
    info: dict[str, Any]
    """Their entry, without ``file_name``."""
    entry: dict[str, Any]
    """Their entry as the store will have it."""


@dataclass
class Found:
    """What the names in a file mean in the store."""

    names: dict[str, str] = field(default_factory=dict)
    """By the name in the file, the name in the store."""
    new: dict[str, NewDataset] = field(default_factory=dict)
    """By the name in the store, what has to be registered under it."""
    notes: list[str] = field(default_factory=list)


def legal_name(text: str) -> str:
    """``text`` made a name of the store: lower-case, and nothing but letters, digits, ``.``, ``_`` and
    ``-``."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:63].strip("-._") or "run"


def find(names: list[str], dataset_dir: str | None, origin: Path, store: Store) -> Found:
    """Each dataset from the file's ``dataset_dir``, as LLaMA-Factory would take it, else from the store.

    Nothing is registered here.

    Args:
        names: As the file has them.
        dataset_dir: As the file has it; None for LLaMA-Factory's default, ``data``.
        origin: The file. Its folder is looked in after the current one.

    Raises:
        ConfigError: a dataset is in neither place, lies on a hub, or holds a bad row.
    """
    folder, entries = _entries(dataset_dir, origin)
    registered = {dataset.name: dataset for dataset in store.datasets()}
    found = Found()
    for name in names:
        if name in entries and folder is not None:
            _take(name, entries[name], folder, registered, found)
        elif name in registered:
            found.names[name] = name
        else:
            where = f"{folder / INFO_NAME}" if folder else f"there is no {dataset_dir or 'data'}/{INFO_NAME}"
            raise ConfigError(
                f"dataset is {name!r}, which is neither in {store.uri} nor in a dataset_info.json ({where}). "
                f"{did_you_mean(name, [*registered, *entries])} Register it with: "
                f"tandem datasets add {name} FILE."
            )
    return found


def _entries(dataset_dir: str | None, origin: Path) -> tuple[Path | None, Mapping[str, Any]]:
    named = dataset_dir or "data"
    if named == "ONLINE" or named.startswith("REMOTE:"):
        raise ConfigError(
            f"dataset_dir is {named!r}: data that lies on a hub is not read during a run. Download it, then "
            "register it: tandem datasets add NAME FILE."
        )
    for folder in (Path(named).expanduser(), origin.parent / named):
        if (folder / INFO_NAME).is_file():
            try:
                entries = json.loads((folder / INFO_NAME).read_text())
            except ValueError as error:
                raise ConfigError(f"{folder / INFO_NAME} is not valid JSON: {error}. Repair it.") from None
            return folder.absolute(), entries
    if dataset_dir is not None:
        raise ConfigError(
            f"dataset_dir is {dataset_dir!r}, but no {INFO_NAME} is in it, taken from {Path.cwd()} or from "
            f"{origin.parent}. Correct the path."
        )
    return None, {}


def _take(
    name: str, entry: Mapping[str, Any], folder: Path, registered: Mapping[str, Dataset], found: Found
) -> None:
    files, info = _files(name, entry, folder), {k: v for k, v in entry.items() if k != "file_name"}
    try:
        summary = check_files(files, info)
    except ConfigError as error:
        raise ConfigError(f"dataset {name}: {error}") from None
    # LLaMA-Factory reads a folder's files under a name of the store's own.
    new = NewDataset(files, info, summary.info)
    digest = _content(new)
    legal = legal_name(name)
    for candidate in (legal, f"{legal[:54]}-{digest[:8]}"):
        known = registered.get(candidate)
        if known is None:
            found.new[candidate] = new
            found.notes.append(
                f"dataset {name} of {folder} goes into the store"
                + ("." if candidate == name else f" as {candidate}.")
            )
        elif _known_content(known) != digest:
            continue
        found.names[name] = candidate
        return
    raise ConfigError(f"dataset {name}: the store has another one under {candidate}. Rename it in {folder}.")


def _files(name: str, entry: Mapping[str, Any], folder: Path) -> list[Path]:
    elsewhere = next((word for word in _ELSEWHERE if entry.get(word)), None)
    file_name = entry.get("file_name")
    if elsewhere or not isinstance(file_name, str):
        lies = f"{elsewhere} is {entry[elsewhere]!r}" if elsewhere else "it has no file_name"
        raise ConfigError(
            f"dataset {name}: {lies} in {folder / INFO_NAME}, and only data in files can be used. Download "
            f"it, then register it: tandem datasets add {name} FILE."
        )
    data = folder / file_name
    files = sorted(file for file in data.iterdir() if file.is_file()) if data.is_dir() else [data]
    if not files or not files[0].is_file():
        raise ConfigError(
            f"dataset {name}: file_name is {file_name!r}, and there is no such file in {folder}."
        )
    return files


def _content(new: NewDataset) -> str:
    return _digest(new.entry, {file.name: _sha256(file) for file in new.files})


def _known_content(dataset: Dataset) -> str:
    files = {Path(file.path).name: file.sha256 for file in dataset.manifest.files}
    files.pop(INFO_NAME, None)
    return _digest(dataset.info(), files)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _digest(entry: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """A name for files and how they are read: equal where both are."""
    return hashlib.sha256(json.dumps([entry, files], sort_keys=True).encode()).hexdigest()
