"""Whether local data files are a LLaMA-Factory dataset: checked row by row before they are registered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.core.errors import ConfigError
from storage.dataset_checks import NotText, check_row
from storage.dataset_columns import Columns
from storage.dataset_info import DatasetFormat, DatasetInfo, read_info, resolve_format
from storage.dataset_rows import Row, read_rows, rows_of

__all__ = ["DATA_FOLDER", "DatasetSummary", "check_files", "rows_of"]

DATA_FOLDER = "data"
"""The sub-folder that holds the data files when there are several, and nothing else."""

_CSV_REMEDY = (
    " In csv, an empty cell and words such as None, NA and null are nothing, and a column of numbers is "
    "numbers, quoted or not: use jsonl to keep them text."
)


@dataclass(frozen=True)
class DatasetSummary:
    """What checked files hold."""

    files: tuple[str, ...]
    """Where each file belongs, relative to the dataset's folder, in the order given."""

    rows: int
    """Rows of all files together; LLaMA-Factory loads as many."""

    format: str
    """LLaMA-Factory's ``formatting``: ``alpaca``, ``sharegpt`` or ``openai`` (only when asked for)."""

    columns: tuple[str, ...]
    """Names of all columns that occur, in the order of their first appearance."""

    info: dict[str, Any]
    """The entry of ``dataset_info.json``, ready to be written."""


def check_files(files: Sequence[Path], info: Mapping[str, Any] | None = None) -> DatasetSummary:
    """Check every row of ``files`` against the format, and say what LLaMA-Factory needs to know of them.

    Args:
        files: json, jsonl, csv, parquet or (for pretraining) txt files, all of one suffix.
        info: What is known of the format, in the words of ``dataset_info.json``. What it leaves out is
            detected from the first row: with ``conversations`` or ``messages`` sharegpt, with
            ``instruction`` alpaca, with ``text`` as the only text pretraining.

    Raises:
        ConfigError: at the first row that LLaMA-Factory would drop or fail on; names file, line, field,
            value and remedy. Also for files that cannot be read or put together, and unknown words in
            ``info``.
    """
    paths = [Path(file) for file in files]
    _check_names(paths)
    given = read_info(info)
    file_name = paths[0].name if len(paths) == 1 else DATA_FOLDER
    if given.file_name not in (None, file_name):
        raise ConfigError(
            f"file_name is {given.file_name!r}, but the data will be at {file_name!r}. Leave it out."
        )
    form: DatasetFormat | None = None
    tables: list[Columns] = []
    rows = 0
    for path in paths:
        table, form, count = _check_file(path, given, form)
        if tables:
            table.check_same(tables[0])
        tables.append(table)
        rows += count
    assert form is not None
    names = dict.fromkeys(name for table in tables for name in table.names)
    if given.columns:
        _check_used(form, names)
    entry = {"file_name": file_name, **form.entry(names)}
    if given.num_samples is not None:
        entry["num_samples"] = given.num_samples
    return DatasetSummary(
        files=tuple(path.name if len(paths) == 1 else f"{DATA_FOLDER}/{path.name}" for path in paths),
        rows=rows,
        format=form.formatting,
        columns=tuple(names),
        info=entry,
    )


def _check_names(files: Sequence[Path]) -> None:
    if not files:
        raise ConfigError("no data files are given. Name at least one.")
    suffixes = sorted({file.suffix for file in files})
    if len(suffixes) > 1:
        raise ConfigError(
            f"the files have different suffixes ({', '.join(suffixes)}), but LLaMA-Factory reads a folder of "
            "one kind. Convert them to one, or register a dataset for each."
        )
    for name, count in Counter(file.name for file in files).items():
        if count > 1:
            raise ConfigError(f"{count} files are called {name}, but go into one folder. Rename all but one.")
        # Here `datasets` takes a path for a pattern.
        if set(name) & set("*?[") or name == "dataset_info.json":
            raise ConfigError(f"{name} cannot be the name of a data file. Rename it: letters, digits, . _ -")


def _check_file(
    file: Path, given: DatasetInfo, form: DatasetFormat | None
) -> tuple[Columns, DatasetFormat, int]:
    """Its columns, the format (detected where ``form`` is None), and how many rows it has."""
    rows = read_rows(file)
    table = Columns(file)
    count = 0
    for row in rows:
        form = form or _resolved(file, row, given)
        try:
            check_row(row.values, form)
            table.add(row)
        except ConfigError as error:
            remedy = _CSV_REMEDY if isinstance(error, NotText) and file.suffix == ".csv" else ""
            raise ConfigError(f"{file}, {row.place}: {error}{remedy}") from None
        count += 1
    if form is None or not count:
        raise ConfigError(f"{file}: has no rows. Give at least one, or leave the file out.")
    table.check_texts(form.text_paths())
    return table, form, count


def _resolved(file: Path, row: Row, given: DatasetInfo) -> DatasetFormat:
    try:
        return resolve_format(given, row.values)
    except ConfigError as error:
        remedy = " A csv file begins with a line of column names." if file.suffix == ".csv" else ""
        raise ConfigError(f"{file}, {row.place}: {error}{remedy}") from None


def _check_used(form: DatasetFormat, names: Mapping[str, None]) -> None:
    for word, name in form.columns.items():
        if name not in names:
            raise ConfigError(
                f"columns.{word} is {name!r}, but no row has such a column, and LLaMA-Factory fails on it. "
                f"Name another, or leave {word} out. The columns: {', '.join(names)}."
            )
