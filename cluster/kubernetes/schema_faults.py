"""What a JSON Schema refuses in a manifest, in words that name the field and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from cluster.kubernetes.faults import Fault
from runtime.core.lookup import did_you_mean

_WORDS = {
    "string": "a string", "integer": "a whole number", "number": "a number", "boolean": "true or false",
    "object": "a mapping", "array": "a list", "null": "null",
}  # fmt: skip


def schema_faults(schema: dict[str, Any], value: Any, *, at: str = "") -> list[Fault]:
    """All that ``schema`` refuses in ``value``.

    Args:
        at: The field that ``value`` is; the faults' fields begin with it.
    """
    from jsonschema import Draft4Validator

    # Draft 4: in CRDs ``exclusiveMinimum`` is a boolean, and 1.0 is no integer, as for the API server.
    errors = sorted(Draft4Validator(schema).iter_errors(value), key=lambda error: list(map(str, error.path)))
    return [fault for error in errors for fault in _faults(error, at)]


def field(*parts: str | int) -> str:
    """``spec.containers[0].image`` of its parts; the first may be a path itself, or empty."""
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f"{'.' if path and part else ''}{part}"
    return path


def _faults(error: Any, at: str) -> Iterator[Fault]:
    where, said = field(at, *error.absolute_path), error.validator
    if said == "additionalProperties":
        yield from _unknown(error, where)
    elif said == "required":
        yield from _missing(error, where)
    elif said == "type":
        yield _wrong_type(error, where)
    elif said == "enum":
        yield Fault(where, error.instance, "It is not one of the values.", _one_of(error.validator_value))
    else:
        yield Fault(
            where, error.instance, f"The schema refuses it: {_rule(error)}.", "Change it accordingly."
        )


def _unknown(error: Any, where: str) -> Iterator[Fault]:
    known = list(error.schema.get("properties", {}))
    for name in error.instance:
        if name not in known:
            remedy = did_you_mean(str(name), known)
            yield Fault(
                field(where, str(name)), error.instance[name], "There is no such field.",
                remedy if len(remedy) < 400 else "Leave it out.",
            )  # fmt: skip


def _missing(error: Any, where: str) -> Iterator[Fault]:
    # jsonschema reports one error for each missing property, which names it first.
    name = error.message.split("'")[1]
    expected = error.schema.get("properties", {}).get(name, {}).get("type")
    yield Fault(field(where, name), None, "It is required.", f"Add it: {_kinds(expected)}.")


def _wrong_type(error: Any, where: str) -> Fault:
    expected, value = error.validator_value, error.instance
    wanted = [expected] if isinstance(expected, str) else expected
    if "string" in wanted and isinstance(value, bool | int | float):
        why = f"It must be a string, and YAML reads it as {_kind_of(value)}."
        return Fault(where, value, why, "Put it in quotes.")
    if "string" in wanted and isinstance(value, dict | list):
        why = f"It must be a string, but holds {_kind_of(value)}."
        return Fault(where, value, why, "Write it as a text block, with | behind the colon.")
    why = f"It must be {_kinds(expected)}, not {_kind_of(value)}."
    unquoted = isinstance(value, str) and not {"object", "array"} & set(wanted)
    return Fault(where, value, why, "Write it without quotes." if unquoted else "Write it so.")


def _kinds(expected: str | Iterable[str] | None) -> str:
    if expected is None:
        return "see the kind's documentation"
    names = [expected] if isinstance(expected, str) else list(expected)
    return " or ".join(_WORDS[name] for name in names)


def _kind_of(value: Any) -> str:
    for kind, name in ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string")):
        if isinstance(value, kind):
            return _WORDS[name]
    return _WORDS["null" if value is None else "array" if isinstance(value, list) else "object"]


def _one_of(values: list[Any]) -> str:
    return f"Write one of: {', '.join(str(value) for value in values)}."


def _rule(error: Any) -> str:
    if error.validator in ("anyOf", "oneOf", "allOf", "not"):
        return f"it fits none of what {error.validator} allows"
    return f"{error.validator} is {error.validator_value!r}"
