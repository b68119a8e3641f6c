"""NetworkPolicies: what is refused, what comes through, seen as one connection after the other."""

import ipaddress
from typing import Any

import pytest

from cluster.kubernetes.names import pod_labels
from cluster.kubernetes.network import network
from tests.kubernetes.accepted import assert_accepted
from tests.kubernetes.specs import A100_GROUP, spec

NFS = {"nfs": {"server": "10.0.0.5", "path": "/exports/tandem"}}
OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}


def pod(part: str = "serving", role: str = "worker", of: str = "lab") -> dict[str, str]:
    return pod_labels(spec(name=of), part=part, role=role)  # type: ignore[arg-type]


WORKER, HEAD, TRAINER = pod(), pod(role="head"), pod(part="training")
STRANGER = {"app": "other"}


class Cluster:
    """The policies of a spec, applied as Kubernetes applies them: a connection needs one rule that fits."""

    def __init__(self, has_apps: bool = True, **changes: Any) -> None:
        self.spec = spec(**changes)
        self.policies = network(self.spec, has_apps)

    def lets_in(
        self, to: dict[str, str], port: int, *, of: dict[str, str], namespace: str = "elsewhere"
    ) -> bool:
        peer = {"labels": of, "namespace": namespace}
        return self._lets("ingress", "from", to, peer, port)

    def lets_out(self, of: dict[str, str], port: int, *, address: str = "8.8.8.8", udp: bool = False) -> bool:
        return self._lets("egress", "to", of, {"address": address}, port, "UDP" if udp else "TCP")

    def _lets(self, way, side, selected, peer, port, protocol="TCP") -> bool:
        policies = [one["spec"] for one in self.policies if self._selects(one["spec"], selected)]
        assert any(way.title() in one["policyTypes"] for one in policies), "nothing is refused at all"
        rules = [rule for one in policies for rule in one.get(way, [])]
        return any(
            (side not in rule or any(self._is(peer, one) for one in rule[side]))
            and ("ports" not in rule or {"protocol": protocol, "port": port} in rule["ports"])
            for rule in rules
        )

    def _selects(self, policy: dict[str, Any], labels: dict[str, str]) -> bool:
        return policy["podSelector"]["matchLabels"].items() <= labels.items()

    def _is(self, peer: dict[str, Any], allowed: dict[str, Any]) -> bool:
        if "ipBlock" in allowed:
            block = ipaddress.ip_network(allowed["ipBlock"]["cidr"])
            return "address" in peer and ipaddress.ip_address(peer["address"]) in block
        if "labels" not in peer:
            return False
        names = {"kubernetes.io/metadata.name": peer["namespace"]}
        wanted = allowed.get("namespaceSelector")
        is_there = (
            peer["namespace"] == self.spec.in_namespace
            if wanted is None
            else wanted.get("matchLabels", {}).items() <= names.items()
        )
        return (
            is_there
            and allowed.get("podSelector", {}).get("matchLabels", {}).items() <= peer["labels"].items()
        )


@pytest.mark.parametrize(
    "changes",
    [{}, {"node_groups": [A100_GROUP]}, {"store": NFS}, {"gcs_fault_tolerance": {"redis_address": "r:6379"}}],
)
def test_kubernetes_takes_every_policy(changes):
    for has_apps in (True, False):
        found = network(spec(**changes), has_apps)
        assert_accepted(found)
        assert len({one["metadata"]["name"] for one in found}) == len(found)


def test_pitfall_13_what_no_policy_names_is_refused_both_ways():
    cluster = Cluster()
    for to, port in ((HEAD, 8265), (HEAD, 6379), (HEAD, 10001), (WORKER, 8080), (TRAINER, 8000)):
        assert not cluster.lets_in(to, port, of=STRANGER), port
    assert not cluster.lets_in(HEAD, 6379, of=pod(of="other"), namespace="other")
    for port in (22, 25, 80, 6379, 6443, 2049):
        assert not cluster.lets_out(WORKER, port), port


def test_pods_of_one_cluster_talk_on_every_port_and_only_there():
    cluster = Cluster()
    assert cluster.lets_in(HEAD, 6379, of=TRAINER, namespace="tandem-lab")
    assert cluster.lets_in(WORKER, 31234, of=HEAD, namespace="tandem-lab")
    assert not cluster.lets_in(HEAD, 6379, of=TRAINER, namespace="elsewhere")
    assert not cluster.lets_in(HEAD, 6379, of=pod(of="other"), namespace="tandem-lab")


