"""Names and labels: how long they may be, and in which letters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cluster.kubernetes.core_kinds import is_core
from cluster.kubernetes.faults import Fault
from cluster.kubernetes.lints.parts import is_rays, mapping, pod_templates, ray_cluster, worker_groups
from cluster.kubernetes.names import LONGEST
from cluster.kubernetes.workloads import Manifest
from cluster.name_rules import (
    LABEL_CHARS,
    SUBDOMAIN_CHARS,
    is_annotation_key,
    is_dns_1035,
    is_dns_label,
    is_label_key,
    is_label_value,
    is_object_name,
)

_FREE = ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
"""Their names may hold colons and more."""


def lint(manifest: Manifest) -> Iterator[Fault]:
    """Faults of the object's name, namespace and labels, of its pods' labels and of its groups' names."""
    metadata = mapping(manifest, "metadata")
    if isinstance(metadata.get("name"), str):
        yield from _name(manifest, metadata["name"])
    namespace = metadata.get("namespace")
    if isinstance(namespace, str) and not is_dns_label(namespace):
        yield _bad("metadata.namespace", namespace, LABEL_CHARS, "lower-case letters, digits and hyphens")
    yield from _labels("metadata", metadata)
    for pod in pod_templates(manifest):
        if pod.at:
            yield from _labels(pod.field("metadata"), pod.metadata)
    cluster = ray_cluster(manifest)
    for where, group in worker_groups(cluster) if cluster else ():
        yield from _group(where, group)


def _name(manifest: Manifest, name: str) -> Iterator[Fault]:
    kind = str(manifest.get("kind"))
    if is_rays(manifest) and kind in LONGEST:
        if not is_dns_1035(name, LONGEST[kind]):
            letters = "lower-case letters, digits and hyphens, beginning with a letter"
            yield _bad("metadata.name", name, LONGEST[kind], letters)
    elif kind in ("Service", "Namespace"):
        fits = is_dns_1035 if kind == "Service" else is_dns_label
        if not fits(name):
            yield _bad("metadata.name", name, LABEL_CHARS, "lower-case letters, digits and hyphens")
    elif not (kind in _FREE and is_core(str(manifest.get("apiVersion")))) and not is_object_name(name):
        yield _bad("metadata.name", name, SUBDOMAIN_CHARS, "lower-case letters, digits, hyphens and dots")


def _group(where: str, group: dict[str, Any]) -> Iterator[Fault]:
    name = group.get("groupName")
    if isinstance(name, str) and not is_dns_label(name):
        yield _bad(
            f"{where}.groupName", name, LABEL_CHARS,
            "lower-case letters, digits and hyphens: pods' names hold it",
        )  # fmt: skip


def _labels(path: str, metadata: dict[str, Any]) -> Iterator[Fault]:
    yield from label_faults(f"{path}.labels", mapping(metadata, "labels"))
    for key in mapping(metadata, "annotations"):
        if not is_annotation_key(str(key)):
            yield Fault(
                f"{path}.annotations.{key}", None, "That is no key of an annotation.",
                "Write name or example.com/name.",
            )  # fmt: skip


def label_faults(where: str, labels: dict[str, Any]) -> Iterator[Fault]:
    """Keys and values that no label can have, of an object or, in a nodeSelector, of a node."""
    for key, value in labels.items():
        if not is_label_key(str(key)):
            yield Fault(
                f"{where}.{key}", value, "That is no key of a label.", "Write name or example.com/name."
            )
        if isinstance(value, str) and not is_label_value(value):
            yield _bad(f"{where}.{key}", value, LABEL_CHARS, "letters, digits, hyphens, underscores and dots")


def _bad(field: str, value: str, most: int, letters: str) -> Fault:
    length = f", and this has {len(value)}" if len(value) > most else ""
    return Fault(field, value, f"It may have {most} characters{length}: {letters}.", "Choose another name.")
