"""Preflight: KubeRay, the Prometheus operator and the batch scheduler that the spec counts on. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.findings import Finding
from cluster.kubernetes.workloads import Manifest

WANTED = (1, 7)
"""The KubeRay whose resources Tandem's manifests are checked against."""
_IMAGE = re.compile(r"kuberay[/-]operator\S*?:v?(\d+)\.(\d+)")
_HELM = "helm upgrade --install kuberay-operator kuberay/kuberay-operator --version 1.7.0"
_DEFINITIONS = (
    "kubectl apply --server-side --force-conflicts --kustomize "
    "'https://github.com/ray-project/kuberay/ray-operator/config/crd?ref=v1.7.0'"
)
_SCHEDULERS = {"volcano": "volcano", "kai": "kai-scheduler"}
"""KubeRay's word for each, of ``--batch-scheduler``."""


def check_kuberay(
    spec: ClusterSpec, *, knows_kinds: bool, crd: Manifest | None, deployments: Sequence[Manifest]
) -> list[Finding]:
    """Whether KubeRay runs, and knows what our manifests say.

    Args:
        knows_kinds: Whether the API server has RayCluster, RayService and RayJob.
        crd: The definition of RayCluster; None where it may not be read.
    """
    if not knows_kinds:
        return [
            Finding(
                "error",
                "KubeRay",
                "the cluster does not know RayCluster, RayService and RayJob (ray.io/v1).",
                "They are what Tandem makes.",
                f"Install it: {_HELM}",
            )
        ]
    operators = [one for one in deployments if _image(one)]
    return [*_schema(spec, crd), _running(operators, crd is not None), *_flags(spec, operators)]


def _schema(spec: ClusterSpec, crd: Manifest | None) -> list[Finding]:
    """The schema is the reliable sign: an image may have any tag, and Helm does not upgrade definitions."""
    fields = ray_cluster_fields(crd) if crd else None
    if fields is None or spec.auth.mode == "none":
        return []
    if "secretName" in (fields.get("authOptions") or {}).get("properties", {}):
        return []
    return [
        Finding(
            "error",
            "KubeRay",
            "RayCluster has no spec.authOptions.secretName here: its definition is older than KubeRay 1.7.",
            "auth.mode is token, and the API server would refuse the field, or drop it: the dashboard and "
            "the job API would be open to all who reach them.",
            f"Upgrade the definitions, which Helm leaves as they are: {_DEFINITIONS}; then: {_HELM}",
        )
    ]


def ray_cluster_fields(crd: Manifest) -> Mapping[str, Any] | None:
    """The schemas of ``spec``'s fields in version v1 of a RayCluster's definition; None without one."""
    for version in (crd.get("spec") or {}).get("versions") or []:
        if version["name"] == "v1" and "schema" in version:
            schema = version["schema"]["openAPIV3Schema"]
            return schema.get("properties", {}).get("spec", {}).get("properties")
    return None


def _running(operators: Sequence[Manifest], schema_was_read: bool) -> Finding:
    if not operators:
        return Finding(
            "warning",
            "KubeRay",
            "its kinds are there, but no Deployment with an image kuberay/operator was found.",
            "Without an operator nothing comes of what is applied.",
            f"Where it runs under another image, all is well. Else: {_HELM}",
        )
    ready = [one for one in operators if (one.get("status") or {}).get("readyReplicas", 0)]
    named = ", ".join(
        f"{one['metadata']['namespace']}/{one['metadata']['name']} ({_image(one)})" for one in operators
    )
    if not ready:
        return Finding(
            "error",
            "KubeRay",
            f"the operator {named} has no ready pod.",
            "Until it runs, nothing comes of what is applied.",
            f"Look at it: kubectl describe deployment {operators[0]['metadata']['name']} --namespace "
            f"{operators[0]['metadata']['namespace']}",
        )
    version = _version(ready[0])
    if version is not None and version < WANTED:
        return Finding(
            # The schema says for certain what is too old; where it was read and passed, this is a doubt.
            "warning" if schema_was_read else "error",
            "KubeRay",
            f"the operator is {version[0]}.{version[1]}: {named}.",
            "Tandem's manifests are made for, and checked against, KubeRay 1.7.",
            _HELM,
        )
    return Finding("ok", "KubeRay", f"{named}.")


