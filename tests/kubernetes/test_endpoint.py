"""The endpoint: what it selects, what stands before it, and what would cut an answer short."""

import json

import pytest

from cluster.kubernetes.endpoint import endpoint
from cluster.kubernetes.names import pod_labels
from tests.kubernetes.accepted import assert_accepted, only
from tests.kubernetes.specs import spec

INGRESS = {"kind": "Ingress", "host": "llm.example.com", "class_name": "nginx", "tls_secret": "llm-tls"}
GATEWAY = {"kind": "Gateway", "host": "llm.example.com", "class_name": "istio", "tls_secret": "llm-tls"}
GKE = GATEWAY | {"class_name": "gke-l7-regional-external-managed"}


def of(door=None, has_apps=True, **changes):
    found = endpoint(spec(endpoint=door or {}, **changes), has_apps)
    assert_accepted(found)
    return found


def selects(service, **of_pod) -> bool:
    return service["spec"]["selector"].items() <= pod_labels(spec(), **of_pod).items()


def test_pitfalls_2_and_3_workers_that_serve_are_selected_heads_and_training_are_not():
    (service,) = of()
    assert selects(service, part="serving", role="worker", group="l4")
    for part, role in (("serving", "head"), ("training", "worker"), ("shared", "worker")):
        assert not selects(service, part=part, role=role)
    assert service["spec"]["ports"] == [{"name": "http", "protocol": "TCP", "port": 8000, "targetPort": 8000}]
    # A worker without a replica is NotReady by design: it must not be published all the same.
    assert "publishNotReadyAddresses" not in service["spec"]


def test_pitfall_6_the_selector_holds_through_upgrades():
    (service,) = of()
    assert service["metadata"]["name"] == "lab-endpoint"
    assert all(key.startswith("tandem.dev/") for key in service["spec"]["selector"])


def test_apps_in_the_shared_cluster_are_reached_through_its_head():
    (service,) = of(has_apps=False)
    assert selects(service, part="shared", role="head")
    assert not selects(service, part="shared", role="worker")


def test_pitfall_5_a_load_balancer_is_a_service_of_our_own_in_every_kind_of_upgrade():
    door = {"kind": "LoadBalancer", "source_ranges": ["10.0.0.0/8"], "annotations": {"a.example.com/b": "c"}}
    serving = {"upgrade": "incremental", "gateway_class_name": "istio"}
    (service,) = of(door, serving=serving)
    assert (service["kind"], service["spec"]["type"]) == ("Service", "LoadBalancer")
    assert service["spec"]["loadBalancerSourceRanges"] == ["10.0.0.0/8"]
    assert service["metadata"]["annotations"] == {"a.example.com/b": "c"}
    assert "loadBalancerSourceRanges" not in of({"kind": "LoadBalancer"})[0]["spec"]


def test_an_ingress_has_the_host_its_certificate_and_its_class():
    found = of(INGRESS)
    assert only(found, "Service")["spec"]["type"] == "ClusterIP"
    ingress = only(found, "Ingress")["spec"]
    assert ingress["ingressClassName"] == "nginx"
    assert ingress["tls"] == [{"hosts": ["llm.example.com"], "secretName": "llm-tls"}]
    (rule,) = ingress["rules"]
    assert rule["host"] == "llm.example.com"
    assert rule["http"]["paths"][0]["backend"] == {
        "service": {"name": "lab-endpoint", "port": {"name": "http"}}
    }
    plain = only(of({"kind": "Ingress", "host": "llm.example.com"}), "Ingress")
    assert "tls" not in plain["spec"] and "annotations" not in plain["metadata"]


def test_nginx_waits_as_long_as_an_answer_may_take_and_passes_streams_on_unless_told_otherwise():
    mine = {"nginx.ingress.kubernetes.io/proxy-body-size": "8m"}
    found = only(of(INGRESS | {"annotations": mine}, serving={"longest_request_s": 901}), "Ingress")
    annotations = found["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"] == "901"
    assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == "8m"


def test_a_gateway_ends_tls_and_its_route_waits_as_long_as_an_answer_may_take():
    found = of(GATEWAY, serving={"longest_request_s": 901})
    gateway, route = only(found, "Gateway"), only(found, "HTTPRoute")
    assert gateway["spec"]["gatewayClassName"] == "istio"
    (listener,) = gateway["spec"]["listeners"]
    assert (listener["protocol"], listener["port"], listener["hostname"]) == (
        "HTTPS", 443, "llm.example.com",
    )  # fmt: skip
    assert listener["tls"]["certificateRefs"] == [{"kind": "Secret", "name": "llm-tls"}]
    assert route["spec"]["parentRefs"] == [{"name": gateway["metadata"]["name"]}]
    (rule,) = route["spec"]["rules"]
    assert rule == {
        "backendRefs": [{"name": "lab-endpoint", "port": 8000}],
        "timeouts": {"request": "901s"},
    }
    (plain,) = only(of({k: v for k, v in GATEWAY.items() if k != "tls_secret"}), "Gateway")["spec"][
        "listeners"
    ]
    assert (plain["protocol"], plain["port"], "tls" in plain) == ("HTTP", 80, False)


def test_gke_is_told_in_its_own_words_how_long_to_wait_and_where_to_ask_for_health():
    found = of(GKE, provider="gke", serving={"longest_request_s": 901})
    assert "timeouts" not in only(found, "HTTPRoute")["spec"]["rules"][0]
    service = {"group": "", "kind": "Service", "name": "lab-endpoint"}
    assert only(found, "GCPBackendPolicy")["spec"] == {"default": {"timeoutSec": 901}, "targetRef": service}
    check = only(found, "HealthCheckPolicy")["spec"]
    assert check["targetRef"] == service
    assert check["default"]["config"]["httpHealthCheck"] == {"port": 8000, "requestPath": "/-/healthz"}


def test_gkes_ingress_has_its_class_where_gke_reads_it_and_a_backend_config():
    door = {"kind": "Ingress", "host": "llm.example.com", "class_name": "gce"}
    found = of(door, provider="gke", serving={"longest_request_s": 901})
    ingress = only(found, "Ingress")
    assert ingress["metadata"]["annotations"] == {"kubernetes.io/ingress.class": "gce"}
    assert "ingressClassName" not in ingress["spec"]
    annotations = only(found, "Service")["metadata"]["annotations"]
    config = only(found, "BackendConfig")
    named = json.loads(annotations["cloud.google.com/backend-config"])
    assert named == {"default": config["metadata"]["name"]}
    assert config["spec"] == {
        "timeoutSec": 901,
        "healthCheck": {"type": "HTTP", "port": 8000, "requestPath": "/-/healthz"},
    }
    for changes in ({"door": INGRESS, "provider": "gke"}, {"door": door}):
        assert [one["kind"] for one in of(**changes)] == ["Service", "Ingress"]


@pytest.mark.parametrize("door", [INGRESS, GATEWAY, {"kind": "LoadBalancer"}])
def test_every_object_is_in_the_namespace_with_our_labels(door):
    for one in of(door):
        assert one["metadata"]["namespace"] == "tandem-lab"
        assert one["metadata"]["labels"]["tandem.dev/cluster"] == "lab"
