"""What Prometheus and Grafana get: PodMonitors, alert rules, dashboards, and the GPUs' exporter."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.elsewhere import labels_there, stem
from cluster.kubernetes.names import CLUSTER_LABEL, ROLE_LABEL
from cluster.kubernetes.workloads import Manifest
from cluster.monitoring.prometheus import HAPROXY_JOB
from cluster.monitoring.rules import rule_groups
from runtime.core.errors import ConfigError

METRICS_PORT_NAME = "metrics"
HEAD_PORT_NAMES = ("metrics", "as-metrics", "dash-metrics")
"""Names of container ports. The operator does not add the last two: the head's template declares them."""

HAPROXY_PORT_NAME = "haproxy"
"""Of HAProxy's own metrics, which pods of the RayService declare: the head, and workers with a replica."""

_DCGM_PORT_NAME = "gpu-metrics"
"""Of the Service, as the GPU operator makes it. The pods behind it call theirs ``metrics``, which no
ServiceMonitor sees."""

_INTERVAL = "15s"
_MOST_BYTES = 1 << 20
"""Of a ConfigMap's data."""

_LONGEST_NAME, _HASH_CHARS = 63, 8
_API = "monitoring.coreos.com/v1"


def observing(spec: ClusterSpec, dashboards: Mapping[str, Any]) -> list[Manifest]:
    """Everything of ``monitoring``; nothing where it is not enabled.

    Args:
        dashboards: Grafana's JSON as plain data, by name.

    Raises:
        ConfigError: a dashboard is too large for a ConfigMap.
    """
    if not spec.monitoring.enabled:
        return []
    shown = dashboards if spec.monitoring.dashboards else {}
    return [
        *(_dashboard(spec, name, dashboard) for name, dashboard in sorted(shown.items())),
        _pod_monitor(spec, "head", HEAD_PORT_NAMES),
        _pod_monitor(spec, "worker", (METRICS_PORT_NAME,)),
        *([_dcgm(spec)] if spec.monitoring.dcgm else []),
        _rules(spec),
    ]


def _pod_monitor(spec: ClusterSpec, role: str, ports: tuple[str, ...]) -> Manifest:
    """Scrape the pods themselves.

    A ServiceMonitor would count the head twice: a RayService's head has two Services.
    """
    body = {
        "selector": {"matchLabels": {CLUSTER_LABEL: spec.name, ROLE_LABEL: role}},
        "podMetricsEndpoints": [*(_scraped(port) for port in ports), _haproxy()],
    }
    return _monitoring_object(spec, "PodMonitor", f"{spec.name}-{role}", spec.in_namespace, body)


def _scraped(port: str) -> Manifest:
    """Every one of Ray's dashboards filters on ``ray_io_cluster``, which only the pod's label knows."""
    relabeling = {
        "sourceLabels": ["__meta_kubernetes_pod_label_ray_io_cluster"],
        "targetLabel": "ray_io_cluster",
        "action": "replace",
    }
    return {"port": port, "interval": _INTERVAL, "relabelings": [relabeling]}


def _haproxy() -> Manifest:
    """HAProxy is where a replica is: workers without one have nothing that answers, and are NotReady.

    The job is called as on every other cluster: the alert about nodes that do not answer leaves it out.
    """
    endpoint = _scraped(HAPROXY_PORT_NAME)
    endpoint["relabelings"] += [
        {"sourceLabels": ["__meta_kubernetes_pod_ready"], "regex": "true", "action": "keep"},
        {"targetLabel": "job", "replacement": HAPROXY_JOB, "action": "replace"},
    ]
    return endpoint


def _dcgm(spec: ClusterSpec) -> Manifest:
    """The GPU operator's exporter: one on each GPU node, behind one Service.

    Where the exporter's own Helm chart installed it, that chart brings a ServiceMonitor, too.

    Source: assets/state-dcgm-exporter/0600_service.yaml of NVIDIA/gpu-operator
    """
    body = {
        "selector": {"matchLabels": {"app": "nvidia-dcgm-exporter"}},
        "endpoints": [{"port": _DCGM_PORT_NAME, "interval": _INTERVAL}],
    }
    return _monitoring_object(
        spec, "ServiceMonitor", f"{stem(spec)}-dcgm", spec.monitoring.dcgm_namespace, body
    )


def _rules(spec: ClusterSpec) -> Manifest:
    body = {"groups": rule_groups()}
    return _monitoring_object(spec, "PrometheusRule", f"{spec.name}-alerts", spec.in_namespace, body)


def _monitoring_object(spec: ClusterSpec, kind: str, name: str, namespace: str, body: Manifest) -> Manifest:
    """An object that Prometheus' operator reads, where it has the ``release`` label that it selects by."""
    return {
        "apiVersion": _API,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": labels_there(spec, namespace) | {"release": spec.monitoring.release},
        },
        "spec": body,
    }


def _dashboard(spec: ClusterSpec, name: str, dashboard: Any) -> Manifest:
    """One ConfigMap each, beside Grafana, whose sidecar looks for the label in its own namespace.

    The file is called like the ConfigMap: the sidecar puts all files into one folder.
    """
    text = json.dumps(dashboard, separators=(",", ":"), sort_keys=True)
    size_bytes = len(text.encode())
    if size_bytes > _MOST_BYTES:
        raise ConfigError(
            f"The dashboard {name!r} has {size_bytes} bytes, but a ConfigMap holds {_MOST_BYTES}. Split it, "
            "or set monitoring.dashboards: false and import it in Grafana."
        )
    config_map = _dashboard_name(spec, name)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": config_map,
            "namespace": spec.monitoring.namespace,
            "labels": labels_there(spec, spec.monitoring.namespace) | {"grafana_dashboard": "1"},
        },
        "data": {f"{config_map}.json": text},
    }


def _dashboard_name(spec: ClusterSpec, name: str) -> str:
    """In Kubernetes' letters; what was changed or cut ends in a hash: no two dashboards get one name."""
    whole = f"{stem(spec)}-dashboard-{name}"
    safe = re.sub("[^a-z0-9]+", "-", whole.lower()).strip("-")
    if safe == whole and len(safe) <= _LONGEST_NAME:
        return safe
    mark = hashlib.sha256(whole.encode()).hexdigest()[:_HASH_CHARS]
    return f"{safe[: _LONGEST_NAME - _HASH_CHARS - 1].strip('-')}-{mark}"
