"""What a drained node may take away: the PodDisruptionBudget of serving, and why there is no other."""

from __future__ import annotations

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.names import CLUSTER_LABEL, PART_LABEL, ROLE_LABEL, labels
from cluster.kubernetes.workloads import Manifest


def disruption(spec: ClusterSpec, has_apps: bool) -> list[Manifest]:
    """The budget of the workers that serve; nothing without apps, or where one node is all there can be.

    The last ready worker is not evicted: add a replica elsewhere first. There is none

    - for the only node of a cluster: each drain would be blocked, and nothing kept up by that;
    - for heads: a budget of one pod blocks every drain until somebody deletes the head by hand, which takes
      Ray down all the same. The cloud's autoscaler leaves heads alone (``safe-to-evict``), and with
      ``gcs_fault_tolerance`` replicas go on while a new head starts;
    - for training: a drain tells the run, which goes on elsewhere from its last checkpoint.
    """
    if not has_apps or sum(group.max_nodes for group in spec.node_groups) < 2:
        return []
    return [_serving(spec)]


def _serving(spec: ClusterSpec) -> Manifest:
    # By our labels: ray.io/cluster changes with every upgrade.
    selected = {CLUSTER_LABEL: spec.name, PART_LABEL: "serving", ROLE_LABEL: "worker"}
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {
            "name": f"{spec.name}-serving",
            "namespace": spec.in_namespace,
            "labels": labels(spec),
        },
        "spec": {
            "selector": {"matchLabels": selected},
            # Not maxUnavailable, nor a percentage: both ask the pods' owner how many there should be, and a
            # RayCluster has no scale subresource, so Kubernetes would let nothing be evicted at all. And
            # workers without a replica are NotReady by design: they would count as unavailable.
            # https://kubernetes.io/docs/tasks/run-application/configure-pdb/
            "minAvailable": 1,
            # Those workers must not hold up a drain.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
