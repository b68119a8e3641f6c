"""The ports that a machine of a plain cluster needs: all different, and nobody else's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from cluster.haproxy import HAPROXY_METRICS_PORT
from cluster.processes import port_is_free
from runtime.core.errors import ClusterError, ConfigError

_EVERYWHERE = "0.0.0.0"


@dataclass(frozen=True)
class Port:
    """One port, as the user may change it."""

    option: str
    """The option that sets it, or what it is where none does."""

    number: int
    host: str
    """The address of this machine that it is listened on at."""

    otherwise: str = "choose another port or address"
    """What to do where the program that has it must stay."""


def node_ports(metrics_port: int) -> list[Port]:
    """What every machine needs: Ray's metrics, and those of the HAProxy that comes with a replica."""
    return [
        Port("--metrics-port", metrics_port, _EVERYWHERE, "choose another port"),
        # Ray has one number for all machines, and HAProxy does not start without it.
        Port("the port of HAProxy's metrics", HAPROXY_METRICS_PORT, _EVERYWHERE, "leave this machine out"),
    ]


def endpoint_port(http_port: int) -> Port:
    """Where a machine that joined answers once it has a replica: the head's choice."""
    return Port(
        "the cluster's --http-port", http_port, _EVERYWHERE, "start the head with another --http-port"
    )


def check_ports(ports: Sequence[Port]) -> None:
    """Refuse ports that are the same, or that another program has.

    Raises:
        ConfigError: two are the same number; names both options.
        ClusterError: one cannot be listened on.
    """
    for one, other in combinations(ports, 2):
        if one.number == other.number:
            raise ConfigError(
                f"{one.option} and {other.option} are both {one.number}. Give each a number of its own."
            )
    for port in ports:
        if not port_is_free(port.number, port.host):
            raise ClusterError(
                f"{port.option} is {port.number}, which cannot be listened on at {port.host}: another "
                "program does, or that is no IPv4 address of this machine. End that program, or "
                f"{port.otherwise}."
            )
