"""Datasets: committed folders in LLaMA-Factory's own layout, checked before they are registered."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.core.errors import ConfigError, StorageError
from runtime.core.lookup import did_you_mean
from storage import last_known
from storage.cache import node_cache, wanted_of
from storage.cached_folder import CachedFolder
from storage.commit import commit_folder, now, read_manifest, remove_committed
from storage.dataset_files import DatasetSummary, check_files, rows_of
from storage.local_files import write_json
from storage.location import Location, locate, side_by_side
from storage.manifest import DatasetManifest
from storage.names import check_name
from storage.transfer import Progress, copy_file, copy_folder

INFO_NAME = "dataset_info.json"


@dataclass(frozen=True)
class Dataset:
    """``datasets/<name>/``: ``dataset_info.json`` with one entry of that name, and its data files."""

    name: str
    """The folder, and the entry in ``dataset_info.json``."""

    place: Location
    """Where its manifest is."""

    manifest: DatasetManifest

    def info(self) -> dict[str, Any]:
        """The entry in ``dataset_info.json``; file names are relative to the folder that ``fetch`` gives."""
        return dict(self.manifest.info)

    def fetch(self, *, progress: Progress | None = None) -> CachedFolder:
        """LLaMA-Factory's ``dataset_dir`` on this node, for as long as the returned object lives."""
        files = wanted_of(self.manifest.files, self.place / self.manifest.prefix)
        return node_cache().folder(files, label=f"datasets/{self.name}", progress=progress)

    def rows(self, count: int | None = None) -> list[dict[str, Any]]:
        """The first ``count`` rows, or all."""
        with self.fetch() as folder:
            data = folder.path / str(self.manifest.info["file_name"])
            files = sorted(data.iterdir()) if data.is_dir() else [data]
            rows = (dict(row) for file in files for _, row in rows_of(file))
            return list(itertools.islice(rows, count))


