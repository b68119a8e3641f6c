"""Drains: the last ready replica stays, and nothing else stands in their way."""

from cluster.kubernetes.disruption import disruption
from cluster.kubernetes.names import pod_labels
from tests.kubernetes.accepted import assert_accepted, only
from tests.kubernetes.specs import A100_GROUP, L4_GROUP, spec


def test_pitfall_6_the_budget_selects_workers_that_serve_by_labels_that_upgrades_keep():
    found = disruption(spec(), has_apps=True)
    assert_accepted(found)
    selector = only(found, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"]
    assert selector.items() <= pod_labels(spec(), part="serving", role="worker", group="l4").items()
    assert all(key.startswith("tandem.dev/") for key in selector)


def test_pitfall_2_workers_without_a_replica_neither_count_nor_block():
    """A RayCluster has no scale subresource: with maxUnavailable Kubernetes would let nothing be evicted."""
    (budget,) = disruption(spec(node_groups=[A100_GROUP]), has_apps=True)
    assert budget["spec"]["minAvailable"] == 1
    assert "maxUnavailable" not in budget["spec"]
    assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_no_budget_blocks_the_drain_of_a_head_of_training_or_of_the_only_node():
    (budget,) = disruption(spec(), has_apps=True)
    selector = budget["spec"]["selector"]["matchLabels"]
    for part, role in (("serving", "head"), ("training", "worker"), ("training", "head"), ("shared", "head")):
        assert not selector.items() <= pod_labels(spec(), part=part, role=role).items()  # type: ignore[arg-type]
    assert disruption(spec(), has_apps=False) == []
    assert disruption(spec(node_groups=[L4_GROUP | {"count": 1}]), has_apps=True) == []
