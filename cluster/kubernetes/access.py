"""Who the pods are and what they may ask of Kubernetes: namespace, service accounts, a role."""

from __future__ import annotations

from typing import Literal

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.names import labels, service_account
from cluster.kubernetes.workloads import Manifest

_IDENTITY = "iam.gke.io/gcp-service-account"


def access(spec: ClusterSpec) -> list[Manifest]:
    """Namespace, service accounts, and the Role and RoleBinding of Ray's autoscaler."""
    return [*_namespaces(spec), *_service_accounts(spec), *_autoscaler(spec)]


def pod_security(spec: ClusterSpec) -> str:
    """The pod security standard that the namespace enforces.

    ``restricted`` (non-root, no capabilities), which all our pods keep to. A folder of the node is refused by
    ``restricted`` and by ``baseline``: with ``store.host_path`` it has to be ``privileged``.

    Source: https://kubernetes.io/docs/concepts/security/pod-security-standards/
    """
    return "privileged" if spec.store.host_path else "restricted"


def _namespaces(spec: ClusterSpec) -> list[Manifest]:
    name = spec.in_namespace
    # These are there in every cluster, and others' pods run in them: not ours to label.
    if name == "default" or name.startswith("kube-"):
        return []
    enforced = {"pod-security.kubernetes.io/enforce": pod_security(spec)}
    metadata = {"name": name, "labels": labels(spec) | enforced}
    return [{"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}]


def _service_accounts(spec: ClusterSpec) -> list[Manifest]:
    """One for serving, one for training, one for heads: what one may do in a cloud, the other need not.

    None has a token for the API server by itself; the pod of a head that autoscales asks for it. Workload
    Identity and its like need none: they ask the node's metadata server, or mount their own.
    """
    parts: tuple[Literal["serving", "training", "head"], ...] = ("serving", "training", "head")
    return [_service_account(spec, service_account(spec, part)) for part in parts]


def _service_account(spec: ClusterSpec, name: str) -> Manifest:
    metadata = _metadata(spec, name)
    annotations = dict(spec.store.service_account_annotations)
    if spec.store.service_account:
        annotations[_IDENTITY] = spec.store.service_account
    if annotations:
        metadata["annotations"] = annotations
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata,
        "automountServiceAccountToken": False,
    }


def _autoscaler(spec: ClusterSpec) -> list[Manifest]:
    """What Ray's autoscaler does: it looks at pods, and changes the replicas of its RayCluster.

    Always there: a job with more or fewer workers autoscales on groups of any kind, and jobs come later.
    No names of RayClusters stand in the role: those of a RayService and of RayJobs are made by the operator.
    """
    name = f"{spec.name}-autoscaler"
    rules = [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "patch"]},
        {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["get", "patch"]},
    ]
    head = {
        "kind": "ServiceAccount",
        "name": service_account(spec, "head"),
        "namespace": spec.in_namespace,
    }
    api = "rbac.authorization.k8s.io"
    common = {"apiVersion": f"{api}/v1", "metadata": _metadata(spec, name)}
    return [
        {**common, "kind": "Role", "rules": rules},
        {
            **common,
            "kind": "RoleBinding",
            "roleRef": {"apiGroup": api, "kind": "Role", "name": name},
            "subjects": [head],
        },
    ]


def _metadata(spec: ClusterSpec, name: str) -> Manifest:
    return {"name": name, "namespace": spec.in_namespace, "labels": labels(spec)}
