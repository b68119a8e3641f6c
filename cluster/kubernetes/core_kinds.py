"""The schemas of Kubernetes' own kinds, from the official client's models: fields, types, what is required.

The client's models are pydantic classes that forbid unknown fields; as JSON Schema they are checked like
custom kinds. That is Kubernetes of the client's version; its API server knows further rules, of which
``cluster/kubernetes/lints`` has those that matter here.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

Schema = dict[str, Any]

_QUANTITIES = {
    # The API takes numbers, too (``cpu: 4``); the models say only strings.
    "V1ResourceRequirements": ("limits", "requests"),
    "V1VolumeResourceRequirements": ("limits", "requests"),
    "V1PersistentVolumeSpec": ("capacity",),
    "V1PodSpec": ("overhead",),
    "V1EmptyDirVolumeSource": ("sizeLimit",),
    "V1ResourceFieldSelector": ("divisor",),
    "V1ResourceQuotaSpec": ("hard",),
    "V1LimitRangeItem": ("default", "defaultRequest", "max", "maxLimitRequestRatio", "min"),
}
_A_QUANTITY = {"type": ["number", "string"]}


def is_core(api_version: str) -> bool:
    """Whether the group is one of Kubernetes' own, in whatever version."""
    from kubernetes import client

    return hasattr(client, f"{_stem(api_version)}Api")


def kinds(api_version: str) -> list[str]:
    """The kinds that can be made in a group and version of Kubernetes' own; none where there is none."""
    return sorted(_models(api_version))


@cache
def core_schema(api_version: str, kind: str) -> Schema | None:
    """The strict schema of one of Kubernetes' own kinds; None where it has no such kind."""
    model = _models(api_version).get(kind)
    return None if model is None else _schema_of(model)


@cache
def metadata_schema() -> Schema:
    """The strict schema of every object's ``metadata``."""
    from kubernetes import client

    return _schema_of(client.V1ObjectMeta)


def _stem(api_version: str) -> str:
    """``RbacAuthorization`` of ``rbac.authorization.k8s.io/v1``, as the client names its classes."""
    group = api_version.rpartition("/")[0].removesuffix(".k8s.io") or "core"
    return "".join(word.capitalize() for word in group.split("."))


@cache
def _models(api_version: str) -> dict[str, Any]:
    """By kind the model of what one sends to make such an object."""
    from kubernetes import client

    version = api_version.rpartition("/")[2].capitalize()
    api = getattr(client, f"{_stem(api_version)}{version}Api", None)
    makers = [getattr(api, name) for name in dir(api) if _makes_an_object(name)]
    bodies = [inspect.signature(maker).parameters["body"].annotation for maker in makers]
    # ``V1Service``, ``CoreV1Event`` and ``EventsV1Event`` are the kinds Service and Event.
    return {body.__name__.rpartition(version)[2]: body for body in bodies if hasattr(body, "openapi_types")}


def _makes_an_object(method: str) -> bool:
    return method.startswith("create_") and not method.endswith(("_with_http_info", "_serialization"))


def _schema_of(model: Any) -> Schema:
    made = model.model_json_schema()
    for name, fields in _QUANTITIES.items():
        definition = made["$defs"].get(name)
        for field in fields if definition else ():
            _allow_numbers(definition, field)
    return _plain(made)


def _allow_numbers(definition: Schema, field: str) -> None:
    is_a_map = "additionalProperties" in str(definition["properties"][field])
    definition["properties"][field] = (
        {"type": "object", "additionalProperties": _A_QUANTITY} if is_a_map else _A_QUANTITY
    )


def _plain(schema: Any) -> Any:
    """Without the choice of null, which the server takes for a field that is not there, and without words."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    choices = [choice for choice in schema.get("anyOf", []) if choice != {"type": "null"}]
    if len(choices) == 1:
        return _plain(choices[0])
    if choices:
        return {"type": sorted({choice["type"] for choice in choices})} if _are_types(choices) else {}
    return {
        key: {name: _plain(child) for name, child in value.items()}
        if key in ("properties", "$defs")
        else _plain(value)
        for key, value in schema.items()
        if key not in ("description", "default", "title", "format")
    }


def _are_types(choices: list[Schema]) -> bool:
    return all(isinstance(choice.get("type"), str) for choice in choices)
