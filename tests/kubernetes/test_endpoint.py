"""The endpoint: what it selects, what stands before it, and what would cut an answer short."""

import json

import pytest

from cluster.kubernetes.apply import Applied, apply
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.endpoint import endpoint
from cluster.kubernetes.names import pod_labels
from cluster.kubernetes.render import render
from tests.kubernetes.accepted import assert_accepted, only
from tests.kubernetes.running import PLACE, QUIET, operator_turns, pod
from tests.kubernetes.specs import A100_GROUP, app, spec
from tests.servers.kubernetes_api import Cluster

INGRESS = {"kind": "Ingress", "host": "llm.example.com", "class_name": "nginx", "tls_secret": "llm-tls"}
GATEWAY = {"kind": "Gateway", "host": "llm.example.com", "class_name": "istio", "tls_secret": "llm-tls"}
GKE = GATEWAY | {"class_name": "gke-l7-regional-external-managed"}


def of(door=None, has_apps=True, **changes):
    found = endpoint(spec(endpoint=door or {}, **changes), has_apps)
    assert_accepted(found)
    return found


def selects(service, **of_pod) -> bool:
    return service["spec"]["selector"].items() <= pod_labels(spec(), **of_pod).items()


@pytest.mark.parametrize(
    "door", [{}, {"kind": "LoadBalancer", "source_ranges": ["10.0.0.0/8"]}, INGRESS, GATEWAY]
)
@pytest.mark.parametrize("upgrade", ["new_cluster", "none"])
def test_pitfalls_2_and_6_the_operator_says_which_cluster_the_endpoint_is(door, upgrade):
    """A selector of ours would have both clusters of an upgrade in it, and one of them cannot answer yet."""
    changes = {"endpoint": door, "serving": {"upgrade": upgrade}}
    found = render(spec(**changes), apps=[app()])
    service = only(found, "Service")
    assert "selector" not in service["spec"]
    assert service["spec"]["ports"] == [
        {"name": "serve", "protocol": "TCP", "port": 8000, "targetPort": 8000}
    ]
    # A worker without a replica is NotReady by design: it must not be published all the same.
    assert "publishNotReadyAddresses" not in service["spec"]
    # What it writes there is the template's, all of it: what only one of the two has would come and go.
    template = only(found, "RayService")["spec"]["serveService"]
    assert template["metadata"]["name"] == service["metadata"]["name"] == "lab-endpoint"
    assert template["spec"] == service["spec"]
    assert_accepted([one for one in found if one["kind"] == "RayService"])