class Datasets:
    """The ``datasets/`` of a store."""

    def __init__(self, root: Location) -> None:
        self._root = root

    def all(self) -> list[Dataset]:
        """Every committed dataset, by name."""
        found = side_by_side(lambda name: _read(self._root / name), self._root.folders())
        return [dataset for dataset in found if dataset]

    def get(self, name: str, *, field: str) -> Dataset:
        """The dataset ``name``.

        Raises:
            ConfigError: it is not registered; names what is.
        """
        place = self._root / check_name(name, field=field)
        known = last_known.answer(place.uri, lambda: _plain(_read(place)))
        if known is not None:
            return Dataset(name, place, DatasetManifest(**known))
        names = [dataset.name for dataset in self.all()]
        store = self._root.uri.removesuffix("/datasets")
        raise ConfigError(
            f"{field} is {name!r}, but {store} has no such dataset. {did_you_mean(name, names)}"
        )

    def add_rows(
        self, name: str, rows: Iterable[Mapping[str, Any]], info: Mapping[str, Any] | None
    ) -> Dataset:
        """Register rows: by default alpaca rows, else what ``info`` says in LLaMA-Factory's words.

        Raises:
            ConfigError: there is no row, or one is bad; says which.
            Conflict: the dataset exists.
        """
        lines = [_line(row) for row in rows]
        if not lines:
            raise ConfigError(f"dataset {name}: has no rows. Give at least one.")
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "data.jsonl"
            file.write_text("\n".join(lines) + "\n")
            return self._commit(name, [file], info, None)

    def add(
        self,
        name: str,
        sources: Sequence[str],
        *,
        info: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> Dataset:
        """Register files or a folder, by path or address, checked row by row.

        A folder with a ``dataset_info.json`` is taken as LLaMA-Factory has it; the entry ``name``, or its
        only one, is registered.

        Args:
            sources: json, jsonl, csv or parquet files, all of one kind; or one folder of them.
            info: The entry in ``dataset_info.json``, where the rows alone do not tell.

        Raises:
            ConfigError: names the file, the line, the value and the remedy of the first bad row.
            Conflict: the dataset exists.
        """
        check_name(name, field="dataset name")
        with _brought([locate(source) for source in sources], progress) as files:
            listed = [file for file in files if file.name == INFO_NAME]
            if not listed:
                return self._commit(name, files, info, progress)
            entry = dict(info or _entry_of(listed[0], name))
            return self._commit(name, _named_by(entry, listed[0]), entry, progress)

    def remove(self, name: str) -> None:
        """Remove a dataset. Runs that have begun keep what their nodes' caches hold.

        Raises:
            ConfigError: there is none.
        """
        remove_committed(self.get(name, field="NAME").place)

    def _commit(
        self, name: str, files: list[Path], info: Mapping[str, Any] | None, progress: Progress | None
    ) -> Dataset:
        check_name(name, field="dataset name")
        summary = check_files(files, info)
        with tempfile.TemporaryDirectory(dir=files[0].parent) as scratch:
            folder = Path(scratch) / "dataset"
            _arrange(folder, name, files, summary)
            draft = DatasetManifest(
                created_at=now(),
                format=summary.format,
                rows=summary.rows,
                columns=list(summary.columns),
                info=summary.info,
            )
            manifest = commit_folder(folder, self._root / name, draft, progress=progress)
        return Dataset(name, self._root / name, manifest)


def _read(place: Location) -> Dataset | None:
    manifest = read_manifest(place, DatasetManifest)
    return Dataset(place.name, place, manifest) if manifest else None


def _plain(dataset: Dataset | None) -> dict[str, Any] | None:
    return dataset.manifest.model_dump(mode="json") if dataset else None


@contextmanager
def _brought(sources: Sequence[Location], progress: Progress | None) -> Iterator[list[Path]]:
    """The sources' files on this machine; a folder's are all below it."""
    with tempfile.TemporaryDirectory() as scratch:
        target = locate(scratch)
        for source in sources:
            if source.stat() is not None:
                copy_file(source, target / source.name, progress=progress)
            else:
                copy_folder(source, target, progress=progress)
        try:
            yield sorted(path for path in Path(scratch).rglob("*") if path.is_file())
        except ConfigError as error:
            # People know their files by name, and not by where they were brought.
            raise ConfigError(str(error).replace(f"{scratch}/", "")) from None


def _entry_of(info_file: Path, name: str) -> dict[str, Any]:
    """The entry that a folder of the wild has for its data."""
    try:
        entries = json.loads(info_file.read_text())
    except ValueError as error:
        raise ConfigError(f"dataset {name}: {INFO_NAME} is not valid JSON: {error}. Repair it.") from None
    if name in entries:
        return dict(entries[name])
    if len(entries) == 1:
        return dict(next(iter(entries.values())))
    raise ConfigError(
        f"dataset {name}: {INFO_NAME} has no entry of that name, but {', '.join(entries) or 'none'}. "
        "Register it under one of these names."
    )


def _named_by(entry: Mapping[str, Any], info_file: Path) -> list[Path]:
    """The data files that an entry of a ``dataset_info.json`` means."""
    file_name = entry.get("file_name")
    if not isinstance(file_name, str):
        raise ConfigError(
            f"{INFO_NAME}: the entry has no file_name (it has {', '.join(entry) or 'nothing'}). Only data "
            "that lies in files can be registered: download it, and add the files."
        )
    data = info_file.parent / file_name
    if data.is_dir():
        return sorted(path for path in data.iterdir() if path.is_file())
    if not data.is_file():
        raise ConfigError(f"{INFO_NAME}: file_name is {file_name!r}, which is not in the folder.")
    return [data]


def _arrange(folder: Path, name: str, files: Sequence[Path], summary: DatasetSummary) -> None:
    """Lay the files as LLaMA-Factory wants them: beside ``dataset_info.json``, several in a sub-folder."""
    data = folder / str(summary.info["file_name"])
    (data if len(files) > 1 else folder).mkdir(parents=True)
    for file in files:
        target = data / file.name if len(files) > 1 else data
        if target.exists():
            raise StorageError(f"dataset {name}: two files have the name {file.name}. Rename one of them.")
        try:
            target.hardlink_to(file)
        except OSError:
            shutil.copyfile(file, target)
    write_json(folder / INFO_NAME, {name: summary.info})


def _line(row: Mapping[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half a surrogate pair: as an escape it can be written, and the check says which row has it.
        return json.dumps(row)
    return text
