"""Whether a cluster would take manifests and they would do what they say: schemas, lints, references.

The schema of a custom kind is its CustomResourceDefinition's, with its rules in CEL, of Kubernetes' own kinds
the official client's models. A third of the real faults pass all schemas: those are the lints'.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from cluster.kubernetes.cel_rules import rule_faults
from cluster.kubernetes.core_kinds import core_schema, is_core, kinds, metadata_schema
from cluster.kubernetes.faults import Fault, name_of
from cluster.kubernetes.lint import lint
from cluster.kubernetes.names import LONGEST
from cluster.kubernetes.references import reference_faults
from cluster.kubernetes.schema_faults import schema_faults
from cluster.kubernetes.schemas import Schemas
from cluster.kubernetes.workloads import Manifest
from runtime.core.lookup import did_you_mean

NO_SCHEMAS = Schemas({})
"""Custom kinds are then checked by lints alone."""


def check(
    manifests: Sequence[Manifest], schemas: Schemas = NO_SCHEMAS, *, files: Sequence[str] = ()
) -> list[Fault]:
    """All faults of manifests that are applied together, and advice (``Fault.warning``).

    Args:
        schemas: Of custom kinds.
        files: Where each manifest is written. Default: nowhere.

    Returns:
        In the order of the manifests.
    """
    found = [_of_one(manifest, schemas) for manifest in manifests]
    for index, fault in reference_faults(manifests):
        found[index].append(fault)
    return [
        fault.of(files[index] if files else "", manifest)
        for index, manifest in enumerate(manifests)
        for fault in found[index]
    ]


def without_schema(manifests: Sequence[Manifest], schemas: Schemas = NO_SCHEMAS) -> list[str]:
    """The custom kinds among ``manifests`` that ``schemas`` do not have: ``ray.io/v1 RayCluster``."""
    keys = {(str(one.get("apiVersion")), str(one.get("kind"))) for one in manifests}
    return sorted(f"{version} {kind}" for version, kind in keys
                  if not is_core(version) and schemas.find(version, kind) is None)  # fmt: skip


def _of_one(manifest: Manifest, schemas: Schemas) -> list[Fault]:
    unnamed = list(_identity(manifest))
    if unnamed:
        return unnamed
    linted = lint(manifest)
    # Where both speak of a field, the lint knows more of it.
    told = {fault.field for fault in linted if not fault.warning}
    return [fault for fault in _structure(manifest, schemas) if not _is_told(fault.field, told)] + linted


def _is_told(field: str, told: Collection[str]) -> bool:
    """Whether another fault speaks of this field or of one in it."""
    return any(re.match(rf"{re.escape(field)}([.\[]|$)", other) for other in told)


def _identity(manifest: Manifest) -> Iterator[Fault]:
    for name in ("apiVersion", "kind"):
        if not isinstance(manifest.get(name), str):
            yield Fault(name, manifest.get(name), "It says what the object is.", "Add it, as a string.")
    metadata = manifest.get("metadata")
    given = metadata if isinstance(metadata, dict) else {}
    if name_of(manifest) == "(no name)":
        yield Fault("metadata.name", given.get("name"), "An object needs a name.", "Add it.")
    elif not isinstance(given.get("name") or given.get("generateName"), str):
        yield Fault("metadata.name", given.get("name"), "A name is a string.", "Put it in quotes.")


def _structure(manifest: Manifest, schemas: Schemas) -> Iterator[Fault]:
    version, kind = manifest["apiVersion"], manifest["kind"]
    if is_core(version):
        yield from _core(manifest)
        return
    yield from schema_faults(metadata_schema(), _without_nulls(manifest["metadata"]), at="metadata")
    schema = schemas.find(version, kind)
    if schema:
        faults = schema_faults(schema, manifest)
        # The server asks the rules only of what keeps to the rest.
        yield from faults or rule_faults(schemas.definitions[version, kind], manifest)
    elif versions := schemas.served(version).get(kind):
        why = f"No such version of {kind} is served."
        yield Fault("apiVersion", version, why, f"Write {' or '.join(sorted(versions))}.")
    elif version.startswith("ray.io/") and kind not in LONGEST:
        yield Fault("kind", kind, "KubeRay has no such kind.", did_you_mean(kind, LONGEST))


def _core(manifest: Manifest) -> Iterator[Fault]:
    version, kind = manifest["apiVersion"], manifest["kind"]
    schema = core_schema(version, kind)
    if schema:
        yield from schema_faults(schema, _without_nulls(manifest))
    elif kinds(version):
        yield Fault("kind", kind, f"{version} has no such kind.", did_you_mean(kind, kinds(version)))
    else:
        why = "Kubernetes has no such version of this group any more."
        yield Fault("apiVersion", version, why, "Write the group's newest version, often v1.")


def _without_nulls(value: Any) -> Any:
    """The server takes null for a field that is not there."""
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value
