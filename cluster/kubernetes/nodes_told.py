"""How large a cluster may become, told to its Ray processes: what only nodes to come could hold waits."""

from __future__ import annotations

from collections.abc import Iterable

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.names import labels
from cluster.kubernetes.workloads import Manifest
from cluster.node_groups import NodeGroup
from cluster.nodes_to_come import VARIABLE, nodes_to_come_env

_KEY = "groups.json"


def told(groups: Iterable[NodeGroup]) -> Manifest:
    """The variable of a container, for a cluster that nobody changes: a training job's own."""
    return {"name": VARIABLE, "value": nodes_to_come_env(groups)[VARIABLE]}


def told_by_config_map(spec: ClusterSpec) -> Manifest:
    """The variable of a container, for a cluster of all node groups.

    By reference: a value in the pods' template would make another template of every change of a group's size,
    and of that the operator makes a second cluster beside the first.
    """
    reference = {"name": _name(spec), "key": _KEY, "optional": True}
    return {"name": VARIABLE, "valueFrom": {"configMapKeyRef": reference}}


def nodes_config_map(spec: ClusterSpec) -> Manifest:
    """What that variable refers to."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": _name(spec), "namespace": spec.in_namespace, "labels": labels(spec)},
        "data": {_KEY: nodes_to_come_env(spec.node_groups)[VARIABLE]},
    }


def _name(spec: ClusterSpec) -> str:
    return f"{spec.name}-nodes"
