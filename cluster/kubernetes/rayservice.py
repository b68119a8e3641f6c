"""The RayService: all serve apps, on a Ray cluster that the operator upgrades."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.endpoint import serve_service
from cluster.kubernetes.names import labels, service_name
from cluster.kubernetes.nodes_told import told_by_config_map
from cluster.kubernetes.pod_env import deletion_delay_s
from cluster.kubernetes.queueing import serving_queue_labels
from cluster.kubernetes.raycluster import RAY_API, ray_cluster_spec
from cluster.kubernetes.workloads import Manifest, ServeApp
from runtime.core.errors import ConfigError

_TYPES = {
    # The CRD takes any word here; the operator refuses all but these.
    "new_cluster": "NewCluster",
    "incremental": "NewClusterWithIncrementalUpgrade",
    "none": "None",
}
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""What JSON has bare and YAML takes for a line's end or refuses. Not all beyond ASCII: an emoji's two escapes
are one character in JSON, and none in YAML."""

_STEP_PERCENT = 25
_STEP_SECONDS = 60


def rayservice(spec: ClusterSpec, apps: Sequence[ServeApp]) -> Manifest:
    """The RayService ``<name>-serve`` with ``apps``, the front among them.

    Raises:
        ConfigError: two apps have one name, or the upgrade cannot work.
    """
    longest_shutdown_s = max((app.graceful_shutdown_timeout_s for app in apps), default=0.0)
    return {
        "apiVersion": RAY_API,
        "kind": "RayService",
        "metadata": {
            "name": service_name(spec),
            "namespace": spec.in_namespace,
            "labels": labels(spec) | serving_queue_labels(spec),
        },
        "spec": {
            "serveConfigV2": serve_config(apps),
            "upgradeStrategy": _upgrade_strategy(spec),
            "rayClusterDeletionDelaySeconds": deletion_delay_s(spec, longest_shutdown_s),
            # It has no replica, and the cluster's state is there.
            "excludeHeadPodFromServeSvc": True,
            **serve_service(spec),
            "rayClusterConfig": ray_cluster_spec(
                spec, "serving", spec.node_groups, nodes=told_by_config_map(spec)
            ),
        },
    }


def serve_config(apps: Sequence[ServeApp]) -> str:
    """Serve's config as the operator wants it: text in YAML, of which JSON is a part, quotes and all.

    Raises:
        ConfigError: two apps have one name.
    """
    names = [app.name for app in apps]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"name is {twice!r} in two serve specs. Give each app a name of its own.")
    config = {
        "proxy_location": "EveryNode",
        # Of pods: behind Services and network policies.
        "http_options": {"host": "0.0.0.0", "port": 8000},
        "applications": [dict(app.application) for app in apps],
    }
    text = json.dumps(config, indent=2, ensure_ascii=False)
    return _NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _upgrade_strategy(spec: ClusterSpec) -> dict[str, Any]:
    strategy: dict[str, Any] = {"type": _TYPES[spec.serving.upgrade]}
    if spec.serving.upgrade == "incremental":
        _check_autoscales(spec)
        strategy["clusterUpgradeOptions"] = {
            "gatewayClassName": spec.serving.gateway_class_name,
            # A step may not be larger than what the new cluster may have beyond the whole.
            "maxSurgePercent": _STEP_PERCENT,
            "stepSizePercent": _STEP_PERCENT,
            "intervalSeconds": _STEP_SECONDS,
        }
    return strategy


def _check_autoscales(spec: ClusterSpec) -> None:
    if not any(group.autoscales for group in spec.node_groups):
        raise ConfigError(
            "serving.upgrade is 'incremental', which moves nodes from the old cluster to the new one with "
            "Ray's autoscaler, but no node group autoscales. Give a group min and max instead of count, or "
            "set serving.upgrade: new_cluster."
        )
