"""What a custom kind's own rules refuse (``x-kubernetes-validations``, in CEL), as the API server would.

Rules that compare with the object before (``oldSelf``) are for changes, and not asked of a manifest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING, Any

from cluster.kubernetes.faults import Fault, advice
from cluster.kubernetes.schema_faults import field

if TYPE_CHECKING:
    from cel import Program

_RESERVED = (
    "true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if",
    "import", "let", "loop", "package", "namespace", "return",
)  # fmt: skip
_ESCAPES = {"__": "__underscores__", ".": "__dot__", "-": "__dash__", "/": "__slash__"}


def rule_faults(schema: Mapping[str, Any], value: Any, *, at: str = "") -> list[Fault]:
    """All that the rules of ``schema`` refuse in ``value``, and advice where one cannot be evaluated here.

    Args:
        schema: As the CustomResourceDefinition has it; ``value`` keeps to the rest of it.
        at: The field that ``value`` is; the faults' fields begin with it.
    """
    return list(_faults(schema, with_defaults(schema, value), at))


def with_defaults(schema: Mapping[str, Any], value: Any) -> Any:
    """A copy with the schema's defaults, which the server fills in before it asks the rules."""
    if isinstance(value, list):
        return [with_defaults(schema.get("items", {}), item) for item in value]
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties", {})
    filled = value | {
        name: deepcopy(child["default"])
        for name, child in properties.items()
        if "default" in child and value.get(name) is None and not (name in value and child.get("nullable"))
    }
    return {name: with_defaults(_child(schema, name), child) for name, child in filled.items()}


def _faults(schema: Mapping[str, Any], value: Any, at: str) -> Iterator[Fault]:
    for rule in schema.get("x-kubernetes-validations", []):
        yield from _broken(rule, schema, value, at)
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _faults(schema.get("items", {}), item, field(at, index))
    elif isinstance(value, dict):
        for name, child in value.items():
            yield from _faults(_child(schema, name), child, field(at, name))


def _broken(rule: Mapping[str, Any], schema: Mapping[str, Any], value: Any, at: str) -> Iterator[Fault]:
    where = (at + rule.get("fieldPath", "")).lstrip(".") or "(the object)"
    this = {"self": _as_cel(schema, value)}
    try:
        program = _program(rule["rule"])
    except ValueError as error:
        # CEL's optional syntax (``self.?a``), which the server knows.
        first, *_ = str(error).splitlines()
        yield _left_to_the_cluster(where, value, rule, first)
        return
    if "oldSelf" in program.variables():
        return
    try:
        if program.execute(_context(this)):
            return
        why = _said(rule, this)
    except RuntimeError as error:
        yield _left_to_the_cluster(where, value, rule, error)
        return
    except (KeyError, TypeError, ValueError) as error:
        # To the server, too, a rule that cannot look at the value is one that the value breaks.
        why = f"{_said(rule, this)} ({error})"
    yield Fault(
        where,
        value,
        f"A rule of the kind refuses it: {why.rstrip('.')}.",
        "Change it accordingly.",
    )


def _left_to_the_cluster(where: str, value: Any, rule: Mapping[str, Any], error: Exception | str) -> Fault:
    return advice(
        where, value, f"One of the kind's rules cannot be evaluated here ({error}): {rule['rule']}.",
        "The cluster asks it when the object is applied.",
    )  # fmt: skip


def _said(rule: Mapping[str, Any], this: Mapping[str, Any]) -> str:
    if "messageExpression" in rule:
        try:
            return str(_program(rule["messageExpression"]).execute(_context(this)))
        except (RuntimeError, KeyError, TypeError, ValueError):
            # As the server does.
            pass
    return str(rule.get("message") or rule["rule"])


@cache
def _program(rule: str) -> Program:
    from cel import compile

    return compile(rule)


def _context(this: Mapping[str, Any]) -> Any:
    from cel import Context
    from cel.stdlib import add_stdlib_to_context

    context = Context(dict(this))
    # Kubernetes' own CEL has these besides.
    add_stdlib_to_context(context)
    return context


def _as_cel(schema: Mapping[str, Any], value: Any) -> Any:
    """The value with its properties named as CEL can name them; the keys of maps stay."""
    if isinstance(value, list):
        return [_as_cel(schema.get("items", {}), item) for item in value]
    if not isinstance(value, dict):
        return value
    declared = schema.get("properties", {})
    return {
        (_escaped(name) if name in declared else name): _as_cel(_child(schema, name), child)
        for name, child in value.items()
    }


def _escaped(name: str) -> str:
    if name in _RESERVED:
        return f"__{name}__"
    return re.sub("__|[.\\-/]", lambda found: _ESCAPES[found[0]], name)


def _child(schema: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    further = schema.get("additionalProperties")
    known: Mapping[str, Any] = schema.get("properties", {}).get(name) or {}
    return known or (further if isinstance(further, dict) else {})
