"""Rows of one local data file, as LLaMA-Factory's loader (``datasets``) reads them, each with its place."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from runtime.core.errors import ConfigError

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")
"""LLaMA-Factory's own list (``FILEEXT2TYPE``) without ``.arrow``; like there, lower case only."""

# The loader reads a file in pieces and takes the columns' types from the first: datasets 4.0.0,
# packaged_modules/json and csv, `chunksize`.
_JSON_PIECE_BYTES = 10 << 20
_CSV_PIECE_ROWS = 10_000
_PARQUET_BATCH_ROWS = 1_000

_BYTE_ORDER_MARK = "\ufeff"
_BLANK = " \t\r\n"
_NO_SPACE = re.compile(r"[^ \t\r\n]")


class Row(NamedTuple):
    """One row of a file."""

    place: str
    """Counted from 1: ``line 3`` (jsonl, csv, txt), ``row 3 (line 7)`` (json array), ``row 3`` (parquet)."""

    values: Mapping[str, Any]
    """Column to value, with the types that the loader gives them."""

    piece: int
    """Which of the loader's pieces it is in, from 0."""


def rows_of(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Place and values of each row of ``file``, in order; see ``read_rows``."""
    return ((row.place, row.values) for row in read_rows(file))


def read_rows(file: Path) -> Iterator[Row]:
    """The rows of ``file``, in constant memory; only a json array is loaded whole.

    In csv, cells are what the loader makes of them: a column of numbers is numbers, and empty cells and
    words such as ``NA`` and ``None`` are None.

    Raises:
        ConfigError: the file is missing, empty or of an unknown kind, or a row cannot be read; names the
            file, the line, and for json the column.
    """
    _check_kind(file)
    if file.suffix == ".csv":
        return _csv_rows(file)
    if file.suffix == ".parquet":
        return _parquet_rows(file)
    if file.suffix == ".txt":
        return _text_rows(file)
    return _json_lines(file) if is_json_lines(file) else _json_array(file)


def is_json_lines(file: Path) -> bool:
    """Whether ``file`` holds one JSON object per line. The suffix does not tell: the content does."""
    if file.suffix not in (".json", ".jsonl"):
        return False
    with file.open("rb") as stream:
        head = stream.read(1 << 16)
    return not head.removeprefix(_BYTE_ORDER_MARK.encode()).lstrip().startswith(b"[")


def _check_kind(file: Path) -> None:
    if file.is_dir():
        raise ConfigError(f"{file}: is a folder. Name the data files in it.")
    if not file.is_file():
        raise ConfigError(f"{file}: does not exist. Check the path; it is taken from {Path.cwd()}.")
    if file.suffix not in SUFFIXES:
        lower = file.suffix.lower()
        remedy = f"Rename it to {lower}" if lower in SUFFIXES else "Convert it to one of these, unpacked"
        raise ConfigError(
            f"{file}: its suffix is {file.suffix!r}, but LLaMA-Factory tells a file's kind by the suffix: "
            f"{', '.join(SUFFIXES)}. {remedy}."
        )
    if file.stat().st_size == 0:
        raise ConfigError(f"{file}: is empty (0 bytes). Give a file with rows.")


def _lines(file: Path) -> Iterator[tuple[int, int, str]]:
    """Number from 1, offset in bytes, and text of each line, with its line end."""
    offset = 0
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise ConfigError(
                    f"{file}, line {number}, byte {error.start + 1}: 0x{line[error.start]:02x} is not UTF-8. "
                    "Convert the file, for example: iconv -f LATIN1 -t UTF-8."
                ) from None
            yield number, offset, text
            offset += len(line)


def _refuse_byte_order_mark(file: Path) -> NoReturn:
    raise ConfigError(
        f"{file}: begins with a byte order mark, which LLaMA-Factory's loader does not accept in this kind "
        "of file. Save it as UTF-8 without one, for example: sed -i '1s/^\\xEF\\xBB\\xBF//'."
    )


# JSON


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} occurs twice in one object, keep one")
    return made


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON, write null")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)


def _decoded(text: str, position: int) -> tuple[Any, int]:
    """The value that begins at ``position``, and where it ends."""
    try:
        return _DECODER.raw_decode(text, position)
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise json.JSONDecodeError(str(error), text, position) from None


def _skip_space(text: str, position: int) -> int:
    found = _NO_SPACE.search(text, position)
    return found.start() if found else len(text)


def _not_json(file: Path, place: str, error: json.JSONDecodeError) -> ConfigError:
    near = shown_text(error.doc[max(error.pos - 20, 0) : error.pos + 60])
    return ConfigError(f"{file}, {place}, column {error.colno}: is not JSON: {error.msg}. It is at: {near}")


def _json_lines(file: Path) -> Iterator[Row]:
    begin = piece = 0
    for number, offset, text in _lines(file):
        # pyarrow, which reads these, skips a byte order mark and blank lines.
        line = (text.removeprefix(_BYTE_ORDER_MARK) if number == 1 else text).rstrip(_BLANK)
        if offset - begin > _JSON_PIECE_BYTES:
            begin, piece = offset, piece + 1
        if not line:
            continue
        place = f"line {number}"
        try:
            value, end = _decoded(line, _skip_space(line, 0))
            if (rest := _skip_space(line, end)) != len(line):
                raise json.JSONDecodeError("a line holds one whole object and nothing else", line, rest)
        except json.JSONDecodeError as error:
            raise _not_json(file, place, error) from None
        yield Row(place, _object(file, place, value, line), piece)


def _json_array(file: Path) -> Iterator[Row]:
    text = "".join(line for _, _, line in _lines(file))
    if text.startswith(_BYTE_ORDER_MARK):
        _refuse_byte_order_mark(file)
    counted_to, line = 0, 1
    try:
        for index, (start, end, value) in enumerate(_elements(text), 1):
            line, counted_to = line + text.count("\n", counted_to, start), start
            place = f"row {index} (line {line})"
            yield Row(place, _object(file, place, value, text[start:end]), 0)
    except json.JSONDecodeError as error:
        raise _not_json(file, f"line {error.lineno}", error) from None


def _elements(text: str) -> Iterator[tuple[int, int, Any]]:
    """Begin, end and value of each element of the JSON array ``text``."""
    position = _skip_space(text, _skip_space(text, 0) + 1)
    while not text.startswith("]", position):
        value, end = _decoded(text, position)
        yield position, end, value
        position = _skip_space(text, end)
        if text.startswith(",", position):
            position = _skip_space(text, position + 1)
        elif not text.startswith("]", position):
            raise json.JSONDecodeError("a comma or ] must follow the object", text, position)
    if (rest := _skip_space(text, position + 1)) != len(text):
        raise json.JSONDecodeError("something follows the array", text, rest)


def _object(file: Path, place: str, value: Any, source: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(
            f"{file}, {place}: is {shown(value)}, but a row is an object: {{column: value, ...}}."
        )
    if "\\u" in source:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            # In lines the loader fails, in an array it takes the whole text for empty.
            raise ConfigError(
                f"{file}, {place}: holds one half of a \\ud... pair, which is no character: probably an "
                "emoji cut in two. Remove it."
            ) from None
    return value


# csv


def _csv_rows(file: Path) -> Iterator[Row]:
    import pandas

    records = _csv_records(file)
    _, header = next(records, (0, []))
    text_columns: list[str] = []
    piece = 0
    while batch := list(islice(records, _CSV_PIECE_ROWS)):
        buffer = io.StringIO()
        csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows([header, *(cells for _, cells in batch)])
        buffer.seek(0)
        # The loader uses pandas with these defaults, and casts later pieces to the first one's text.
        frame = pandas.read_csv(buffer, dtype=dict.fromkeys(text_columns, str))  # type: ignore[arg-type]
        if piece == 0:
            text_columns = [str(name) for name in frame if pandas.api.types.is_string_dtype(frame[name])]
        rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
        for (line, _), values in zip(batch, rows, strict=True):
            yield Row(f"line {line}", {str(name): value for name, value in values.items()}, piece)
        piece += 1


def _csv_records(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The line on which each record begins, and its cells; the header first, blank lines left out."""
    # Python's limit of 128 KiB for one cell is less than a long text; pandas has none. It holds for the
    # whole process, where nothing of ours relies on it.
    csv.field_size_limit(2**31 - 1)
    texts = (text.removeprefix(_BYTE_ORDER_MARK) if number == 1 else text for number, _, text in _lines(file))
    reader = csv.reader(texts, strict=True)
    header: list[str] = []
    while True:
        begin = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ConfigError(
                f"{file}, line {begin}: is not csv: {error}. Put quotes around the whole cell and double "
                "the quotes inside it."
            ) from None
        if not cells or (len(cells) == 1 and not cells[0].strip(_BLANK)):
            continue
        header = header or _checked_header(file, begin, cells)
        if len(cells) != len(header):
            raise ConfigError(
                f"{file}, line {begin}: has {len(cells)} cells, but the header has {len(header)} "
                f"({', '.join(header)}): {shown(cells)}. Put quotes around cells that hold commas or line "
                "ends, and write empty cells where nothing is."
            )
        yield begin, cells


def _checked_header(file: Path, line: int, cells: list[str]) -> list[str]:
    twice = next((name for name in cells if name and cells.count(name) > 1), None)
    if twice:
        raise ConfigError(f"{file}, line {line}: the header names {twice!r} twice. Rename one.")
    return cells


# parquet and plain text


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            number = 0
            for batch in parquet.iter_batches(batch_size=_PARQUET_BATCH_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"row {number}", values, 0)
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{file}: is not a whole parquet file: {error}. Write it again.") from None


def _text_rows(file: Path) -> Iterator[Row]:
    for number, _, text in _lines(file):
        if number == 1 and text.startswith(_BYTE_ORDER_MARK):
            _refuse_byte_order_mark(file)
        # The loader ends lines at a lone carriage return too.
        for part in text.removesuffix("\n").removesuffix("\r").split("\r"):
            yield Row(f"line {number}", {"text": part}, 0)


def shown(value: Any) -> str:
    """``value`` as JSON, cut to 60 characters for a message."""
    return shown_text(json.dumps(value, ensure_ascii=False, default=str))


def shown_text(text: str) -> str:
    """``text`` without line ends, cut to 60 characters for a message."""
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."
