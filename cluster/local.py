"""The embedded local cluster: one Ray head on this machine that outlives the command that started it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import psutil
from pydantic import Field

from cluster import supervised
from cluster.gpus import find
from cluster.haproxy import free_http_port, haproxy_env
from cluster.inventory import Card, Inventory
from cluster.monitoring.local import Monitoring, prepare, wait_until_ready
from cluster.nodes import node_of
from cluster.nvml import read_cards
from cluster.plain import state
from cluster.processes import free_port, is_alive, port_is_free
from cluster.ray_start import haproxy_dir, ray_command, ray_environment, ray_temp_dir
from cluster.rest import checked_url, has_joined, head_ip
from runtime.core.config import ConfigModel, load_spec
from runtime.core.errors import ClusterError, ConfigError
from runtime.core.places import home
from storage.local_files import write_json
from storage.store import open_store

_RAYS_SHARE = 0.7
"""Of the memory that is free, Ray hands out so much; the rest is its object store's."""
_END_TIMEOUT_S = 60.0


class LocalClusterSpec(ConfigModel):
    """What ``tandem up`` starts on this machine."""

    num_cpus: int = Field(default_factory=lambda: max(2, len(os.sched_getaffinity(0))), ge=1)
    """CPUs that Ray may hand out. Default: this machine's, at least 2."""

    num_gpus: int | None = Field(None, ge=0)
    """GPUs that Ray may hand out. Default: those that Ray finds."""

    dashboard_port: int = Field(8265, ge=0, le=65535)
    """Port of Ray's dashboard, job and Serve API. 0: any free one."""

    http_port: int = Field(8000, ge=0, le=65535)
    """Port of the serving endpoint. 0: any free one."""

    store: str | None = None
    """Store of jobs and apps that name none. Default: ``$TANDEM_STORE``, else ``~/.tandem/store``."""

    monitoring: bool = False
    """Whether Prometheus, which must be installed, runs beside it."""

    prometheus_port: int = Field(9090, ge=0, le=65535)
    """Port of that Prometheus. 0: any free one."""

    start_timeout_s: float = Field(120, gt=0)
    """How long to wait for Ray before giving up."""


class LocalCluster(ConfigModel):
    """A running local cluster, as its state file tells."""

    pid: int
    """The supervisor, of which every process of the cluster is a descendant."""

    create_time: float
    """When the supervisor began, in seconds since 1970."""

    address: str
    """Ray's own address, ``ip:port``."""

    dashboard_url: str
    """Dashboard, Ray's job API and Serve's REST API."""

    http_url: str
    """Where serve apps answer once there is one."""

    temp_dir: str
    """Ray's folder: sessions and logs."""

    prometheus_url: str | None = None
    """Where Prometheus answers, if it was asked for."""

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return is_alive(self.pid, self.create_time)


def current() -> LocalCluster | None:
    """The running local cluster, or None. A state file left by a crash counts for nothing."""
    try:
        cluster = load_spec(LocalCluster, _cluster_file())
    except ConfigError:
        return None
    return cluster if cluster.alive else None


def expected(spec: LocalClusterSpec) -> Inventory:
    """What a cluster of this spec would have."""
    cards = read_cards()
    count = len(cards) if spec.num_gpus is None else spec.num_gpus
    memory_bytes = int(_RAYS_SHARE * psutil.virtual_memory().available)
    resources = {"CPU": spec.num_cpus, "GPU": count, "memory": memory_bytes}
    if cards and count:
        gpu = find(cards[0].product)
        resources[f"accelerator_type:{gpu.ray if gpu else cards[0].product}"] = 1
    node = node_of("local", resources)
    if cards and len(node.cards) <= len(cards):
        # A MIG device has less than the product that Ray names.
        seen = zip(node.cards, cards, strict=False)
        node = replace(
            node,
            cards=tuple(Card(one.index, card.memory_bytes, card.product, card.uuid) for one, card in seen),
        )
    return Inventory.of([node])


def dashboard_of(address: str | None) -> str | None:
    """The dashboard at ``address``, or of the local cluster, or None when no local cluster runs.

    Raises:
        ConfigError: ``address`` is no http URL.
    """
    running = current()
    return checked_url(address) if address else running.dashboard_url if running else None


def up(spec: LocalClusterSpec | None = None) -> LocalCluster:
    """The running local cluster, started when there is none.

    Raises:
        ClusterError: a port is taken, or Ray did not come up in ``start_timeout_s``; nothing is left.
        EnvironmentFault: the core environment is not built.
    """
    with state.one_at_a_time():
        found = current()
        if found:
            return found
        # What a supervisor that was killed left behind goes first: Ray would be found twice.
        _down()
        return _start(spec or LocalClusterSpec())


