"""Names and labels: how long they may be, and in which letters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from cluster.kubernetes.core_kinds import is_core
from cluster.kubernetes.faults import Fault
from cluster.kubernetes.lints.parts import is_rays, mapping, pod_templates, ray_cluster, worker_groups
from cluster.kubernetes.names import LONGEST
from cluster.kubernetes.workloads import Manifest

_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_DNS_1123 = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(rf"{_DNS_1123.pattern}(\.{_DNS_1123.pattern})*")
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_PREFIX_CHARS, _LABEL_CHARS = 253, 63
_FREE = ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
"""Their names may hold colons and more."""


def lint(manifest: Manifest) -> Iterator[Fault]:
    """Faults of the object's name, namespace and labels, of its pods' labels and of its groups' names."""
    metadata = mapping(manifest, "metadata")
    if isinstance(metadata.get("name"), str):
        yield from _name(manifest, metadata["name"])
    namespace = metadata.get("namespace")
    if isinstance(namespace, str) and not _fits(_DNS_1123, namespace, _LABEL_CHARS):
        yield _bad("metadata.namespace", namespace, _LABEL_CHARS, "lower-case letters, digits and hyphens")
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
        if not _fits(_DNS_1035, name, LONGEST[kind]):
            letters = "lower-case letters, digits and hyphens, beginning with a letter"
            yield _bad("metadata.name", name, LONGEST[kind], letters)
    elif kind in ("Service", "Namespace"):
        pattern = _DNS_1035 if kind == "Service" else _DNS_1123
        if not _fits(pattern, name, _LABEL_CHARS):
            yield _bad("metadata.name", name, _LABEL_CHARS, "lower-case letters, digits and hyphens")
    elif not (kind in _FREE and is_core(str(manifest.get("apiVersion")))) and not _fits(
        _SUBDOMAIN, name, 253
    ):
        yield _bad("metadata.name", name, 253, "lower-case letters, digits, hyphens and dots")


def _group(where: str, group: dict[str, Any]) -> Iterator[Fault]:
    name = group.get("groupName")
    if isinstance(name, str) and not _fits(_DNS_1123, name, _LABEL_CHARS):
        yield _bad(
            f"{where}.groupName", name, _LABEL_CHARS,
            "lower-case letters, digits and hyphens: pods' names hold it",
        )  # fmt: skip


def _labels(path: str, metadata: dict[str, Any]) -> Iterator[Fault]:
    for key, value in mapping(metadata, "labels").items():
        where = f"{path}.labels.{key}"
        if not _is_key(str(key)):
            yield Fault(where, value, "That is no key of a label.", "Write name or example.com/name.")
        if isinstance(value, str) and not _fits(_LABEL, value, _LABEL_CHARS):
            yield _bad(where, value, _LABEL_CHARS, "letters, digits, hyphens, underscores and dots")
    for key in mapping(metadata, "annotations"):
        if not _is_key(str(key)):
            yield Fault(
                f"{path}.annotations.{key}", None, "That is no key of an annotation.",
                "Write name or example.com/name.",
            )  # fmt: skip


def _is_key(key: str) -> bool:
    prefix, slash, name = key.rpartition("/")
    good_prefix = not slash or _fits(_SUBDOMAIN, prefix, _PREFIX_CHARS)
    return good_prefix and bool(name) and _fits(_LABEL, name, _LABEL_CHARS)


def _fits(pattern: re.Pattern[str], text: str, most: int) -> bool:
    return len(text) <= most and bool(pattern.fullmatch(text))


def _bad(field: str, value: str, most: int, letters: str) -> Fault:
    length = f", and this has {len(value)}" if len(value) > most else ""
    return Fault(field, value, f"It may have {most} characters{length}: {letters}.", "Choose another name.")
