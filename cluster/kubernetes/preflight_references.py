"""Preflight: what the spec only names and others make: Secrets, classes, claims, queues."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.endpoint import endpoint_name
from cluster.kubernetes.findings import Finding
from cluster.kubernetes.workloads import Manifest

_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
_DISKS = (
    "pd.csi.storage.gke.io", "ebs.csi.aws.com", "disk.csi.azure.com", "rancher.io/local-path",
    "cinder.csi.openstack.org", "kubernetes.io/gce-pd", "kubernetes.io/aws-ebs",
    "kubernetes.io/no-provisioner",
)  # fmt: skip
"""Provisioners of volumes that one node mounts."""
_QUEUES = {
    "kueue": (("kueue.x-k8s.io/v1beta2", "kueue.x-k8s.io/v1beta1"), "LocalQueue"),
    "volcano": (("scheduling.volcano.sh/v1beta1",), "Queue"),
    "kai": (("scheduling.run.ai/v2",), "Queue"),
}


@dataclass(frozen=True)
class SecretNamed:
    """A Secret that the spec names."""

    field: str
    name: str
    keys: tuple[str, ...]


def secrets_named(spec: ClusterSpec) -> list[SecretNamed]:
    """All of them, with the keys that pods read."""
    store, redis = spec.store, spec.gcs_fault_tolerance
    found = [
        SecretNamed("image_pull_secrets", one, (".dockerconfigjson",)) for one in spec.image_pull_secrets
    ]
    if store.key_file:
        found.append(SecretNamed("store.key_file", store.key_file.secret, (store.key_file.key,)))
    if store.access_key:
        keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        found.append(SecretNamed("store.access_key", store.access_key, keys))
    if redis and redis.password:
        found.append(
            SecretNamed("gcs_fault_tolerance.password", redis.password.secret, (redis.password.key,))
        )
    if spec.endpoint.tls_secret:
        found.append(SecretNamed("endpoint.tls_secret", spec.endpoint.tls_secret, ("tls.crt", "tls.key")))
    if spec.auth.mode == "token" and spec.auth.secret:
        found.append(SecretNamed("auth.secret", spec.auth.secret, ("auth_token",)))
    return found


def check_secrets(client: Kubernetes, spec: ClusterSpec) -> list[Finding]:
    """Each named Secret: whether it is there and has its keys. Values are neither kept nor told."""
    named = secrets_named(spec)
    if named and client.get("v1", "Namespace", spec.in_namespace) is None:
        first = f"kubectl create namespace {spec.in_namespace}; "
    else:
        first = ""
    return [_secret(client, spec, one, first) for one in named]


def _secret(client: Kubernetes, spec: ClusterSpec, named: SecretNamed, first: str) -> Finding:
    found = client.get("v1", "Secret", named.name, spec.in_namespace)
    place = f"Secret {spec.in_namespace}/{named.name}"
    topic, why = named.field, "Pods that read it do not start without it."
    if found is None:
        return Finding("error", topic, f"{place} is not there.", why, f"Make it: {first}{_make(spec, named)}")
    missing = [key for key in named.keys if key not in (found.get("data") or {})]
    if missing:
        return Finding(
            "error",
            topic,
            f"{place} has no key {', '.join(missing)}.",
            why,
            f"Make it anew: {_make(spec, named)}",
        )
    return Finding("ok", topic, f"{place} has {', '.join(named.keys)}.")


def _make(spec: ClusterSpec, named: SecretNamed) -> str:
    end = f"--namespace {spec.in_namespace}"
    if named.field == "endpoint.tls_secret":
        return f"kubectl create secret tls {named.name} --cert=tls.crt --key=tls.key {end}"
    if named.field == "image_pull_secrets":
        file = "--from-file=.dockerconfigjson=config.json --type=kubernetes.io/dockerconfigjson"
        return f"kubectl create secret generic {named.name} {file} {end}"
    files = " ".join(f"--from-file={key}=FILE" for key in named.keys)
    return f"kubectl create secret generic {named.name} {files} {end}"


def check_storage(client: Kubernetes, spec: ClusterSpec) -> list[Finding]:
    """The claim or storage class that the store names, and whether there is a default class."""
    found, nfs = [], spec.store.nfs
    if nfs and nfs.claim:
        found.append(_claim(client.get("v1", "PersistentVolumeClaim", nfs.claim, spec.in_namespace), spec))
    classes = client.list("storage.k8s.io/v1", "StorageClass")
    if nfs and nfs.storage_class:
        found.append(_class(nfs.storage_class, classes))
    return [*found, *_default_class(spec, classes)]


def _claim(claim: Manifest | None, spec: ClusterSpec) -> Finding:
    assert spec.store.nfs is not None
    name = f"PersistentVolumeClaim {spec.in_namespace}/{spec.store.nfs.claim}"
    remedy = (
        "Make a claim with accessModes: [ReadWriteMany], or name an export (server, path) or a storage_class."
    )
    if claim is None:
        return Finding("error", "store.nfs.claim", f"{name} is not there.", "It holds the store.", remedy)
    modes = (claim.get("spec") or {}).get("accessModes") or []
    if "ReadWriteMany" not in modes:
        why = "Pods on a second node could not mount it."
        return Finding("error", "store.nfs.claim", f"{name} is {', '.join(modes)}.", why, remedy)
    return Finding("ok", "store.nfs.claim", f"{name} is ReadWriteMany.")


def _class(name: str, classes: Sequence[Manifest]) -> Finding:
    topic, names = "store.nfs.storage_class", [one["metadata"]["name"] for one in classes]
    found = next((one for one in classes if one["metadata"]["name"] == name), None)
    if found is None:
        there = ", ".join(names) or "none"
        return Finding(
            "error", topic, f"there is no StorageClass {name}; there are: {there}.",
            "The store's claim would stay Pending.", "Name one whose volumes are ReadWriteMany.",
        )  # fmt: skip
    if found.get("provisioner") in _DISKS:
        return Finding(
            "error", topic, f"StorageClass {name} makes disks ({found['provisioner']}).",
            "One node mounts a disk; the store is mounted by all.",
            "Name a class of a file system: Filestore, EFS, Azure Files, CephFS, an NFS provisioner.",
        )  # fmt: skip
    return Finding("ok", topic, f"StorageClass {name} ({found.get('provisioner')}).")


def _default_class(spec: ClusterSpec, classes: Sequence[Manifest]) -> list[Finding]:
    notes = [one["metadata"].get("annotations") or {} for one in classes]
    if any(one.get(_DEFAULT_CLASS) == "true" for one in notes):
        return [Finding("ok", "storage classes", "there is a default StorageClass.")]
    needs = ["Prometheus and Grafana"] if spec.monitoring.enabled else []
    needs += ["Redis"] if spec.gcs_fault_tolerance else []
    if not needs:
        return []
    there = ", ".join(one["metadata"]["name"] for one in classes) or "none"
    return [
        Finding(
            "warning",
            "storage classes",
            f"no default StorageClass; there are: {there}.",
            f"Tandem's own claims name theirs, but {' and '.join(needs)} with a disk would wait for ever.",
            f'kubectl annotate storageclass NAME {_DEFAULT_CLASS}="true"',
        )
    ]


def check_doors(client: Kubernetes, spec: ClusterSpec) -> list[Finding]:
    """The GatewayClasses and the IngressClass that the spec names, and whose the load balancer is."""
    wanted = [("serving.gateway_class_name", spec.serving.gateway_class_name)]
    if spec.endpoint.kind == "Gateway":
        wanted.append(("endpoint.class_name", spec.endpoint.class_name))
    found = [_gateway_class(client, field, name) for field, name in wanted if name]
    if spec.endpoint.kind == "Ingress" and spec.endpoint.class_name and spec.provider != "gke":
        found += _ingress_class(client, spec.endpoint.class_name)
    return found + _balancer(client, spec)


def _balancer(client: Kubernetes, spec: ClusterSpec) -> list[Finding]:
    """The class that a cloud's webhook gave the Service, which the operator would leave out."""
    name, given = endpoint_name(spec), spec.endpoint.load_balancer_class
    if spec.endpoint.kind != "LoadBalancer":
        return []
    service = client.get("v1", "Service", name, spec.in_namespace) or {}
    there = (service.get("spec") or {}).get("loadBalancerClass")
    if there in (None, given):
        return []
    return [
        Finding(
            "error", "endpoint.load_balancer_class", f"Service {name} has {there}, and the spec {given}.",
            "Nobody can change it: KubeRay would be refused when it turns the Service to a new cluster, and "
            "that upgrade would never end.", f"Write endpoint.load_balancer_class: {there}.",
        )
    ]  # fmt: skip


