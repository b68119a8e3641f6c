"""The end of a cluster: work first, claims last, data and others' namespaces stay."""

from __future__ import annotations

import pytest

from cluster.kubernetes.apply import apply
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.deletion import delete, to_delete
from cluster.kubernetes.owned import title
from cluster.kubernetes.render import render
from runtime.core.errors import WaitTimeout
from tests.kubernetes.running import PLACE, QUIET, pod
from tests.kubernetes.specs import app, job, spec
from tests.servers.kubernetes_api import Cluster

ON_NFS = spec(**QUIET, store={"nfs": {"server": "10.0.0.9", "path": "/export"}})


def applied(kubernetes: Kubernetes) -> None:
    apply(kubernetes, ON_NFS, render(ON_NFS, apps=[app()], jobs=[job()]))


def end(kubernetes: Kubernetes, *, namespace: bool = False, timeout_s: float = 30) -> list[str]:
    told: list[str] = []
    objects = to_delete(kubernetes, ON_NFS).objects
    delete(kubernetes, ON_NFS, objects, namespace=namespace, timeout_s=timeout_s, tell=told.append)
    return told


def test_jobs_go_first_then_the_service_and_what_they_stand_on_last(kubernetes: Kubernetes) -> None:
    applied(kubernetes)
    order = [title(one) for one in to_delete(kubernetes, ON_NFS).objects]
    assert order[:2] == ["RayJob lab-sft", "RayService lab-serve"]
    kinds = [one.split()[0] for one in order]
    assert kinds.index("NetworkPolicy") < kinds.index("PersistentVolumeClaim")
    assert order[-1] == "Secret lab-ray-token"


def test_afterwards_nothing_of_it_is_left_and_others_are(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    applied(kubernetes)
    other = spec(**QUIET, name="annex")
    apply(kubernetes, other, render(other, jobs=[job()]))
    told = end(kubernetes)
    assert "RayService lab-serve deleted" in told
    assert to_delete(kubernetes, ON_NFS).objects == []
    assert kubernetes_api.names("RayJob") == ["annex-sft"]
    assert PLACE in kubernetes_api.names("Namespace")


def test_an_account_of_one_namespace_ends_what_is_there_and_is_told_what_may_be_left(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    applied(kubernetes)
    kubernetes_api.only_in = PLACE
    found = to_delete(kubernetes, ON_NFS)
    assert [one.partition(": you")[0] for one in found.unseen] == ["not looked at: PersistentVolumes"]
    told: list[str] = []
    delete(kubernetes, ON_NFS, found.objects, namespace=False, timeout_s=30, tell=told.append)
    assert kubernetes_api.names("RayService") == kubernetes_api.names("ServiceAccount") == []
    # Nobody knows whether the volume would outlive its claim.
    assert kubernetes_api.names("PersistentVolumeClaim") == ["lab-store"]
    assert any(line.startswith("PersistentVolumeClaim lab-store stays, for its data") for line in told)


def test_where_secrets_may_not_be_listed_all_else_goes_and_the_token_is_told(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    applied(kubernetes)
    kubernetes_api.forbidden.add(("list", "secrets"))
    (note,) = to_delete(kubernetes, ON_NFS).unseen
    assert note.startswith("not looked at: Secrets") and "lab-ray-token, stays" in note
    end(kubernetes)
    assert kubernetes_api.names("RayService") == kubernetes_api.names("ConfigMap") == []
    assert kubernetes_api.names("Secret") == ["lab-ray-token"]


def test_a_namespace_goes_only_if_asked_for_and_made_by_an_apply(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    applied(kubernetes)
    end(kubernetes, namespace=True)
    assert PLACE not in kubernetes_api.names("Namespace")

    kubernetes_api.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PLACE}})
    applied(kubernetes)
    assert any("stays: it was there before" in line for line in end(kubernetes, namespace=True))
    assert PLACE in kubernetes_api.names("Namespace")


def test_the_store_s_claim_stays_until_pods_have_drained(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    applied(kubernetes)
    kubernetes_api.put(pod("lab-worker-a"))
    with pytest.raises(WaitTimeout, match="pods of lab: still there"):
        end(kubernetes, timeout_s=0)
    assert kubernetes_api.names("RayService") == []
    assert kubernetes_api.names("PersistentVolumeClaim") == ["lab-store"]

    kubernetes_api.delete("Pod", "lab-worker-a", namespace=PLACE)
    end(kubernetes)
    assert kubernetes_api.names("PersistentVolumeClaim") == []


def test_what_a_finalizer_holds_is_named(kubernetes: Kubernetes, kubernetes_api: Cluster) -> None:
    applied(kubernetes)
    held = {"metadata": {"finalizers": ["ray.io/gcs-ft-redis-cleanup-finalizer"]}}
    kubernetes_api.change("RayJob", "lab-sft", held, namespace=PLACE)
    with pytest.raises(WaitTimeout, match="RayJob lab-sft: still there.*finalizers"):
        end(kubernetes, timeout_s=0)


def test_a_volume_that_would_go_with_its_claim_is_kept_with_its_data(
    kubernetes: Kubernetes, kubernetes_api: Cluster
) -> None:
    one = spec(**QUIET, store={"nfs": {"storage_class": "filestore"}})
    apply(kubernetes, one, render(one, jobs=[job()]))
    body = {"persistentVolumeReclaimPolicy": "Delete", "claimRef": {"namespace": PLACE, "name": "lab-store"}}
    volume = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pvc-7f3"}, "spec": body}
    kubernetes_api.put(volume)
    claim = kubernetes_api.get("PersistentVolumeClaim", "lab-store", namespace=PLACE)
    assert claim is not None
    # As the provisioner binds it.
    kubernetes_api.delete("PersistentVolumeClaim", "lab-store", namespace=PLACE)
    kubernetes_api.put({**claim, "spec": claim["spec"] | {"volumeName": "pvc-7f3"}})

    told: list[str] = []
    objects = to_delete(kubernetes, one).objects
    delete(kubernetes, one, objects, namespace=False, timeout_s=30, tell=told.append)
    assert kubernetes_api.names("PersistentVolumeClaim") == []
    kept = kubernetes_api.get("PersistentVolume", "pvc-7f3")
    assert kept is not None and kept["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
    assert any("PersistentVolume pvc-7f3 and its data stay" in line for line in told)