def test_the_port_is_called_as_the_heads_is():
    """Of another name the operator would write its own definition, which ours would then change back."""
    body = only(render(spec(), apps=[app()]), "RayService")["spec"]
    container = body["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    (port,) = body["serveService"]["spec"]["ports"]
    assert {"name": port["name"], "containerPort": port["port"]} in container["ports"]


def test_an_upgrade_keeps_the_endpoint_at_the_cluster_that_answers(
    kubernetes: Kubernetes, kubernetes_api: Cluster
):
    door = {"kind": "LoadBalancer", "annotations": {"a.example.com/b": "c"}}

    def applied(**changes) -> Applied:
        one = spec(**QUIET | {"endpoint": door} | changes)
        return apply(kubernetes, one, render(one, apps=[app()]))

    def leads_to() -> list[str]:
        service = kubernetes_api.get("Service", "lab-endpoint", namespace=PLACE)
        wanted = service["spec"].get("selector") or {}
        pods = [pod(f"{cluster}-worker", ray_cluster=cluster) for cluster in ("lab-serve-a", "lab-serve-b")]
        labels = [one["metadata"]["labels"] | {"ray.io/serve": "true"} for one in pods]
        return [one["ray.io/cluster"] for one in labels if wanted and wanted.items() <= one.items()]

    applied()
    assert leads_to() == []
    operator_turns(kubernetes_api, "lab-serve-a")
    assert leads_to() == ["lab-serve-a"]
    assert "Service lab-endpoint" in applied().unchanged

    # A second cluster starts, whose pods are ready long before its models are.
    door = {**door, "source_ranges": ["10.0.0.0/8"], "annotations": {"a.example.com/b": "d"}}
    assert "Service lab-endpoint" in applied(image="registry.example.com/team/tandem:0.2.0").changed
    assert leads_to() == ["lab-serve-a"]
    now = kubernetes_api.get("Service", "lab-endpoint", namespace=PLACE)
    assert now["metadata"]["annotations"] == {"a.example.com/b": "d"}

    operator_turns(kubernetes_api, "lab-serve-b")
    assert leads_to() == ["lab-serve-b"]
    after = kubernetes_api.get("Service", "lab-endpoint", namespace=PLACE)
    assert after["spec"]["loadBalancerSourceRanges"] == ["10.0.0.0/8"]
    assert "Service lab-endpoint" in applied(image="registry.example.com/team/tandem:0.2.0").unchanged


def test_apps_in_the_shared_cluster_are_reached_through_its_head():
    (service,) = of(has_apps=False)
    assert selects(service, part="shared", role="head")
    for part, role in (
        ("shared", "worker"),
        ("training", "head"),
        ("serving", "head"),
        ("serving", "worker"),
    ):
        assert not selects(service, part=part, role=role)
    # Its head must not be among the endpoints by which the operator knows that the apps are ready.
    assert service["metadata"]["name"] == "lab-shared-endpoint"
    for door in (INGRESS, GATEWAY):
        found = of(door, has_apps=False)
        assert [one["metadata"]["name"] for one in found[1:]] == ["lab-endpoint"] * (len(found) - 1)
        assert '"name": "lab-shared-endpoint", "port"' in json.dumps(found[-1])


def test_pitfall_5_an_incremental_upgrade_has_the_operators_gateway_alone():
    given = spec(serving={"upgrade": "incremental", "gateway_class_name": "istio"}, node_groups=[A100_GROUP])
    assert endpoint(given) == []
    assert "serveService" not in only(render(given, apps=[app()]), "RayService")["spec"]
    # Without a RayService there is no such Gateway.
    (service,) = endpoint(given, has_apps=False)
    assert selects(service, part="shared", role="head")


def test_a_load_balancer_is_as_the_spec_has_it():
    door = {
        "kind": "LoadBalancer",
        "source_ranges": ["10.0.0.0/8"],
        "load_balancer_class": "service.k8s.aws/nlb",
        "annotations": {"a.example.com/b": "c"},
    }
    (service,) = of(door)
    assert (service["kind"], service["spec"]["type"]) == ("Service", "LoadBalancer")
    assert service["spec"]["loadBalancerSourceRanges"] == ["10.0.0.0/8"]
    assert service["spec"]["loadBalancerClass"] == "service.k8s.aws/nlb"
    assert service["metadata"]["annotations"] == {"a.example.com/b": "c"}
    plain = of({"kind": "LoadBalancer"})[0]["spec"]
    assert "loadBalancerSourceRanges" not in plain and "loadBalancerClass" not in plain


def test_an_ingress_has_the_host_its_certificate_and_its_class():
    found = of(INGRESS)
    assert only(found, "Service")["spec"]["type"] == "ClusterIP"
    ingress = only(found, "Ingress")["spec"]
    assert ingress["ingressClassName"] == "nginx"
    assert ingress["tls"] == [{"hosts": ["llm.example.com"], "secretName": "llm-tls"}]
    (rule,) = ingress["rules"]
    assert rule["host"] == "llm.example.com"
    assert rule["http"]["paths"][0]["backend"] == {
        "service": {"name": "lab-endpoint", "port": {"name": "serve"}}
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
    # With network policies GKE would else look for a NodePort Service.
    assert json.loads(annotations["cloud.google.com/neg"]) == {"ingress": True}
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
