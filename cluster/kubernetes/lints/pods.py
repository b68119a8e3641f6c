"""Pods and their templates: what the creation of pods refuses, long after the operator took the object."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from cluster.kubernetes.faults import Fault
from cluster.kubernetes.lints.names import label_faults
from cluster.kubernetes.lints.parts import At, PodTemplate, mapping, pod_templates, rows, whole, words
from cluster.kubernetes.workloads import Manifest
from cluster.name_rules import is_label_key, is_label_value, is_object_name

_CONTAINER_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_PORT_CHARS = 15
_WORDS = {
    "restartPolicy": ("Always", "OnFailure", "Never"),
    "imagePullPolicy": ("Always", "IfNotPresent", "Never"),
    "protocol": ("TCP", "UDP", "SCTP"),
    "effect": ("NoSchedule", "PreferNoSchedule", "NoExecute"),
    "whenUnsatisfiable": ("DoNotSchedule", "ScheduleAnyway"),
    "operator": ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"),
}


def lint(manifest: Manifest) -> Iterator[Fault]:
    """Faults of all pods and pod templates in an object."""
    for pod in pod_templates(manifest):
        yield from _word(pod.field("spec"), pod.spec, "restartPolicy")
        yield from _volumes(pod)
        yield from _container_names(pod)
        for container in pod.containers():
            yield from _container(pod, container)
        yield from _scheduling(pod)
        yield from _nodes(pod)
        yield from _user(pod)


def _volumes(pod: PodTemplate) -> Iterator[Fault]:
    volumes = list(rows(pod.spec, "volumes", pod.field("spec.volumes")))
    yield from _twice(volumes, "name", "Two volumes of the pod have this name.")
    for where, volume in volumes:
        sources = [name for name in volume if name != "name"]
        if len(sources) > 1:
            yield Fault(
                where, sources, "A volume has one source, and this has several.", "Make a volume of each."
            )


def _container_names(pod: PodTemplate) -> Iterator[Fault]:
    containers = list(pod.containers())
    yield from _twice(containers, "name", "Two containers of the pod have this name.")
    for where, container in containers:
        name = container.get("name")
        if isinstance(name, str) and not _CONTAINER_NAME.fullmatch(name):
            yield Fault(
                f"{where}.name", name, "It may have 63 lower-case letters, digits and hyphens.",
                "Choose another name.",
            )  # fmt: skip
    ports = [port for where, c in containers for port in rows(c, "ports", f"{where}.ports")]
    yield from _twice(ports, "name", "Two ports of the pod have this name.")


def _container(pod: PodTemplate, container: At) -> Iterator[Fault]:
    where, spec = container
    if not spec.get("image"):
        yield Fault(f"{where}.image", spec.get("image"), "There is nothing to run.", "Name an image.")
    yield from _word(where, spec, "imagePullPolicy")
    yield from _env(where, spec)
    yield from _mounts(pod, where, spec)
    yield from _ports(where, spec)
    for name in ("readinessProbe", "livenessProbe", "startupProbe"):
        if isinstance(spec.get(name), dict):
            yield from _probe(f"{where}.{name}", spec[name])


def _env(where: str, spec: dict[str, Any]) -> Iterator[Fault]:
    variables = list(rows(spec, "env", f"{where}.env"))
    yield from _twice(variables, "name", "The container has this variable twice.")
    for at, variable in variables:
        if variable.get("value") and variable.get("valueFrom"):
            yield Fault(at, variable.get("name"), "It has value and valueFrom.", "Leave one of the two out.")


def _mounts(pod: PodTemplate, where: str, spec: dict[str, Any]) -> Iterator[Fault]:
    volumes = words(rows(pod.spec, "volumes", ""), "name")
    mounts = list(rows(spec, "volumeMounts", f"{where}.volumeMounts"))
    yield from _twice(mounts, "mountPath", "Two volumes are mounted there.")
    for at, mount in mounts:
        name = mount.get("name")
        if isinstance(name, str | None) and name not in volumes:
            named = ", ".join(sorted(volumes)) or "none"
            yield Fault(
                f"{at}.name", name, f"The pod has no volume of this name; it has: {named}.",
                "Name one of its volumes, or add the volume.",
            )  # fmt: skip
        path = mount.get("mountPath")
        if isinstance(path, str) and ":" in path:
            yield Fault(f"{at}.mountPath", path, "A path may not hold a colon.", "Choose another path.")


def _ports(where: str, spec: dict[str, Any]) -> Iterator[Fault]:
    for at, port in rows(spec, "ports", f"{where}.ports"):
        yield from _word(at, port, "protocol")
        name, number = port.get("name"), whole(port.get("containerPort"))
        if isinstance(name, str) and (len(name) > _PORT_CHARS or not _PORT_NAME.fullmatch(name)):
            yield Fault(
                f"{at}.name", name, f"It may have {_PORT_CHARS} lower-case letters, digits and hyphens.",
                "Choose a shorter name.",
            )  # fmt: skip
        if number is not None and not 1 <= number <= 65535:
            yield Fault(f"{at}.containerPort", number, "There is no such port.", "Write 1 to 65535.")


def _probe(where: str, probe: dict[str, Any]) -> Iterator[Fault]:
    asks = [name for name in ("exec", "httpGet", "tcpSocket", "grpc") if name in probe]
    if len(asks) != 1:
        yield Fault(where, asks, "A probe asks in one way.", "Write one of exec, httpGet, tcpSocket, grpc.")
    for name in ("timeoutSeconds", "periodSeconds", "failureThreshold", "successThreshold"):
        value = whole(probe.get(name))
        if value is not None and value < 1:
            yield Fault(f"{where}.{name}", value, "It is too small.", "Write 1 or more.")


def _scheduling(pod: PodTemplate) -> Iterator[Fault]:
    for at, toleration in rows(pod.spec, "tolerations", pod.field("spec.tolerations")):
        yield from _word(at, toleration, "effect")
        if toleration.get("operator") == "Exists" and toleration.get("value"):
            yield Fault(
                f"{at}.value", toleration["value"], "Exists compares nothing.", "Write operator: Equal."
            )
        key, value = toleration.get("key"), toleration.get("value")
        if isinstance(key, str) and key and not is_label_key(key):
            yield Fault(f"{at}.key", key, "No taint can have this key.", "Write name or example.com/name.")
        if isinstance(value, str) and not is_label_value(value):
            yield Fault(f"{at}.value", value, "No taint can have this value.", "Copy the taint's own.")
        if "tolerationSeconds" in toleration and toleration.get("effect") != "NoExecute":
            yield Fault(
                f"{at}.effect", toleration.get("effect"), "tolerationSeconds need it.", "Write NoExecute."
            )
    spread = "topologySpreadConstraints"
    for at, constraint in rows(pod.spec, spread, pod.field(f"spec.{spread}")):
        yield from _word(at, constraint, "whenUnsatisfiable")
        if (whole(constraint.get("maxSkew")) or 1) < 1:
            yield Fault(f"{at}.maxSkew", constraint["maxSkew"], "It is too small.", "Write 1 or more.")
    for at, expression in _expressions(pod):
        yield from _word(at, expression, "operator")
        compares = expression.get("operator") in ("In", "NotIn")
        if compares != bool(expression.get("values")) and expression.get("operator") not in ("Gt", "Lt"):
            why = (
                "In and NotIn compare with values." if compares else "Exists and DoesNotExist have no values."
            )
            yield Fault(f"{at}.values", expression.get("values"), why, "Change operator or values.")


def _nodes(pod: PodTemplate) -> Iterator[Fault]:
    """Labels of nodes that no node can have."""
    yield from label_faults(pod.field("spec.nodeSelector"), mapping(pod.spec, "nodeSelector"))
    for at, expression in _expressions(pod):
        key, values = expression.get("key"), expression.get("values")
        if isinstance(key, str) and not is_label_key(key):
            yield Fault(f"{at}.key", key, "No node can have this label.", "Write name or example.com/name.")
        for index, value in enumerate(values if isinstance(values, list) else ()):
            if isinstance(value, str) and not is_label_value(value):
                yield Fault(
                    f"{at}.values[{index}]", value, "No label can have this value.",
                    "Copy that of the nodes: kubectl get nodes --show-labels.",
                )  # fmt: skip


def _expressions(pod: PodTemplate) -> Iterator[At]:
    """What the pod wants of its node."""
    path = "affinity.nodeAffinity"
    node = mapping(pod.spec, "affinity", "nodeAffinity")
    must = "requiredDuringSchedulingIgnoredDuringExecution"
    terms = rows(mapping(node, must), "nodeSelectorTerms", pod.field(f"spec.{path}.{must}.nodeSelectorTerms"))
    for at, term in terms:
        yield from rows(term, "matchExpressions", f"{at}.matchExpressions")


def _user(pod: PodTemplate) -> Iterator[Fault]:
    account = pod.spec.get("serviceAccountName")
    if isinstance(account, str) and account and not is_object_name(account):
        yield Fault(
            pod.field("spec.serviceAccountName"), account, "No service account can be called so.",
            "Use lower-case letters, digits, hyphens and dots.",
        )  # fmt: skip
    security = mapping(pod.spec, "securityContext")
    if security.get("runAsNonRoot") and security.get("runAsUser") == 0:
        yield Fault(
            pod.field("spec.securityContext.runAsUser"), 0, "runAsNonRoot is true, and 0 is root.",
            "Write the image's user.",
        )  # fmt: skip
    grace = whole(pod.spec.get("terminationGracePeriodSeconds"))
    if grace is not None and grace < 0:
        where = pod.field("spec.terminationGracePeriodSeconds")
        yield Fault(where, grace, "It cannot be negative.", "Write 0 or more.")


def _word(where: str, holder: dict[str, Any], name: str) -> Iterator[Fault]:
    value = holder.get(name)
    if isinstance(value, str) and value not in _WORDS[name]:
        yield Fault(f"{where}.{name}", value, "There is no such word.", f"Write {', '.join(_WORDS[name])}.")


def _twice(entries: Iterable[At], key: str, why: str) -> Iterator[Fault]:
    seen: set[str] = set()
    for where, entry in entries:
        value = entry.get(key)
        if not isinstance(value, str):
            continue
        if value in seen:
            yield Fault(f"{where}.{key}", value, why, "Leave one out, or rename it.")
        seen.add(value)
