"""Ray clusters: the RayCluster for all, and the cluster part of a RayService and of a RayJob."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cluster.cluster_spec import ClusterSpec, GcsFaultTolerance
from cluster.kubernetes.names import Part, cluster_name, labels, token_secret
from cluster.kubernetes.nodes_told import told_by_config_map
from cluster.kubernetes.pods import CONTAINER_SECURITY, head_pod, worker_pod
from cluster.kubernetes.quantities import resources
from cluster.kubernetes.queueing import queue_annotations, queue_labels
from cluster.kubernetes.workloads import Manifest
from cluster.node_groups import RAYS_SHARE, NodeGroup

RAY_API = "ray.io/v1"
_GIB = 2**30


def raycluster(spec: ClusterSpec) -> Manifest:
    """The RayCluster ``<name>`` of all node groups: for shared training, and for whoever connects to it."""
    autoscales = any(group.autoscales for group in spec.node_groups)
    annotations = queue_annotations(spec, autoscales=autoscales)
    return {
        "apiVersion": RAY_API,
        "kind": "RayCluster",
        "metadata": {
            "name": cluster_name(spec),
            "namespace": spec.in_namespace,
            "labels": labels(spec) | queue_labels(spec),
            **({"annotations": annotations} if annotations else {}),
        },
        "spec": ray_cluster_spec(spec, "shared", spec.node_groups, nodes=told_by_config_map(spec)),
    }


def ray_cluster_spec(
    spec: ClusterSpec,
    part: Part,
    groups: Sequence[NodeGroup],
    *,
    nodes: Manifest,
    volumes: Sequence[Manifest] = (),
    volume_mounts: Sequence[Manifest] = (),
) -> Manifest:
    """The spec of a Ray cluster.

    Args:
        part: Whose it is.
        groups: Its worker groups.
        nodes: The variable that tells Ray's processes how many nodes there may be.
        volumes: For the head, besides those that every pod has.
        volume_mounts: Of these.
    """
    autoscales = any(group.autoscales for group in groups)
    head = head_pod(
        spec, part, autoscales=autoscales, env=[nodes], volumes=volumes, volume_mounts=volume_mounts
    )
    return {
        # The operator chooses its probes by the version, and refuses a token without one.
        "rayVersion": spec.ray_version,
        "authOptions": _auth(spec),
        **(_autoscaling(spec) if autoscales else {}),
        **_fault_tolerance(spec.gcs_fault_tolerance if part == "serving" else None),
        "headGroupSpec": {
            # A string, as all of rayStartParams. No replica and no training worker may be where the cluster's
            # state is; the group's `resources` stay empty, the operator refuses amounts in both.
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0"},
            "template": head,
        },
        "workerGroupSpecs": [
            _group(group, worker_pod(spec, group, part, autoscales=autoscales, env=[nodes]), autoscales)
            for group in groups
        ],
    }


def _group(group: NodeGroup, template: Manifest, autoscales: bool) -> Manifest:
    # Only autoscaler v2 has it for each group, and the operator refuses it without.
    idle = {"idleTimeoutSeconds": group.idle_timeout_s} if autoscales else {}
    return {
        "groupName": group.name,
        "replicas": group.min_nodes,
        "minReplicas": group.min_nodes,
        "maxReplicas": group.max_nodes,
        **idle,
        "rayStartParams": _start_params(group),
        "template": template,
    }


def _start_params(group: NodeGroup) -> dict[str, str]:
    """What Ray is told of a node; CPUs and GPUs the operator takes from the limits.

    Left alone it would give Ray the whole memory limit to hand out, but the object store is in it, too.
    """
    params = {"memory": str(int(group.memory * RAYS_SHARE))}
    if word := group.ray_accelerator_type:
        # A node finds its product by itself. The autoscaler does not: of a group with no node yet it knows
        # only this, and would never make one for a worker that asks for the product. In quotes, for a shell.
        params["resources"] = f"'{json.dumps({f'accelerator_type:{word}': 1})}'"
    return params


def _auth(spec: ClusterSpec) -> dict[str, Any]:
    if spec.auth.mode == "none":
        return {"mode": "disabled"}
    # By name: left out, the operator makes a token of its own for each cluster, which no client knows.
    return {"mode": "token", "secretName": token_secret(spec)}


def _autoscaling(spec: ClusterSpec) -> dict[str, Any]:
    return {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            # Of groups that say nothing; Ray's 60 s end nodes whose engine is still loading.
            "idleTimeoutSeconds": max(group.idle_timeout_s for group in spec.node_groups),
            "imagePullPolicy": spec.image_pull_policy,
            "resources": resources(cpus=0.5, memory_bytes=_GIB),
            "securityContext": CONTAINER_SECURITY,
        },
    }


def _fault_tolerance(redis: GcsFaultTolerance | None) -> dict[str, Any]:
    """Only by this field: Redis in the environment or in annotations as well is refused."""
    if redis is None:
        return {}
    options: dict[str, Any] = {"redisAddress": redis.redis_address}
    if redis.password:
        key = {"name": redis.password.secret, "key": redis.password.key}
        options["redisPassword"] = {"valueFrom": {"secretKeyRef": key}}
    return {"gcsFaultToleranceOptions": options}