def _flags(spec: ClusterSpec, operators: Sequence[Manifest]) -> list[Finding]:
    """What the operator must have been started with."""
    flags = " ".join(word for one in operators for word in _words(one))
    found = []
    scheduler = _SCHEDULERS.get(spec.queueing.kind)
    if operators and scheduler and f"--batch-scheduler={scheduler}" not in flags and "--config" not in flags:
        found.append(
            Finding(
                "error",
                "queueing",
                f"queueing.kind is {spec.queueing.kind}, but the KubeRay operator has no --batch-scheduler="
                f"{scheduler}.",
                "Then it makes no pod group, and pods of a job start one by one.",
                f"{_HELM} --reuse-values --set batchScheduler.name={scheduler}",
            )
        )
    if spec.serving.upgrade == "incremental" and "RayServiceIncrementalUpgrade=false" in flags:
        found.append(
            Finding(
                "error",
                "KubeRay",
                "serving.upgrade is incremental, but the gate RayServiceIncrementalUpgrade is false.",
                "It then takes no RayService with such an upgrade.",
                "Set that feature gate of the operator to true, or serving.upgrade: new_cluster.",
            )
        )
    return found


def check_monitoring(
    spec: ClusterSpec, *, knows_kinds: bool, prometheuses: Sequence[Manifest]
) -> list[Finding]:
    """Whether the Prometheus operator is there, and a Prometheus that takes our monitors.

    Args:
        knows_kinds: Whether the API server has PodMonitor, ServiceMonitor and PrometheusRule.
        prometheuses: The Prometheus objects.
    """
    if not spec.monitoring.enabled:
        return []
    if not knows_kinds:
        return [
            Finding(
                "error",
                "monitoring",
                "the cluster does not know PodMonitor and PrometheusRule (monitoring.coreos.com/v1).",
                "monitoring.enabled is true, and they are how Prometheus is told what to scrape.",
                f"helm install {spec.monitoring.release} prometheus-community/kube-prometheus-stack "
                f"--namespace {spec.monitoring.namespace} --create-namespace, or monitoring.enabled: false.",
            )
        ]
    if prometheuses and not any(_takes(one, spec.monitoring.release) for one in prometheuses):
        wanted = [(one.get("spec") or {}).get("podMonitorSelector") for one in prometheuses]
        return [
            Finding(
                "warning",
                "monitoring",
                f"no Prometheus selects PodMonitors with release={spec.monitoring.release}; they select "
                f"{', '.join(map(str, wanted))}.",
                "Our monitors would be there and nobody would read them.",
                "Set monitoring.release to the label's value (with kube-prometheus-stack: the Helm release).",
            )
        ]
    return [Finding("ok", "monitoring", "the Prometheus operator's kinds are there.")]


def _takes(prometheus: Manifest, release: str) -> bool:
    selector = (prometheus.get("spec") or {}).get("podMonitorSelector")
    if selector is None or selector.get("matchExpressions"):
        # None: no monitor at all. Expressions are more than we read: they get the benefit of the doubt.
        return selector is not None
    labels = selector.get("matchLabels") or {}
    return all(key == "release" and value == release for key, value in labels.items())


def _image(deployment: Manifest) -> str | None:
    """The image of KubeRay's operator; None where the Deployment has none."""
    containers = deployment["spec"]["template"]["spec"].get("containers") or []
    return next(
        (one["image"] for one in containers if re.search("kuberay[/-]operator", one.get("image", ""))), None
    )


def _version(deployment: Manifest) -> tuple[int, int] | None:
    found = _IMAGE.search(_image(deployment) or "")
    return (int(found[1]), int(found[2])) if found else None


def _words(deployment: Manifest) -> list[str]:
    containers = deployment["spec"]["template"]["spec"].get("containers") or []
    return [word for one in containers for word in (*(one.get("command") or ()), *(one.get("args") or ()))]