def down() -> bool:
    """End the local cluster and every process of it; whether there was one."""
    with state.one_at_a_time():
        return _down()


def _down() -> bool:
    _refuse_beside_a_node()
    ended = supervised.end(timeout_s=_END_TIMEOUT_S)
    _cluster_file().unlink(missing_ok=True)
    return ended


def _refuse_beside_a_node() -> None:
    node = state.current()
    if node:
        raise ClusterError(
            f"this machine is a node of the cluster at {node.dashboard_url}. Use that one: --address "
            f"{node.dashboard_url}; or first leave it: tandem down."
        )


def _start(spec: LocalClusterSpec) -> LocalCluster:
    ports = {
        "dashboard": _port(spec.dashboard_port, "dashboard_port"),
        "http": _port(spec.http_port, "http_port") if spec.http_port else free_http_port(),
        "gcs": free_port(),
    }
    temp_dir = ray_temp_dir()
    log = home() / "logs" / "cluster.log"
    url = f"http://127.0.0.1:{ports['dashboard']}"
    environment = _environment(spec, temp_dir)
    watching = _monitoring(spec, temp_dir, environment)
    if watching:
        # Ray's dashboard asks it.
        environment["RAY_PROMETHEUS_HOST"] = watching.url
    supervisor = supervised.start(
        _ray_start(spec, ports, temp_dir), environment, log, beside=watching.command if watching else ()
    )
    try:
        supervised.wait_until_up(
            supervisor, lambda: has_joined(url), where=url, timeout_s=spec.start_timeout_s, log=log
        )
        if watching:
            wait_until_ready(watching, supervised.supervisor_file(), log)
        pid, create_time = supervised.supervisor_id()
        cluster = LocalCluster(
            pid=pid,
            create_time=create_time,
            address=f"{head_ip(url)}:{ports['gcs']}",
            dashboard_url=url,
            http_url=f"http://127.0.0.1:{ports['http']}",
            temp_dir=str(temp_dir),
            prometheus_url=watching.url if watching else None,
        )
        write_json(_cluster_file(), cluster.model_dump())
        return cluster
    except BaseException:
        # Ctrl-C too.
        supervised.give_up(supervisor)
        raise


def _ray_start(spec: LocalClusterSpec, ports: dict[str, int], temp_dir: Path) -> list[str]:
    """Ray's head. Ports that Ray would fix are free ones, for the sake of a second cluster."""
    gpus = [] if spec.num_gpus is None else [f"--num-gpus={spec.num_gpus}"]
    return [
        ray_command(),
        "start",
        "--head",
        "--block",
        f"--port={ports['gcs']}",
        f"--num-cpus={spec.num_cpus}",
        *gpus,
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={ports['dashboard']}",
        f"--dashboard-agent-listen-port={free_port()}",
        f"--ray-client-server-port={free_port()}",
        f"--temp-dir={temp_dir}",
        "--disable-usage-stats",
    ]


def _environment(spec: LocalClusterSpec, temp_dir: Path) -> dict[str, str]:
    """The head's environment, which every worker of the cluster inherits."""
    return ray_environment(
        open_store(spec.store).uri,
        # Ray 2.60 turns token authentication on as soon as the account has a token file; this cluster
        # listens on 127.0.0.1 only (docs/decisions/local-cluster-without-token.md).
        {"RAY_AUTH_MODE": "disabled"},
        haproxy_env(haproxy_dir(temp_dir)),
    )


def _monitoring(spec: LocalClusterSpec, temp_dir: Path, environment: dict[str, str]) -> Monitoring | None:
    if not spec.monitoring:
        return None
    return prepare(
        home() / "monitoring",
        discovery=str(temp_dir),
        cluster="local",
        port=_port(spec.prometheus_port, "prometheus_port"),
        haproxy=[f"127.0.0.1:{environment['RAY_SERVE_HAPROXY_METRICS_PORT']}"],
    )


def _port(port: int, field: str) -> int:
    if port and not port_is_free(port):
        option = "--" + field.replace("_", "-")
        raise ClusterError(
            f"{field} is {port}, which another program listens on. End that program, or choose another: "
            f"tandem up {option} 0 takes any free one."
        )
    return port or free_port()


def _cluster_file() -> Path:
    return home() / "cluster.json"