def test_clients_reach_the_port_of_serve_and_no_other_pod_than_those_that_serve():
    cluster = Cluster()
    assert cluster.lets_in(WORKER, 8000, of=STRANGER)
    assert not cluster.lets_in(HEAD, 8000, of=STRANGER)
    shared = Cluster(has_apps=False)
    assert shared.lets_in(pod("shared", "head"), 8000, of=STRANGER)
    assert not shared.lets_in(pod("shared"), 8000, of=STRANGER)


@pytest.mark.parametrize("operator", [OPERATOR, {"app.kubernetes.io/component": "kuberay-operator"}])
def test_pitfall_13_the_operator_reaches_the_dashboard_from_whatever_namespace(operator):
    cluster = Cluster()
    assert cluster.lets_in(HEAD, 8265, of=operator, namespace="kuberay")
    assert not cluster.lets_in(HEAD, 6379, of=operator, namespace="kuberay")
    assert not cluster.lets_in(WORKER, 8265, of=operator, namespace="kuberay")


def test_pitfall_13_prometheus_scrapes_all_pods_and_the_heads_two_other_ports():
    cluster = Cluster(monitoring={"namespace": "observing"})
    for to, port in ((WORKER, 8080), (TRAINER, 8080), (HEAD, 8080), (HEAD, 44217), (HEAD, 44227)):
        assert cluster.lets_in(to, port, of=STRANGER, namespace="observing")
        assert not cluster.lets_in(to, port, of=STRANGER, namespace="monitoring")
    assert not cluster.lets_in(WORKER, 44217, of=STRANGER, namespace="observing")
    for to in (HEAD, WORKER):
        assert cluster.lets_in(to, 9101, of=STRANGER, namespace="observing")
        assert not cluster.lets_in(to, 9101, of=STRANGER, namespace="monitoring")
    assert not cluster.lets_in(TRAINER, 9101, of=STRANGER, namespace="observing")
    off = Cluster(monitoring={"enabled": False})
    assert not off.lets_in(WORKER, 8080, of=STRANGER, namespace="monitoring")


def test_names_are_looked_up_and_https_goes_out():
    cluster = Cluster()
    assert cluster.lets_out(WORKER, 53, udp=True)
    assert cluster.lets_out(WORKER, 53)
    assert cluster.lets_out(TRAINER, 443)


def test_the_api_server_is_for_heads_whose_autoscaler_asks_it():
    cluster = Cluster(node_groups=[A100_GROUP])
    assert cluster.lets_out(HEAD, 6443)
    assert cluster.lets_out(pod("training", "head"), 6443)
    assert not cluster.lets_out(WORKER, 6443)
    assert not cluster.lets_out(TRAINER, 6443)


def test_the_api_server_is_reached_where_it_listens_itself():
    cluster = Cluster(node_groups=[A100_GROUP], api_server_port=16443)
    assert cluster.lets_out(HEAD, 16443) and cluster.lets_out(HEAD, 443)
    assert not cluster.lets_out(HEAD, 6443)
    assert not cluster.lets_out(WORKER, 16443)


def test_the_way_to_the_store_is_open_wherever_it_is():
    assert Cluster(store=NFS).lets_out(TRAINER, 2049)
    options = {"s3://team": {"endpoint_url": "http://minio.example.com:9000"}}
    assert Cluster(store={"uri": "s3://team/t", "options": options}).lets_out(TRAINER, 9000)
    plain = {"s3://team": {"endpoint_url": "http://minio.example.com"}}
    assert Cluster(store={"uri": "s3://team/t", "options": plain}).lets_out(TRAINER, 80)


def test_pods_without_keys_may_ask_for_an_identity_and_others_not_for_the_nodes():
    for address, port in (("169.254.169.254", 80), ("169.254.169.252", 988)):
        assert Cluster().lets_out(TRAINER, port, address=address)
        key = {"uri": "gs://team/t", "key_file": {"secret": "google", "key": "k"}}
        assert not Cluster(store=key).lets_out(TRAINER, port, address=address)
        assert not Cluster(store=NFS).lets_out(TRAINER, port, address=address)


@pytest.mark.parametrize(
    ("address", "port"), [("redis:7000", 7000), ("redis", 6379), ("rediss://redis.example.com:7001", 7001)]
)
def test_pitfall_15_only_heads_that_serve_reach_redis(address: str, port: int):
    cluster = Cluster(gcs_fault_tolerance={"redis_address": address})
    assert cluster.lets_out(HEAD, port)
    assert not cluster.lets_out(WORKER, port)
    assert not cluster.lets_out(pod("training", "head"), port)