def _gateway_class(client: Kubernetes, field: str, name: str) -> Finding:
    kind = ("gateway.networking.k8s.io/v1", "GatewayClass")
    why, remedy = (
        "Nobody would make a Gateway of it.",
        "Install a Gateway controller, or name one of its classes.",
    )
    if not client.has(*kind):
        return Finding("error", field, "the cluster does not know the Gateway API.", why, remedy)
    names = [one["metadata"]["name"] for one in client.list(*kind)]
    if name in names:
        return Finding("ok", field, f"GatewayClass {name} is there.")
    there = ", ".join(names) or "none"
    return Finding("error", field, f"there is no GatewayClass {name}; there are: {there}.", why, remedy)


def _ingress_class(client: Kubernetes, name: str) -> Iterator[Finding]:
    kind, field = ("networking.k8s.io/v1", "IngressClass"), "endpoint.class_name"
    names = [one["metadata"]["name"] for one in client.list(*kind)]
    if name in names:
        yield Finding("ok", field, f"IngressClass {name} is there.")
        return
    there = ", ".join(names) or "none"
    yield Finding(
        "error", field, f"there is no IngressClass {name}; there are: {there}.",
        "No controller would take the Ingress.", "Install an Ingress controller, or name one of its classes.",
    )  # fmt: skip


def check_queue(client: Kubernetes, spec: ClusterSpec) -> list[Finding]:
    """The queue that training jobs go through."""
    if spec.queueing.kind == "none":
        return []
    versions, kind = _QUEUES[spec.queueing.kind]
    version = next((one for one in versions if client.has(one, kind)), None)
    if version is None:
        return [
            Finding(
                "error", "queueing", f"the cluster does not know {kind} ({versions[0].partition('/')[0]}).",
                f"queueing.kind is {spec.queueing.kind}.", "Install it, or set queueing.kind: none.",
            )
        ]  # fmt: skip
    place = spec.in_namespace if spec.queueing.kind == "kueue" else None
    if spec.queueing.queue and client.get(version, kind, spec.queueing.queue, place):
        return [Finding("ok", "queueing", f"{kind} {spec.queueing.queue} is there.")]
    where = f" in namespace {place}" if place else ""
    return [
        Finding(
            "error", "queueing", f"there is no {kind} {spec.queueing.queue}{where}.",
            "Training jobs would wait for ever.", "Make it, or name another as queueing.queue.",
        )
    ]  # fmt: skip
