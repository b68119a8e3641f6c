"""What LLaMA-Factory's loader makes of a file's columns: one type each, fixed by the file's first piece."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from runtime.core.errors import ConfigError
from storage.dataset_rows import Row, is_json_lines, shown

# What pyarrow's JSON reader takes for a timestamp when every text of a column looks like it.
_DATE = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d(:\d\d(:\d\d)?)?(Z|[+-]\d\d(:?\d\d)?)?)?")
_LONGEST_DATE = len("2023-01-01T10:11:12+02:00")
_WIDER = {frozenset(("integer", "number")): "number", frozenset(("date", "text")): "text"}


class Columns:
    """The columns of one file, and of lists and objects in them, with the kind of their values.

    Source: datasets 4.0.0: every piece is cast to the schema of the first, which must know all columns;
    a column that was all null cannot hold anything later.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.names: dict[str, None] = {}
        self._kinds: dict[str, str | None] = {}
        self._has_dates = is_json_lines(file)
        self._typed = file.suffix == ".parquet"
        if self._typed:
            self._kinds = _parquet_kinds(file)

    def add(self, row: Row) -> None:
        """Take note of ``row``.

        Raises:
            ConfigError: the loader would fail: a value is of another kind than those before, or the first
                piece of the file does not have the column. Does not name file and line.
        """
        self.names.update(dict.fromkeys(row.values))
        if self._typed:
            return
        for path, value in _values_in(row.values):
            kind = self._kind(value)
            known = path in self._kinds
            before = self._kinds.get(path)
            if known and (kind is None or kind == before):
                continue
            after = kind if before is None else _WIDER.get(frozenset((before, str(kind))))
            if after is None and known:
                raise ConfigError(
                    f"{path} is {shown(value)} ({kind}), but {before} in the rows before: LLaMA-Factory's "
                    "loader takes one type for a column. Write the same kind of value in every row, or null."
                )
            if row.piece and (not known or after != before):
                raise ConfigError(
                    f"{path} is {shown(value)} ({kind or 'null'}), but {before or 'null or absent'} in the "
                    "first piece of the file (10 MB of json lines, 10000 rows of csv), from which "
                    "LLaMA-Factory's loader takes the types. Move a row like this one to the top."
                )
            self._kinds[path] = after

    def check_texts(self, paths: Iterable[str]) -> None:
        """Refuse columns of text that the loader would turn into timestamps.

        Raises:
            ConfigError: all values of one of ``paths`` look like dates; names the file.
        """
        for path in paths:
            if self._kinds.get(path) == "date":
                raise ConfigError(
                    f"{self.file}: every {path} is a date, and LLaMA-Factory's loader turns such a column "
                    "of json lines into timestamps, which are not text. Write the rows as one array in a "
                    ".json file, or as parquet."
                )

    def check_same(self, first: Columns) -> None:
        """Refuse files that the loader could not put into one table, whichever it opens first.

        Raises:
            ConfigError: this file's columns or their kinds differ from those of ``first``.
        """
        for path in [*first._kinds, *self._kinds]:
            theirs, ours = _said(first._kinds, path), _said(self._kinds, path)
            if theirs != ours:
                raise ConfigError(
                    f"{self.file}: {path} is {ours}, but in {first.file} it is {theirs}. LLaMA-Factory's "
                    "loader takes the columns from whichever file the folder lists first. Give all files the "
                    "same columns, or put all rows into one file."
                )

    def _kind(self, value: Any) -> str | None:
        if value is None:
            return None
        if isinstance(value, str):
            is_date = self._has_dates and len(value) <= _LONGEST_DATE and _DATE.fullmatch(value)
            return "date" if is_date else "text"
        if isinstance(value, bool):
            return "true or false"
        if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
            return "integer"
        names = {float: "number", list: "list", dict: "object"}
        return names.get(type(value), type(value).__name__)


def _values_in(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value below ``value`` with its path, such as ``conversations[].value``."""
    if isinstance(value, Mapping):
        named = ((f"{path}.{name}" if path else str(name), inner) for name, inner in value.items())
    else:
        named = ((f"{path}[]", inner) for inner in value)
    for name, inner in named:
        yield name, inner
        if isinstance(inner, Mapping | list):
            yield from _values_in(inner, name)


def _said(kinds: Mapping[str, str | None], path: str) -> str:
    return (kinds[path] or "always null") if path in kinds else "absent"


def _parquet_kinds(file: Path) -> dict[str, str | None]:
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(file)
    except (pyarrow.ArrowException, OSError):
        return {}  # reading the rows says what is wrong with the file
    return {field.name: str(field.type).replace("large_", "") for field in schema}
