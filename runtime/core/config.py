"""The base of every spec: strict, frozen, documented by attribute docstrings, read in one place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from runtime.core.errors import ConfigError
from runtime.core.lookup import did_you_mean


class ConfigModel(BaseModel):
    """Base of all specs: unknown fields refused, values never rewritten, docstrings are the help."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )

    def to_json(self) -> str:
        """The resolved spec as JSON; ``load_spec`` of the same class reads it back unchanged."""
        return self.model_dump_json(indent=2)


Spec = TypeVar("Spec", bound=ConfigModel)


def load_spec(cls: type[Spec], source: Spec | Mapping[str, Any] | str | Path) -> Spec:
    """A validated spec from a model object, a mapping, or the path of a YAML or JSON file.

    Raises:
        ConfigError: one message that names the file, and for each fault the field, its value, why
            it cannot work and what to do.
    """
    if isinstance(source, cls):
        return source
    if isinstance(source, Mapping):
        return _validate(cls, source, origin="spec")
    path = Path(source)  # type: ignore[arg-type]
    return _validate(cls, read_mapping(path), origin=str(path))


def read_mapping(path: Path) -> Mapping[str, Any]:
    """The fields in a YAML or JSON file, not looked at.

    Raises:
        ConfigError: it cannot be read, or holds no mapping.
    """
    return _parse(_read(path), str(path))


def parse_spec(cls: type[Spec], text: str, *, origin: str) -> Spec:
    """A validated spec from the text of a YAML or JSON file.

    Args:
        origin: Its path or address; the ending ``.json`` means JSON.

    Raises:
        ConfigError: as ``load_spec`` does.
    """
    return _validate(cls, _parse(text, origin), origin=origin)


def origin_of(source: object) -> str:
    """What an error calls the spec: its file, where it came from one."""
    return str(source) if isinstance(source, str | Path) else "spec"


@contextmanager
def blamed_on(source: object) -> Iterator[None]:
    """Put the spec's origin in front of a refusal that does not name it yet."""
    origin = origin_of(source)
    try:
        yield
    except ConfigError as error:
        if str(error).startswith(origin):
            raise
        raise ConfigError(f"{origin}: {error}") from None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}). Check the path; it is taken from {Path.cwd()}."
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not text. A spec is a YAML or JSON file in UTF-8.") from None


def _parse(text: str, origin: str) -> Mapping[str, Any]:
    suffix = PurePath(origin).suffix
    try:
        data = json.loads(text) if suffix == ".json" else yaml.safe_load(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{origin}: is not valid JSON: {error}. Repair it there.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: is not valid YAML: {_yaml_fault(error)}. Repair it there.") from None
    if not isinstance(data, Mapping):
        if data is None:
            raise ConfigError(f"{origin}: is empty. Write the spec's fields into it; see examples/.")
        raise ConfigError(f"{origin}: holds {type(data).__name__}, but a spec is a mapping of fields.")
    return data


def _yaml_fault(error: yaml.YAMLError) -> str:
    """What is wrong and where. Not PyYAML's own text: it quotes the line, which may hold a secret."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{problem or type(error).__name__}{where}"


def _validate(cls: type[Spec], data: Mapping[str, Any], *, origin: str) -> Spec:
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        faults = "\n".join(f"  {_fault(cls, item)}" for item in _told(error.errors()))
        raise ConfigError(f"{origin}: {cls.__name__} cannot be used.\n{faults}") from None


def _told(items: Sequence[Any]) -> list[Any]:
    """The faults without those that only follow from others.

    pydantic leaves a wrong entry out of its list and then finds the list too short.
    """
    return [item for item in items if item["type"] != "too_short" or not _has_a_wrong_entry(item, items)]


def _has_a_wrong_entry(item: Any, items: Sequence[Any]) -> bool:
    depth = len(item["loc"])
    return any(len(other["loc"]) > depth and other["loc"][:depth] == item["loc"] for other in items)


def _fault(cls: type[BaseModel], item: Any) -> str:
    """One line for one fault: field, value, reason, remedy."""
    location = [part for part in item["loc"] if not str(part).startswith("function-")]
    field = ".".join(str(part) for part in location) or "(whole spec)"
    if item["type"] == "extra_forbidden":
        known = _fields_at(cls, location[:-1])
        return f"{field}: unknown field (value {item['input']!r}). {did_you_mean(str(location[-1]), known)}"
    if item["type"] == "missing":
        return f"{field}: is required. Add it{_doc(cls, location)}."
    if item["type"] == "value_error":
        return f"{field}: {item['ctx']['error']}"
    return f"{field}: is {item['input']!r}: {item['msg']}{_doc(cls, location)}."


def _model_at(cls: type[BaseModel], location: list[Any]) -> type[BaseModel] | None:
    """The model class that holds the fields below ``location``, or None where there is none."""
    model: type[BaseModel] | None = cls
    for part in location:
        if isinstance(part, int):
            continue  # an entry of a list: its class was found with the list's
        info = model.model_fields.get(str(part)) if model else None
        if info is None:
            return None
        candidates = [info.annotation, *getattr(info.annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
    return model


def _fields_at(cls: type[BaseModel], location: list[Any]) -> list[str]:
    model = _model_at(cls, location)
    return list(model.model_fields) if model else []


def _doc(cls: type[BaseModel], location: list[Any]) -> str:
    model = _model_at(cls, location[:-1]) if location else None
    info = model.model_fields.get(str(location[-1])) if model else None
    return f" ({' '.join(info.description.split())})" if info and info.description else ""
