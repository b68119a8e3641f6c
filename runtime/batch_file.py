"""OpenAI's batch files: requests, checked line by line, and answers, appended line by line.

Source: https://platform.openai.com/docs/api-reference/batch
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from pydantic import Field, ValidationError

from runtime.core.config import ConfigModel
from runtime.core.errors import ConfigError, NoSpace
from storage.location import Location, locate
from storage.transfer import copy_file

_MOST_FAULTS = 10
"""Faults in one message: a file that is wrong is mostly wrong in every line."""
_SAVE_S = 30.0


class BatchRequest(ConfigModel):
    """One line of the input."""

    custom_id: str = Field(min_length=1)
    """Names the answer; unique in the file."""

    method: Literal["POST"] = "POST"
    """Always POST."""

    url: str = Field(pattern=r"^/[A-Za-z0-9][A-Za-z0-9/_.-]*$")
    """A route of the server, such as /v1/chat/completions."""

    body: dict[str, Any]
    """What is sent there."""


@dataclass(frozen=True)
class Checked:
    """What a look at the whole input found."""

    custom_ids: frozenset[str]
    models: dict[str, int]
    """The first line that asks for each model."""


def check_input(file: Path, origin: str, model: str | None) -> Checked:
    """Read every line and refuse the file if one cannot work.

    Args:
        file: The input.
        origin: What the user calls it, for messages.
        model: Fills ``body.model`` where a line has none.

    Raises:
        ConfigError: names line, field, why and remedy of each fault, up to ten.
    """
    seen: dict[str, int] = {}
    models: dict[str, int] = {}
    faults: list[str] = []
    for number, line in _lines(file):
        try:
            request = parse_request(line, model)
            if (first := seen.setdefault(request.custom_id, number)) != number:
                raise ConfigError(
                    f"custom_id: is {request.custom_id!r}, as in line {first}. Give each line its own."
                )
            models.setdefault(request.body["model"], number)
        except ConfigError as error:
            faults += [f"line {number}, {fault}" for fault in str(error).splitlines()]
            if len(faults) >= _MOST_FAULTS:
                faults.append("...")
                break
    if faults:
        raise ConfigError("\n  ".join([f"{origin}: cannot be used as a batch. Nothing was sent.", *faults]))
    if not seen:
        raise ConfigError(f"{origin}: holds no request. Write one a line; see examples/batch/chat.jsonl.")
    return Checked(frozenset(seen), models)


def requests_in(file: Path, model: str | None) -> Iterator[BatchRequest]:
    """The requests of a checked input, read as they are taken: the file may be larger than the memory."""
    return (parse_request(line, model) for _, line in _lines(file))


def parse_request(line: bytes, model: str | None) -> BatchRequest:
    """The request in a line, ``body.model`` filled in.

    Raises:
        ConfigError: one fault a line, each beginning with its field.
    """
    try:
        data = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"(whole line): is no JSON ({error}). Write one request a line.") from None
    if isinstance(data, dict) and isinstance(data.get("body"), dict) and model is not None:
        data["body"].setdefault("model", model)
    try:
        request = BatchRequest.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(map(_fault, error.errors()))) from None
    name = request.body.get("model")
    if not (isinstance(name, str) and name):
        raise ConfigError(f"body.model: is {name!r}. Name a served model there, or for all lines: --model.")
    if request.body.get("stream"):
        raise ConfigError("body.stream: is true, but an answer in a file comes whole. Leave it out.")
    return request


def _fault(item: Any) -> str:
    field = ".".join(map(str, item["loc"])) or "(whole line)"
    described = BatchRequest.model_fields.get(field)
    remedy = f" {described.description}" if described else ""
    if item["type"] == "missing":
        return f"{field}: is missing.{remedy}"
    if item["type"] == "extra_forbidden":
        return f"{field}: no such field. A line has {', '.join(BatchRequest.model_fields)}."
    return f"{field}: is {str(item['input'])[:80]!r}: {item['msg']}.{remedy}"


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that hold something, with their numbers."""
    with file.open("rb") as opened:
        for number, line in enumerate(opened, 1):
            if line.strip():
                yield number, line.removeprefix(b"\xef\xbb\xbf")


