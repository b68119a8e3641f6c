"""The store in pods: volumes that bind, identities and keys by reference, never a value of a Secret."""

import json

import kubernetes_validate
import pytest

from cluster.kubernetes.volumes import pod_storage, volumes
from storage.workspace import workspace
from tests.kubernetes.accepted import assert_accepted, only
from tests.kubernetes.specs import L4_GROUP, spec

EXPORT = {"server": "10.0.0.5", "path": "/exports/tandem"}
KEY = {"uri": "gs://team/tandem", "key_file": {"secret": "google", "key": "sa.json"}}
S3 = {"uri": "s3://team/tandem", "access_key": "minio"}
IDENTITY = {"uri": "gs://team/tandem", "service_account": "tandem@team.iam.gserviceaccount.com"}
ONE_NODE = {"node_groups": [L4_GROUP | {"count": 1}], "store": {"host_path": "/srv/tandem"}}


def of(**store):
    return spec(store=store)


def test_pitfall_10_an_export_is_a_volume_that_only_our_claim_binds_and_that_outlives_it():
    found = volumes(of(nfs=EXPORT | {"size": "2000GiB"}))
    assert_accepted(found)
    volume, claim = only(found, "PersistentVolume"), only(found, "PersistentVolumeClaim")
    assert volume["metadata"]["name"] == claim["spec"]["volumeName"] == "tandem-lab-lab-store"
    assert volume["spec"]["claimRef"] == {"namespace": "tandem-lab", "name": claim["metadata"]["name"]}
    # On both: else the default class is filled into the claim, which then never binds.
    assert volume["spec"]["storageClassName"] == claim["spec"]["storageClassName"] == ""
    assert volume["spec"]["accessModes"] == claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
    assert volume["spec"]["nfs"] == {"server": "10.0.0.5", "path": "/exports/tandem"}
    assert volume["spec"]["mountOptions"] == ["nfsvers=4.1", "hard"]
    assert volume["spec"]["capacity"] == claim["spec"]["resources"]["requests"] == {"storage": "2000Gi"}


def test_a_storage_class_makes_the_volume_itself():
    found = volumes(of(nfs={"storage_class": "filestore-rwx", "size": "1000000000"}))
    assert_accepted(found)
    (claim,) = found
    assert claim["spec"] == {
        "storageClassName": "filestore-rwx",
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "1000000000"}},
    }


@pytest.mark.parametrize("changes", [{"store": {"nfs": {"claim": "shared"}}}, {"store": KEY}, ONE_NODE])
def test_nothing_is_rendered_for_a_claim_that_is_there_a_bucket_or_a_folder(changes):
    assert volumes(spec(**changes)) == []


@pytest.mark.parametrize(
    ("nfs", "claim"), [(EXPORT, "lab-store"), ({"claim": "shared"}, "shared")], ids=["ours", "theirs"]
)
def test_pods_mount_the_claim_where_the_store_begins_as_the_group_of_the_export(nfs, claim):
    found = pod_storage(of(nfs=nfs | {"fs_group": 4321}))
    assert found.volumes == [{"name": "store", "persistentVolumeClaim": {"claimName": claim}}]
    assert found.volume_mounts == [{"name": "store", "mountPath": "/mnt/tandem"}]
    assert {"name": "TANDEM_STORE", "value": "/mnt/tandem/store"} in found.env
    assert found.fs_group == 4321


def test_a_folder_of_the_node_must_be_there_since_the_kubelet_would_make_it_for_root_alone():
    found = pod_storage(spec(**ONE_NODE))
    assert found.volumes == [{"name": "store", "hostPath": {"path": "/srv/tandem", "type": "Directory"}}]


def test_pitfall_10_with_workload_identity_pods_go_where_its_metadata_server_is_and_have_no_key():
    found = pod_storage(spec(provider="gke", store=IDENTITY))
    assert found.node_selector == {"iam.gke.io/gke-metadata-server-enabled": "true"}
    assert found.env == [{"name": "TANDEM_STORE", "value": "gs://team/tandem"}]
    assert (found.volumes, found.env_from) == ([], [])
    assert pod_storage(spec(store=KEY)).node_selector == {}


def test_a_key_file_is_mounted_read_only_for_the_pods_group_where_googles_search_finds_it():
    found = pod_storage(spec(store=KEY))
    secret = {"secretName": "google", "items": [{"key": "sa.json", "path": "key.json"}], "defaultMode": 0o440}
    assert found.volumes == [{"name": "google-key", "secret": secret}]
    assert found.volume_mounts == [
        {"name": "google-key", "mountPath": "/etc/tandem/google", "readOnly": True}
    ]
    assert {
        "name": "GOOGLE_APPLICATION_CREDENTIALS",
        "value": "/etc/tandem/google/key.json",
    } in found.env
    assert found.fs_group == 1000


def test_the_keys_of_s3_are_variables_from_a_secret():
    found = pod_storage(spec(store=S3))
    assert found.env_from == [{"secretRef": {"name": "minio"}}]
    assert found.volumes == []


def test_settings_of_the_store_reach_the_workspace_of_every_process(monkeypatch: pytest.MonkeyPatch):
    options = {"s3://team": {"endpoint_url": "http://minio.example.com:9000", "path_style": True}}
    for variable in pod_storage(spec(store=S3 | {"options": options})).env:
        monkeypatch.setenv(variable["name"], variable["value"])
    assert workspace().storage == options


@pytest.mark.parametrize(
    "changes",
    [
        {"store": KEY},
        {"store": S3},
        {"store": {"nfs": EXPORT}},
        ONE_NODE,
        {"store": IDENTITY, "provider": "gke"},
        {"store": KEY | {"nfs": EXPORT}},
    ],
)
def test_a_pod_with_any_store_is_one_that_kubernetes_takes(changes):
    found = pod_storage(spec(**changes))
    container = {
        "name": "ray",
        "image": "registry.example.com/team/tandem:0.1.0",
        "env": found.env,
        "envFrom": found.env_from,
        "volumeMounts": found.volume_mounts,
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "one"},
        "spec": {
            "containers": [container],
            "volumes": found.volumes,
            "nodeSelector": found.node_selector,
            "securityContext": {"fsGroup": found.fs_group},
        },
    }
    kubernetes_validate.validate(pod, "1.34", strict=True)
    assert {mount["name"] for mount in found.volume_mounts} == {volume["name"] for volume in found.volumes}
    assert len({variable["name"] for variable in found.env}) == len(found.env)
    assert json.loads(json.dumps(pod)) == pod
