"""A machine joins a plain cluster: looked at first, then started, until the head knows it."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from cluster import supervised
from cluster.auth import read_token, token_from, token_variables
from cluster.haproxy import node_haproxy_env
from cluster.plain import checks, state
from cluster.plain.machine import machine_options
from cluster.plain.only_one import refuse_a_second
from cluster.plain.ports import check_ports, endpoint_port, node_ports
from cluster.plain.record import Record, read_record, this_machine
from cluster.plain.state import DRAIN_S, PlainNode
from cluster.plain.store import options_of, storage_settings
from cluster.ray_start import haproxy_dir, ray_command, ray_environment, ray_temp_dir
from cluster.rest import inventory
from runtime.core.config import ConfigModel
from runtime.core.errors import ClusterError
from runtime.core.places import home

_ENV = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_S)}


class JoinSpec(ConfigModel):
    """What ``tandem up --join`` starts on this machine."""

    address: str
    """The head's, ``10.0.0.1:6379``."""

    dashboard_port: int = Field(8265, ge=1, le=65535)
    """Of the head's dashboard."""

    node_ip_address: str | None = None
    """This machine's IPv4 address, as the head reaches it. Default: that of the way to the head."""

    metrics_port: int = Field(8080, ge=1, le=65535)
    """Where Ray tells this machine's metrics; the head's may be at another."""

    num_cpus: int | None = Field(None, ge=0)
    """CPUs that Ray may hand out here. Default: the group's, else this machine's."""

    num_gpus: int | None = Field(None, ge=0)
    """GPUs that Ray may hand out here. Default: the group's, else those that Ray finds."""

    group: str | None = None
    """This machine's node group in the cluster spec that the head was given."""

    store: str | None = None
    """Only to be compared: the cluster's store is the head's."""

    token_file: Path | None = None
    """A copy of the head's file. Default: ``ray-token`` in Tandem's folder, if it is there."""

    start_timeout_s: float = Field(120, gt=0)
    """How long to wait for Ray before giving up."""


def join(spec: JoinSpec) -> PlainNode:
    """Make this machine a node of the cluster at ``spec.address``, or find that it is one.

    Raises:
        ConfigError: an option cannot be, the machine has less than its group, or the token's file is open to
            others.
        ClusterError: a port is taken; the head cannot be reached, refuses the token, has another store; Ray
            did not come up.
        EnvironmentFault: Ray, Python, the environments' places or Tandem's code differ from the head's.
    """
    with state.one_at_a_time():
        if found := refuse_a_second("joined", spec.address):
            return found
        host, port = checks.head_address(spec.address)
        ip = checks.checked_ip(spec.node_ip_address) if spec.node_ip_address else None
        supervised.end(timeout_s=60)
        check_ports(node_ports(spec.metrics_port))
        token_file = _token_file(spec)
        checks.check_reachable(host, port)
        checks.check_dashboard_reachable(host, spec.dashboard_port)
        with token_from(token_file):
            checks.check_ray_version(f"http://{host}:{spec.dashboard_port}")
        record = read_record(spec.address, token_file)
        checks.check_machine(this_machine(), record.machine)
        with storage_settings(options_of(record.spec)):
            checks.check_store(record, spec.store)
            check_ports([endpoint_port(record.http_port), *node_ports(spec.metrics_port)])
            ip = ip or checks.own_address(host, port)
            return _start(spec, record, ip, token_file if record.has_token else None)


def _token_file(spec: JoinSpec) -> Path | None:
    default = home() / "ray-token"
    file = spec.token_file or (default if default.exists() else None)
    if file is None:
        return None
    file = file.expanduser().absolute()
    read_token(file, field="--token-file")
    return file


def _start(spec: JoinSpec, record: Record, ip: str, token_file: Path | None) -> PlainNode:
    url = f"http://{checks.head_address(spec.address)[0]}:{spec.dashboard_port}"
    temp_dir, log = ray_temp_dir(), home() / "logs" / "joined.log"
    command = _ray_start(spec, record, ip, temp_dir)
    env = ray_environment(
        record.store, token_variables(token_file), node_haproxy_env(haproxy_dir(temp_dir)), _ENV
    )
    with token_from(token_file):
        before = _nodes_at(url, ip)
        supervisor = supervised.start(command, env, log)
        try:
            supervised.wait_until_up(
                supervisor,
                lambda: bool(_nodes_at(url, ip) - before),
                where=f"{url} of a new node at {ip}",
                timeout_s=spec.start_timeout_s,
                log=log,
            )
            return state.keep(_node(spec, record, ip, url, token_file, temp_dir))
        except BaseException:
            # Ctrl-C too.
            supervised.give_up(supervisor)
            raise


def _nodes_at(dashboard_url: str, ip: str) -> set[str]:
    """Ids of the living nodes with this address; of one that was killed Ray learns after a while."""
    try:
        return {node.node_id for node in inventory(dashboard_url).nodes if node.address == ip}
    except ClusterError:
        return set()


def _ray_start(spec: JoinSpec, record: Record, ip: str, temp_dir: Path) -> list[str]:
    return [
        ray_command(),
        "start",
        "--block",
        f"--address={spec.address}",
        f"--node-ip-address={ip}",
        f"--temp-dir={temp_dir}",
        f"--metrics-export-port={spec.metrics_port}",
        "--disable-usage-stats",
        *machine_options(spec.num_cpus, spec.num_gpus, spec.group, record.spec),
    ]


def _node(
    spec: JoinSpec, record: Record, ip: str, url: str, token_file: Path | None, temp_dir: Path
) -> PlainNode:
    pid, create_time = supervised.supervisor_id()
    return PlainNode(
        role="joined",
        pid=pid,
        create_time=create_time,
        address=spec.address,
        node_ip=ip,
        dashboard_url=url,
        http_url=f"http://{ip}:{record.http_port}",
        token_file=str(token_file) if token_file else None,
        store=record.store,
        temp_dir=str(temp_dir),
    )
