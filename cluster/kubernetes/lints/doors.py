"""A cluster's doors, Services, Ingresses, Gateways and routes: hosts, addresses, Secrets, times."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from cluster.kubernetes.core_kinds import is_core
from cluster.kubernetes.faults import Fault
from cluster.kubernetes.lints.parts import mapping, rows
from cluster.kubernetes.workloads import Manifest
from cluster.name_rules import is_host, is_object_name, is_range

_DURATION = re.compile(r"([0-9]{1,5}(h|m|s|ms)){1,4}")
"""Source: https://gateway-api.sigs.k8s.io/geps/gep-2257/"""


def lint(manifest: Manifest) -> Iterator[Fault]:
    """Faults of the kinds that this file knows."""
    version, kind = str(manifest.get("apiVersion")), str(manifest.get("kind"))
    look = (_CORE if is_core(version) else _GATEWAYS if version.startswith(_GATEWAY_API) else {}).get(kind)
    if look:
        yield from look(mapping(manifest, "spec"))


def _service(spec: dict[str, Any]) -> Iterator[Fault]:
    ranges, where = spec.get("loadBalancerSourceRanges"), "spec.loadBalancerSourceRanges"
    if not isinstance(ranges, list) or not ranges:
        return
    if spec.get("type") != "LoadBalancer":
        yield Fault(
            where, ranges, "Only a load balancer looks where requests come from.",
            "Write type: LoadBalancer, or leave them out.",
        )  # fmt: skip
    for index, text in enumerate(ranges):
        # The server passes over blanks around it.
        if isinstance(text, str) and not is_range(text.strip()):
            yield Fault(
                f"{where}[{index}]", text, "It is no range of addresses.",
                "Write 10.0.0.0/8, or 10.0.0.5/32 for one address.",
            )  # fmt: skip


def _ingress(spec: dict[str, Any]) -> Iterator[Fault]:
    yield from _name("spec.ingressClassName", spec.get("ingressClassName"), "IngressClass")
    for where, rule in rows(spec, "rules", "spec.rules"):
        yield from _host(f"{where}.host", rule.get("host"))
    for where, tls in rows(spec, "tls", "spec.tls"):
        yield from _name(f"{where}.secretName", tls.get("secretName"), "Secret")
        yield from _hosts(f"{where}.hosts", tls.get("hosts"))


def _gateway(spec: dict[str, Any]) -> Iterator[Fault]:
    yield from _name("spec.gatewayClassName", spec.get("gatewayClassName"), "GatewayClass")
    for where, listener in rows(spec, "listeners", "spec.listeners"):
        yield from _host(f"{where}.hostname", listener.get("hostname"))
        tls = mapping(listener, "tls")
        for at, reference in rows(tls, "certificateRefs", f"{where}.tls.certificateRefs"):
            yield from _name(f"{at}.name", reference.get("name"), "Secret")


def _route(spec: dict[str, Any]) -> Iterator[Fault]:
    yield from _hosts("spec.hostnames", spec.get("hostnames"))
    for where, rule in rows(spec, "rules", "spec.rules"):
        for name, value in mapping(rule, "timeouts").items():
            if isinstance(value, str) and not _DURATION.fullmatch(value):
                yield Fault(
                    f"{where}.timeouts.{name}", value, "Up to four amounts, each of five digits at most.",
                    "Write 600s, 10m or 1h30m.",
                )  # fmt: skip


def _hosts(where: str, hosts: Any) -> Iterator[Fault]:
    for index, host in enumerate(hosts if isinstance(hosts, list) else ()):
        yield from _host(f"{where}[{index}]", host)


def _host(where: str, host: Any) -> Iterator[Fault]:
    if isinstance(host, str) and host and not is_host(host):
        yield Fault(
            where, host, "It must be a DNS name in lower case, or *. and one.",
            "Write the name alone, without scheme, port or path: llm.example.com.",
        )  # fmt: skip


def _name(where: str, name: Any, kind: str) -> Iterator[Fault]:
    if isinstance(name, str) and name and not is_object_name(name):
        yield Fault(
            where, name, f"No {kind} can be called so.", "Use lower-case letters, digits, hyphens and dots."
        )


_GATEWAY_API = "gateway.networking.k8s.io/"
_CORE = {"Service": _service, "Ingress": _ingress}
_GATEWAYS = {"Gateway": _gateway, "HTTPRoute": _route, "GRPCRoute": _route}
