"""Who owns which field, in the Kubernetes stand-in: server-side apply, merge patch, managedFields.

Lists are atomic, as in KubeRay's CRDs and most of what Tandem renders, but for the ports of a Service, which
have keys: then every entry is a field of its own.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.servers.kubernetes_status import Field, apply_conflict

Json = dict[str, Any]
_KEYED = {("Service", ("f:spec", "f:ports")): ("port", "protocol")}
_NOT_OWNED = {
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "managedFields",
}


@dataclass(frozen=True)
class Manager:
    """Who set fields, and how."""

    name: str
    operation: str
    """Apply or Update."""

    subresource: str = ""


Owners = dict[Manager, set[Field]]


def fields_of(body: Json) -> dict[Field, Any]:
    """The leaves of an object, each with its value; an empty object is a leaf too."""
    kind = body.get("kind", "")
    found: dict[Field, Any] = {}
    for key, value in body.items():
        if key == "metadata":
            own = {name: one for name, one in value.items() if name not in _NOT_OWNED}
            found.update(_leaves(kind, ("f:metadata",), own) if own else {})
        elif key not in ("apiVersion", "kind"):
            found.update(_leaves(kind, (f"f:{key}",), value))
    return found


def _leaves(kind: str, path: Field, value: Any) -> dict[Field, Any]:
    keys = _KEYED.get((kind, path))
    if keys and isinstance(value, list):
        entries = [(_entry(one, keys), one) for one in value]
        return {leaf: v for key, one in entries for leaf, v in _leaves(kind, (*path, key), one).items()}
    if isinstance(value, dict) and value:
        children = [(f"f:{key}", one) for key, one in value.items()]
        return {leaf: v for key, one in children for leaf, v in _leaves(kind, (*path, key), one).items()}
    return {path: value}


def _entry(one: Json, keys: Iterable[str]) -> str:
    values = {"protocol": "TCP", **one}
    return "[" + ",".join(f"{key}={json.dumps(values[key])}" for key in keys) + "]"


def applied(
    live: Json | None, owners: Owners, config: Json, manager: str, *, force: bool
) -> tuple[Json, Owners]:
    """The object and its owners after a server-side apply.

    Raises:
        Refusal: others own fields that would change, and it is not forced.
    """
    me = Manager(manager, "Apply")
    wanted, before = fields_of(config), fields_of(live or {"kind": config["kind"]})
    changed = {field for field, value in wanted.items() if before.get(field, ...) != value}
    held = [
        (one.name, config["apiVersion"], field)
        for one, fields in owners.items()
        if one != me
        for field in sorted(changed & _touching(fields, changed))
    ]
    if held and not force:
        raise apply_conflict(held)
    after: Owners = {
        one: {field for field in fields if not _lies_in(field, changed)}
        for one, fields in owners.items()
        if one != me
    }
    given_up = {
        field
        for field in owners.get(me, set()) - wanted.keys()
        if not any(field in fields for fields in after.values())
    }
    values = {field: value for field, value in before.items() if field not in given_up}
    values = {field: value for field, value in values.items() if not _lies_in(field, changed)} | wanted
    after[me] = set(wanted)
    return _built(values, live or config), {one: fields for one, fields in after.items() if fields}


def _touching(fields: set[Field], changed: set[Field]) -> set[Field]:
    """Of what would change, what is among these fields, above or below one."""
    return {one for one in changed if any(_related(one, field) for field in fields)}


def _lies_in(field: Field, changed: set[Field]) -> bool:
    return any(_related(one, field) for one in changed)


def _related(one: Field, other: Field) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def updated(old: Json, new: Json, owners: Owners, manager: str, subresource: str = "") -> Owners:
    """The owners after an update that turned ``old`` into ``new``: what changed is the manager's."""
    me = Manager(manager, "Update", subresource)
    before, now = fields_of(old), fields_of(new)
    changed = {field for field, value in now.items() if before.get(field, ...) != value}
    gone = before.keys() - now.keys()
    after = {one: {f for f in fields if f not in changed | gone} for one, fields in owners.items()}
    after[me] = after.get(me, set()) | changed
    return {one: fields for one, fields in after.items() if fields}


def merged(target: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def json_patched(target: Json, operations: list[Json]) -> Json:
    """JSON patch (RFC 6902): add, replace and remove.

    Raises:
        KeyError, IndexError: a path leads nowhere.
    """
    result = copy.deepcopy(target)
    for one in operations:
        *way, last = [part.replace("~1", "/").replace("~0", "~") for part in one["path"].split("/")[1:]]
        place: Any = result
        for part in way:
            place = place[int(part)] if isinstance(place, list) else place[part]
        if one["op"] == "remove":
            del place[int(last) if isinstance(place, list) else last]
        elif isinstance(place, list) and one["op"] == "add":
            place.insert(len(place) if last == "-" else int(last), one["value"])
        else:
            place[int(last) if isinstance(place, list) else last] = one["value"]
    return result


def managed_fields(owners: Owners, api_version: str) -> list[Json]:
    """``metadata.managedFields``."""
    return [
        {
            "manager": one.name,
            "operation": one.operation,
            "apiVersion": api_version,
            "fieldsType": "FieldsV1",
            "fieldsV1": _tree(fields),
            **({"subresource": one.subresource} if one.subresource else {}),
        }
        for one, fields in owners.items()
    ]


def _tree(fields: Iterable[Field]) -> Json:
    tree: Json = {}
    for field in sorted(fields):
        place = tree
        for part in field:
            place = place.setdefault(part if part.startswith("f:") else f"k:{part}", {})
    return tree


def _built(values: Mapping[Field, Any], like: Json) -> Json:
    """An object of leaves; what nobody can own (its name, its uid) is that of ``like``."""
    own = {name: one for name, one in like.get("metadata", {}).items() if name in _NOT_OWNED}
    result: Json = {"apiVersion": like["apiVersion"], "kind": like["kind"], "metadata": own}
    entries: dict[int, dict[str, Json]] = {}
    for field, value in values.items():
        _put(result, field, copy.deepcopy(value), entries)
    return result


def _put(place: Any, field: Field, value: Any, entries: dict[int, dict[str, Json]]) -> None:
    for part, following in zip(field, (*field[1:], ""), strict=True):
        if part.startswith("["):
            known = entries.setdefault(id(place), {})
            if part not in known:
                known[part] = {}
                place.append(known[part])
            place = known[part]
        elif not following:
            place[part[2:]] = value
        else:
            place = place.setdefault(part[2:], [] if following.startswith("[") else {})
