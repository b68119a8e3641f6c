"""The store as pods see it: volumes for NFS and folders, identities and keys for buckets."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from cluster.cluster_spec import ClusterSpec
from cluster.cluster_store import MOUNT, NfsVolume
from cluster.kubernetes.names import labels
from cluster.kubernetes.quantities import memory_quantity
from cluster.kubernetes.workloads import Manifest

KEY_FOLDER = "/etc/tandem/google"
"""Where the key file's Secret is mounted."""

IMAGE_GROUP = 1000
"""The group of the image's user (cluster/images/Dockerfile)."""

_STORE_VOLUME, _KEY_VOLUME = "store", "google-key"


@dataclass(frozen=True)
class PodStorage:
    """What a pod's template needs so that its processes reach the store, in Kubernetes' words."""

    volumes: list[Manifest] = field(default_factory=list)
    volume_mounts: list[Manifest] = field(default_factory=list)
    """Of every container that reads or writes the store."""

    env: list[Manifest] = field(default_factory=list)
    env_from: list[Manifest] = field(default_factory=list)
    node_selector: dict[str, str] = field(default_factory=dict)
    fs_group: int = IMAGE_GROUP
    """``fsGroup``: a group of all processes. It must be that of an NFS export, whose files the kubelet leaves
    as they are; mounted Secrets are readable for it alone."""


def volumes(spec: ClusterSpec) -> list[Manifest]:
    """The PersistentVolume and claim of ``store.nfs``; nothing where pods need none, or a claim is there."""
    nfs = spec.store.nfs
    if nfs is None or nfs.claim:
        return []
    if nfs.storage_class:
        return [_claim(spec, nfs, {"storageClassName": nfs.storage_class})]
    return [_static_volume(spec, nfs), _claim(spec, nfs, {"storageClassName": "", "volumeName": _pv(spec)})]


def pod_storage(spec: ClusterSpec) -> PodStorage:
    """What every pod with the store gets. Values of Secrets are in none of it."""
    store = spec.store
    key = _key_file(spec)
    volume = [{"name": _STORE_VOLUME, **_source(spec)}] if store.has_volume else []
    mount = [{"name": _STORE_VOLUME, "mountPath": MOUNT}] if store.has_volume else []
    return PodStorage(
        volumes=volume + key.volumes,
        volume_mounts=mount + key.volume_mounts,
        env=_addresses(spec) + key.env,
        env_from=[{"secretRef": {"name": store.access_key}}] if store.access_key else [],
        node_selector=_node_selector(spec),
        fs_group=store.nfs.fs_group if store.nfs else IMAGE_GROUP,
    )


def claim_name(spec: ClusterSpec) -> str:
    """The PersistentVolumeClaim with the store, ours or the one that is there already."""
    return (spec.store.nfs and spec.store.nfs.claim) or f"{spec.name}-store"


def _pv(spec: ClusterSpec) -> str:
    """PersistentVolumes are in no namespace, so theirs is in the name."""
    return f"{spec.in_namespace}-{spec.name}-store"


def _static_volume(spec: ClusterSpec, nfs: NfsVolume) -> Manifest:
    """An export as a volume, for our claim alone.

    ``storageClassName: ""`` on volume and claim: left out, the cluster's default class is filled into the
    claim, which then never binds to this volume.
    """
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": _pv(spec), "labels": labels(spec)},
        "spec": {
            "capacity": {"storage": memory_quantity(nfs.size)},
            "accessModes": ["ReadWriteMany"],
            # Deleting the claim, or the cluster, must leave models and runs where they are.
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "mountOptions": list(nfs.mount_options),
            "claimRef": {"namespace": spec.in_namespace, "name": claim_name(spec)},
            "nfs": {"server": nfs.server, "path": nfs.path},
        },
    }


def _claim(spec: ClusterSpec, nfs: NfsVolume, source: Manifest) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": claim_name(spec),
            "namespace": spec.in_namespace,
            "labels": labels(spec),
        },
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": memory_quantity(nfs.size)}},
            **source,
        },
    }


def _source(spec: ClusterSpec) -> Manifest:
    if spec.store.host_path:
        # Not DirectoryOrCreate: the kubelet would make a folder that belongs to root, in which our processes,
        # which are not root, cannot write. Missing, it is named in the pod's events.
        return {"hostPath": {"path": spec.store.host_path, "type": "Directory"}}
    return {"persistentVolumeClaim": {"claimName": claim_name(spec)}}


def _addresses(spec: ClusterSpec) -> list[Manifest]:
    """The store's address and the workspace config's ``storage``, as ``storage.workspace`` reads them."""
    env = [{"name": "TANDEM_STORE", "value": spec.store.root}]
    if spec.store.options:
        options = json.dumps(spec.store.options, sort_keys=True)
        env.append({"name": "TANDEM_STORAGE_OPTIONS", "value": options})
    return env


def _key_file(spec: ClusterSpec) -> PodStorage:
    """The Secret with a Google key as a file, where Google's own search for credentials finds it."""
    key = spec.store.key_file
    if key is None:
        return PodStorage()
    # 0440: for the pod's group alone, which fs_group makes the file's.
    secret: dict[str, Any] = {
        "secretName": key.secret,
        "items": [{"key": key.key, "path": "key.json"}],
        "defaultMode": 0o440,
    }
    return PodStorage(
        volumes=[{"name": _KEY_VOLUME, "secret": secret}],
        volume_mounts=[{"name": _KEY_VOLUME, "mountPath": KEY_FOLDER, "readOnly": True}],
        env=[{"name": "GOOGLE_APPLICATION_CREDENTIALS", "value": f"{KEY_FOLDER}/key.json"}],
    )


def _node_selector(spec: ClusterSpec) -> dict[str, str]:
    """Nodes without GKE's metadata server would give pods the node's own identity, and its rights."""
    return {"iam.gke.io/gke-metadata-server-enabled": "true"} if spec.store.service_account else {}
