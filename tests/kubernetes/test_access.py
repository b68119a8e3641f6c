"""Who the pods are: the namespace's standard, accounts without tokens, the autoscaler's few rights."""

import pytest

from cluster.kubernetes.access import access
from cluster.kubernetes.render import render
from tests.kubernetes.accepted import assert_accepted, only, pod_templates
from tests.kubernetes.specs import A100_GROUP, CPU_GROUP, L4_GROUP, app, job, spec

ONE_NODE = {"node_groups": [L4_GROUP | {"count": 1}], "store": {"host_path": "/srv/tandem"}}


@pytest.mark.parametrize("changes", [{}, ONE_NODE, {"node_groups": [A100_GROUP]}])
def test_kubernetes_takes_every_object_of_access(changes):
    assert_accepted(access(spec(**changes)))


def enforced(**changes):
    namespace = only(access(spec(**changes)), "Namespace")
    return namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]


def test_the_namespace_takes_only_pods_that_are_not_root_unless_the_store_is_a_folder_of_the_node():
    assert enforced() == "restricted"
    assert enforced(store={"nfs": {"claim": "shared"}}) == "restricted"
    assert enforced(**ONE_NODE) == "privileged"


@pytest.mark.parametrize("name", ["default", "kube-ai"])
def test_a_namespace_that_is_always_there_is_not_labelled(name: str):
    found = access(spec(namespace=name))
    assert [one["kind"] for one in found] == ["ServiceAccount"] * 3 + ["Role", "RoleBinding"]
    assert {one["metadata"]["namespace"] for one in found} == {name}


def accounts(**changes):
    found = [one for one in access(spec(**changes)) if one["kind"] == "ServiceAccount"]
    return {one["metadata"]["name"]: one for one in found}


def test_pitfall_14_serving_training_and_heads_are_different_accounts_and_none_has_a_token_by_itself():
    tokens = {name: one["automountServiceAccountToken"] for name, one in accounts().items()}
    assert tokens == {"lab-serving": False, "lab-training": False, "lab-head": False}


def test_pitfall_14_of_all_pods_only_a_head_that_autoscales_gets_a_token():
    jobs = [job("fixed"), job("elastic", num_workers=(1, 3))]
    found = render(spec(), apps=[app()], jobs=jobs)
    mounted = {
        (manifest["metadata"]["name"], role): template["spec"]["automountServiceAccountToken"]
        for manifest, role, template in pod_templates(found)
    }
    assert [name for name, is_mounted in mounted.items() if is_mounted] == [("lab-elastic", "head")]
    assert len(mounted) == 3 * 2 + 2  # a head and workers each, and two jobs' submitters


def test_only_heads_have_rights_and_no_more_than_the_autoscaler_uses():
    found = access(spec())
    assert only(found, "Role")["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "patch"]},
        {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["get", "patch"]},
    ]
    binding = only(found, "RoleBinding")
    head = {"kind": "ServiceAccount", "name": "lab-head", "namespace": "tandem-lab"}
    assert binding["subjects"] == [head]
    assert binding["roleRef"]["name"] == only(found, "Role")["metadata"]["name"] == "lab-autoscaler"


def test_every_pod_keeps_to_the_standard_that_the_namespace_enforces():
    found = render(spec(node_groups=[A100_GROUP, CPU_GROUP, L4_GROUP]), apps=[app()], jobs=[job()])
    templates = [template["spec"] for _, _, template in pod_templates(found)]
    assert len(templates) == 4 + 3  # heads, groups, and the job's submitter
    for pod in templates:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not [volume for volume in pod.get("volumes", []) if "hostPath" in volume]
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_pitfall_10_workload_identity_is_an_annotation_of_every_account():
    google = "tandem@team.iam.gserviceaccount.com"
    store = {"uri": "gs://team/tandem", "service_account": google}
    found = accounts(provider="gke", store=store).values()
    assert [one["metadata"]["annotations"] for one in found] == [
        {"iam.gke.io/gcp-service-account": google}
    ] * 3
    amazon = {"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/tandem"}
    found = accounts(store={"uri": "s3://team/tandem", "service_account_annotations": amazon}).values()
    assert [one["metadata"]["annotations"] for one in found] == [amazon] * 3
    assert all("annotations" not in one["metadata"] for one in accounts().values())
