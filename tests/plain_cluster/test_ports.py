"""The ports of a plain cluster's machine: all different, nobody else's, told by the options that set them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.plain.checks import own_address
from cluster.plain.head import HeadSpec, up_head
from cluster.plain.join import JoinSpec, join
from cluster.plain.ports import check_ports, endpoint_port, node_ports
from cluster.processes import free_port
from runtime.core.errors import ClusterError, ConfigError

TakenPort = Callable[[str], int]


def head(**fields: Any) -> HeadSpec:
    """A head on free ports but those given."""
    ports = {name: free_port() for name in ("port", "dashboard_port", "http_port", "metrics_port")}
    return HeadSpec.model_validate({"node_ip_address": own_address("192.0.2.1", 9)} | ports | fields)


def test_a_head_is_refused_where_somebody_listens_at_its_prometheus_port(
    own_home: Path, taken_port: TakenPort
):
    port = taken_port("127.0.0.1")
    with pytest.raises(ClusterError, match=rf"--prometheus-port is {port}.*disable --now prometheus"):
        up_head(head(monitoring=True, prometheus_port=port))
    assert not (own_home / "ray-token").exists()


def test_a_head_and_a_machine_that_joins_need_their_metrics_port(own_home: Path, taken_port: TakenPort):
    port = taken_port("0.0.0.0")
    refused = rf"--metrics-port is {port}, which cannot be listened on at 0\.0\.0\.0: another program"
    with pytest.raises(ClusterError, match=refused):
        up_head(head(metrics_port=port))
    with pytest.raises(ClusterError, match=refused):
        join(JoinSpec(address="127.0.0.1:6379", metrics_port=port))


def test_a_machine_that_joins_needs_the_clusters_endpoint_port(taken_port: TakenPort):
    port = taken_port("127.0.0.1")
    with pytest.raises(
        ClusterError, match=rf"the cluster's --http-port is {port}.*start the head with anoth"
    ):
        check_ports([endpoint_port(port)])


def test_equal_ports_are_refused_with_both_options(own_home: Path):
    with pytest.raises(ConfigError, match="--dashboard-port and --http-port are both 18000"):
        up_head(head(dashboard_port=18000, http_port=18000))
    with pytest.raises(ConfigError, match="--http-port and --metrics-port are both 8080"):
        up_head(head(http_port=8080, metrics_port=8080))
    with pytest.raises(ConfigError, match="--http-port and the port of HAProxy's metrics are both 9101"):
        check_ports([endpoint_port(9101), *node_ports(8080)])