def has_failed(answer: dict[str, Any]) -> bool:
    """Whether a line of the output tells of a failure."""
    response = answer.get("response") or {}
    return answer.get("error") is not None or response.get("status_code") != 200


class Answers:
    """The output: what it holds from before, and a line for each answer from now on.

    A file on this machine gets each line at once. An object in a store cannot be appended to: the lines
    are kept in ``scratch`` and the object is replaced every half minute and at the end.
    """

    def __init__(self, place: Location, scratch: Path) -> None:
        local = place.local_path()
        self._place = None if local else place
        self._path = local or scratch / "answers.jsonl"
        self._name = place.uri
        self._saved_at = time.monotonic()
        self._save_s = _SAVE_S

    def __enter__(self) -> Answers:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._place and self._place.stat():
            copy_file(self._place, _at(self._path))
        self._is_new = not self._path.exists()
        # Unbuffered: a line is written whole, in one call.
        self._file = self._path.open("a+b", buffering=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            os.fsync(self._file.fileno())
        if self._is_new and not self._path.stat().st_size:
            # Refused before the first answer: no empty file is left for somebody to wonder about.
            self._path.unlink()
        elif self._place:
            copy_file(_at(self._path), self._place)

    def known(self, custom_ids: Iterable[str], *, retry_failed: bool) -> dict[str, bool]:
        """By custom_id, what need not be asked again: whether it failed.

        A last line that was cut is removed, and with ``retry_failed`` all that tell of a failure.

        Raises:
            ConfigError: it is the output of another batch, or no batch's.
        """
        wanted, found, dropped = set(custom_ids), {}, False
        keep = self._path.with_name(f".{self._path.name}.new")
        try:
            with keep.open("wb") as kept:
                for number, line in _lines(self._path):
                    answer = self._parsed(number, line, wanted)
                    failed = answer is None or has_failed(answer)
                    if answer is None or (failed and retry_failed):
                        dropped = True
                        continue
                    found[answer["custom_id"]] = failed
                    kept.write(line if line.endswith(b"\n") else line + b"\n")
                    dropped |= not line.endswith(b"\n")
            if dropped:
                self._file.close()
                keep.replace(self._path)
                self._file = self._path.open("a+b", buffering=0)
        finally:
            keep.unlink(missing_ok=True)
        return found

    def _parsed(self, number: int, line: bytes, wanted: set[str]) -> dict[str, Any] | None:
        try:
            answer = json.loads(line)
            custom_id = answer["custom_id"]
        except (ValueError, KeyError, TypeError):
            if not line.endswith(b"\n"):
                return None
            raise ConfigError(
                f"{self._name} line {number}: is no answer of a batch. Name another output."
            ) from None
        if custom_id not in wanted:
            raise ConfigError(
                f"{self._name} line {number}: custom_id is {custom_id!r}, which the input does not have: it "
                "is another batch's output. Name another one."
            )
        return dict(answer)

    def add(self, answer: dict[str, Any]) -> None:
        """Append one answer.

        Raises:
            NoSpace: the disk is full; the line is not there.
        """
        line = memoryview(json.dumps(answer, ensure_ascii=False).encode() + b"\n")
        before = self._path.stat().st_size
        try:
            # On a disk that is nearly full a call writes what finds room.
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            self._file.truncate(before)
            raise NoSpace(
                f"{self._path}: cannot be written ({error.strerror}). Make room; the same command goes on."
            ) from None

    @property
    def is_due(self) -> bool:
        """Whether it is time for ``save``."""
        return self._place is not None and time.monotonic() - self._saved_at >= self._save_s

    def save(self) -> None:
        """Bring what there is so far to the store. Blocks; call it from a thread, one at a time."""
        assert self._place
        began = self._saved_at = time.monotonic()
        copy_file(_at(self._path), self._place)
        self._saved_at = time.monotonic()
        # A large object is not sent over and over.
        self._save_s = max(_SAVE_S, 10 * (self._saved_at - began))


def _at(path: Path) -> Location:
    return locate(str(path))
