"""Manifests in files: YAML with several documents, JSON, whole folders; a key that is there twice is refused.

kubectl turns YAML into JSON by YAML 1.1's rules, which PyYAML has, too; but they differ where PyYAML leaves
a string: kubectl reads ``1e3`` as a number and ``0o17`` as 15, and writes ``y`` as true. Here such words are
read as kubectl reads them, so that a field that needs a string is refused by its type.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.kubernetes.workloads import Manifest
from runtime.core.errors import ConfigError

_ENDINGS = (".yaml", ".yml", ".json")
_OTHERWISE = ("int", "float", "timestamp")
"""Types that kubectl recognizes by other rules than PyYAML."""


@dataclass(frozen=True)
class Written:
    """A manifest and the file that it is in."""

    file: str
    manifest: Manifest


def read_manifests(paths: Iterable[Path]) -> list[Written]:
    """All objects in files and folders (with those below them), in the order of their names.

    An object of kind ``List`` stands for its items; empty documents are passed over.

    Raises:
        ConfigError: nothing is there, a file cannot be read or parsed, has a key twice, or holds something
            that is no object.
    """
    files = [file for path in paths for file in _files(path)]
    return [Written(str(file), manifest) for file in files for manifest in _objects(file)]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ConfigError(f"{path}: is not there. Give a manifest's file, or a folder of them.")
    found = sorted(file for file in path.rglob("*") if file.suffix in _ENDINGS and file.is_file())
    if not found:
        raise ConfigError(f"{path}: holds no manifest. Their files end in {', '.join(_ENDINGS)}.")
    return found


def _objects(file: Path) -> Iterator[Manifest]:
    for document in _documents(file):
        if document is not None:
            yield from _items(_mapping_in(document, str(file)), str(file))


def _items(document: dict[str, Any], file: str) -> Iterator[Manifest]:
    """The document itself, or what a list holds; lists in it count as kubectl counts them."""
    if document.get("kind") != "List" or document.get("items") is None:
        yield document
        return
    items = document["items"]
    if not isinstance(items, list):
        raise ConfigError(f"{file}: items of a List holds {_brief(items)}. Write a list of manifests.")
    for index, item in enumerate(items):
        where = f"{file}: items[{index}]"
        yield from _items(_mapping_in(item, where), where)


def _mapping_in(document: Any, where: str) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise ConfigError(
            f"{where}: holds {_brief(document)}, but a manifest is a mapping with apiVersion, kind and "
            "metadata. Leave it out, or write it so."
        )
    return document


def _brief(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


def _documents(file: Path) -> list[Any]:
    try:
        text = file.read_text()
        if file.suffix == ".json":
            return [json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, str(file)))]
        return list(yaml.load_all(text, _Loader))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{file}: is not valid JSON: {error}. Repair it there.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: is not valid YAML: {_yaml_fault(error)}. Repair it there.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}). Give a text file in UTF-8.") from None


def _once(pairs: list[tuple[str, Any]], file: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ConfigError(f"{file}: the key {key!r} is there twice in one object. Leave one out.")
        made[key] = value
    return made


def _yaml_fault(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f"{problem or type(error).__name__}{f' in line {mark.line + 1}' if mark else ''}"


class _Loader(yaml.CSafeLoader):
    """YAML as kubectl reads it, each key once."""

    yaml_implicit_resolvers = {
        # Dates stay strings, and ``1:30`` is no number: kubectl knows neither.
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in _OTHERWISE]
        for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    _refuse_twice(node)
    loader.flatten_mapping(node)
    return {
        _key(loader.construct_object(key, deep=True)): loader.construct_object(value, deep=True)
        for key, value in node.value
    }


def _refuse_twice(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        text = str(key.value)
        if text in seen:
            raise yaml.MarkedYAMLError(
                problem=f"the key {text!r} is there twice in one mapping", problem_mark=key.start_mark
            )
        seen.add(text)


def _key(key: Any) -> str:
    """JSON's keys are strings: kubectl sends ``1: x`` as "1" and ``y: x`` as "true"."""
    return json.dumps(key) if isinstance(key, bool) else str(key)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "").lower()
    is_old_octal = re.fullmatch(r"[-+]?0[0-7]+", text)
    return int(text, 8 if is_old_octal else 0)


_INTEGER = re.compile(r"[-+]?(0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("!kubectl-bool", lambda loader, node: node.value in "yY")
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INTEGER, list("+-0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("+-.0123456789"))
_Loader.add_implicit_resolver("!kubectl-bool", re.compile(r"[yYnN]$"), list("yYnN"))
