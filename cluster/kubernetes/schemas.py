"""The schemas of custom kinds, made strict: from a folder of CustomResourceDefinitions or from a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from cluster.kubernetes.workloads import Manifest
from runtime.core.errors import ConfigError

Schema = dict[str, Any]
_CRD = "CustomResourceDefinition"
_OF_THE_ROOT = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}


class Lists(Protocol):
    """The part of a Kubernetes client that is needed here."""

    def list(self, api_version: str, kind: str) -> list[Manifest]:
        """All objects of the kind."""


@dataclass(frozen=True)
class Schemas:
    """Strict schemas of custom kinds, by API version and kind: of versions that are served."""

    definitions: Mapping[tuple[str, str], Schema]
    """As the CustomResourceDefinitions have them."""

    @classmethod
    def from_folder(cls, folder: Path) -> Schemas:
        """Those of all CustomResourceDefinitions in a folder's YAML and JSON files.

        Raises:
            ConfigError: it cannot be read, or holds none.
        """
        from cluster.kubernetes.manifest_files import read_manifests

        found = [written.manifest for written in read_manifests([folder])]
        schemas = cls.of(found)
        if not schemas.definitions:
            raise ConfigError(
                f"{folder}: holds no CustomResourceDefinition. Give the folder with the CRD files of KubeRay "
                "and the others, or leave --schemas out."
            )
        return schemas

    @classmethod
    def from_cluster(cls, client: Lists) -> Schemas:
        """Those that a cluster has installed.

        Raises:
            ClusterError: it does not answer or does not allow it.
        """
        return cls.of(client.list("apiextensions.k8s.io/v1", _CRD))

    @classmethod
    def of(cls, definitions: Iterable[Manifest]) -> Schemas:
        """Those of CustomResourceDefinitions; other objects are passed over."""
        return cls(
            {
                key: schema
                for crd in definitions
                if crd.get("kind", _CRD) == _CRD
                for key, schema in _versions(crd)
            }
        )

    def find(self, api_version: str, kind: str) -> Schema | None:
        """The strict schema of a kind; None where there is none."""
        key = (api_version, kind)
        if key not in self._strict and key in self.definitions:
            self._strict[key] = _with_root(strict(self.definitions[key]))
        return self._strict.get(key)

    def served(self, api_version: str) -> dict[str, list[str]]:
        """What is known of a version's group: API versions by kind."""
        group = api_version.rpartition("/")[0]
        kinds: dict[str, list[str]] = {}
        for version, kind in self.definitions:
            if version.rpartition("/")[0] == group:
                kinds.setdefault(kind, []).append(version)
        return kinds

    @cached_property
    def _strict(self) -> dict[tuple[str, str], Schema]:
        return {}


def strict(schema: Schema) -> Schema:
    """A CRD's openAPIV3Schema as a JSON Schema that refuses what the API server would prune or refuse.

    One pass: int-or-string becomes two types, ``nullable`` adds null, an object with properties is closed,
    and a property with a default is not required, for the server fills in defaults first.
    """
    made = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("anyOf", None)
        made["type"] = ["integer", "string"]
    if made.pop("nullable", False):
        _allow_null(made)
    if "items" in made:
        made["items"] = strict(made["items"])
    if isinstance(made.get("additionalProperties"), dict):
        made["additionalProperties"] = strict(made["additionalProperties"])
    if "properties" in made:
        _close(made, schema)
    return made


def _allow_null(made: Schema) -> None:
    kinds = made.get("type", [])
    if kinds:
        made["type"] = [*([kinds] if isinstance(kinds, str) else kinds), "null"]
    if "enum" in made:
        made["enum"] = [*made["enum"], None]


def _close(made: Schema, schema: Schema) -> None:
    properties = made["properties"]
    made["properties"] = {name: strict(child) for name, child in properties.items()}
    if schema.get("x-kubernetes-embedded-resource"):
        made["properties"] = _OF_THE_ROOT | made["properties"]
    if not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    required = [name for name in made.pop("required", []) if "default" not in properties.get(name, {})]
    if required:  # An empty list is no valid JSON Schema of draft 4.
        made["required"] = required


def _with_root(schema: Schema) -> Schema:
    return schema | {"properties": schema.get("properties", {}) | _OF_THE_ROOT}


def _versions(crd: Manifest) -> Iterator[tuple[tuple[str, str], Schema]]:
    spec = crd.get("spec") or {}
    for version in spec.get("versions") or []:
        schema = (version.get("schema") or {}).get("openAPIV3Schema")
        if version.get("served") and schema:
            yield (f"{spec['group']}/{version['name']}", spec["names"]["kind"]), schema
