"""The head of a plain cluster: Ray's head on an address that other machines reach, behind a token."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from cluster import applications, supervised
from cluster.auth import make_token, token_from, token_variables
from cluster.cluster_spec import ClusterSpec
from cluster.environments import check_pair
from cluster.haproxy import HAPROXY_METRICS_PORT, node_haproxy_env
from cluster.monitoring.local import Monitoring, prepare, wait_until_ready
from cluster.plain import state
from cluster.plain.checks import checked_ip, own_address
from cluster.plain.machine import machine_options
from cluster.plain.only_one import refuse_a_second
from cluster.plain.ports import Port, check_ports, node_ports
from cluster.plain.record import Record, this_machine, write_record
from cluster.plain.state import PlainNode
from cluster.plain.store import head_store, leave_mark, options_of, storage_settings
from cluster.priority import priorities_env
from cluster.ray_start import haproxy_dir, ray_command, ray_environment, ray_temp_dir
from cluster.rest import has_joined
from runtime.core.config import ConfigModel
from runtime.core.errors import ConfigError
from runtime.core.log import get_logger
from runtime.core.places import home
from storage.store import Store

_log = get_logger(__name__)
_ENV = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
"""With the head everything ends: there is nobody to hand the work over to."""


class HeadSpec(ConfigModel):
    """What ``tandem up --head`` starts on this machine."""

    node_ip_address: str | None = None
    """This machine's IPv4 address, as the others reach it. Default: that of the way to the internet."""

    port: int = Field(6379, ge=1, le=65535)
    """Ray's own port, where the others join."""

    dashboard_port: int = Field(8265, ge=1, le=65535)
    """Ray's dashboard, job and Serve API, at ``node_ip_address``."""

    http_port: int = Field(8000, ge=1, le=65535)
    """Port of the serving endpoint on every machine."""

    http_host: str = "0.0.0.0"
    """Where the serving endpoint listens. API keys are asked for wherever that is not 127.0.0.1."""

    metrics_port: int = Field(8080, ge=1, le=65535)
    """Where Ray tells this machine's metrics. KubeRay's pods have them at the same number."""

    num_cpus: int | None = Field(None, ge=0)
    """CPUs that Ray may hand out here. Default: the group's, else this machine's."""

    num_gpus: int | None = Field(None, ge=0)
    """GPUs that Ray may hand out here. Default: the group's, else those that Ray finds."""

    group: str | None = None
    """This machine's node group in the cluster spec."""

    store: str | None = None
    """The cluster's store. Default: the spec's, ``$TANDEM_STORE``, ``~/.tandem/store``. With ``store.nfs`` in
    the spec it is required: where this machine has mounted the export."""

    monitoring: bool = False
    """Whether Prometheus, which must be installed, runs beside the head, for all machines."""

    prometheus_port: int = Field(9090, ge=1, le=65535)
    """Port of that Prometheus, on 127.0.0.1."""

    token_file: Path | None = None
    """File with the token; made where it is missing. Default: ``ray-token`` in Tandem's folder."""

    start_timeout_s: float = Field(120, gt=0)
    """How long to wait for Ray before giving up."""


def up_head(spec: HeadSpec, cluster: ClusterSpec | None = None) -> PlainNode:
    """Start the head, or find the one that runs here.

    Args:
        cluster: Gives name, store, groups and whether there is a token.

    Raises:
        ConfigError: the options contradict the cluster spec or each other, the machine has less than its
            group, or the token's file is open to others.
        ClusterError: a port is taken, or Ray did not come up; nothing is left.
        EnvironmentFault: an environment is not built, or they differ.
    """
    with state.one_at_a_time():
        if found := refuse_a_second("head", None):
            return found
        check_pair()
        ip = _address(spec)
        with storage_settings(options_of(cluster)):
            store = head_store(spec.store, cluster)
            # What a supervisor that was killed left behind may still have the ports.
            supervised.end(timeout_s=60)
            check_ports(_ports(spec, ip))
            token_file = _token_file(spec, cluster)
            return _start(spec, cluster, store, ip, token_file)


def _address(spec: HeadSpec) -> str:
    # A name of the internet is not asked for, and nothing is sent: the kernel tells which way it would go.
    ip = checked_ip(spec.node_ip_address) if spec.node_ip_address else own_address("192.0.2.1", 9)
    if ip.startswith("127.") or ip == "0.0.0.0":
        raise ConfigError(
            f"this machine's address is {ip}, where no other machine reaches it. Give --node-ip-address its "
            "address in the network; for this machine alone: tandem up."
        )
    return ip


def _ports(spec: HeadSpec, ip: str) -> list[Port]:
    ports = [
        Port("--port", spec.port, ip),
        Port("--dashboard-port", spec.dashboard_port, ip),
        Port("--http-port", spec.http_port, spec.http_host),
        *node_ports(spec.metrics_port),
    ]
    if spec.monitoring:
        # Debian's package starts a service at 9090.
        remedy = "choose another port; Debian's own service ends by: sudo systemctl disable --now prometheus"
        ports.append(Port("--prometheus-port", spec.prometheus_port, "127.0.0.1", remedy))
    return ports


def _token_file(spec: HeadSpec, cluster: ClusterSpec | None) -> Path | None:
    if cluster and cluster.auth.mode == "none":
        _log.warning("auth.mode is none: whoever reaches this machine's ports may run any code here.")
        return None
    file = (spec.token_file or home() / "ray-token").expanduser().absolute()
    make_token(file)
    return file


def _start(
    spec: HeadSpec, cluster: ClusterSpec | None, store: Store, ip: str, token_file: Path | None
) -> PlainNode:
    url, temp_dir, log = f"http://{ip}:{spec.dashboard_port}", ray_temp_dir(), home() / "logs" / "head.log"
    command = _ray_start(spec, cluster, ip, temp_dir)
    env = ray_environment(
        store.uri,
        token_variables(token_file),
        node_haproxy_env(haproxy_dir(temp_dir)),
        priorities_env(cluster.priorities) if cluster else {},
        _ENV,
    )
    watching = monitoring_of(spec, cluster, temp_dir)
    if watching:
        env["RAY_PROMETHEUS_HOST"] = watching.url
    supervisor = supervised.start(command, env, log, beside=watching.command if watching else ())
    try:
        with token_from(token_file):
            supervised.wait_until_up(
                supervisor, lambda: has_joined(url), where=url, timeout_s=spec.start_timeout_s, log=log
            )
            applications.start_serve(url, host=spec.http_host, port=spec.http_port)
        if watching:
            wait_until_ready(watching, supervised.supervisor_file(), log)
        record = _record(spec, cluster, store, has_token=token_file is not None)
        write_record(f"{ip}:{spec.port}", record, token_file)
        url_of_prometheus = watching.url if watching else None
        return state.keep(_node(spec, record, ip, token_file, temp_dir, url_of_prometheus))
    except BaseException:
        # Ctrl-C too.
        supervised.give_up(supervisor)
        raise


def monitoring_of(spec: HeadSpec, cluster: ClusterSpec | None, temp_dir: Path) -> Monitoring | None:
    """Prometheus for all machines, ready to be started beside the head; None where nobody asked for it.

    Args:
        cluster: Gives the name that every series has as ``ray_io_cluster``.
        temp_dir: Ray's, where the head lists all machines.

    Raises:
        EnvironmentFault: Prometheus is not installed, or does not take the configuration.
    """
    if not spec.monitoring:
        return None
    # Where the endpoint is for each machine alone, HAProxy tells its metrics there alone, too.
    here_only = spec.http_host == "127.0.0.1"
    return prepare(
        home() / "monitoring",
        discovery=str(temp_dir),
        cluster=cluster.name if cluster else "tandem",
        port=spec.prometheus_port,
        haproxy=[f"127.0.0.1:{HAPROXY_METRICS_PORT}"] if here_only else (),
        haproxy_port=None if here_only else HAPROXY_METRICS_PORT,
    )


def _ray_start(spec: HeadSpec, cluster: ClusterSpec | None, ip: str, temp_dir: Path) -> list[str]:
    return [
        ray_command(),
        "start",
        "--head",
        "--block",
        f"--node-ip-address={ip}",
        f"--port={spec.port}",
        f"--dashboard-host={ip}",
        f"--dashboard-port={spec.dashboard_port}",
        f"--temp-dir={temp_dir}",
        f"--metrics-export-port={spec.metrics_port}",
        "--disable-usage-stats",
        *machine_options(spec.num_cpus, spec.num_gpus, spec.group, cluster),
    ]


def _record(spec: HeadSpec, cluster: ClusterSpec | None, store: Store, *, has_token: bool) -> Record:
    name = cluster.name if cluster else "tandem"
    mark, content = leave_mark(store, name)
    return Record(
        name=name,
        machine=this_machine(),
        store=store.uri,
        mark=mark,
        mark_content=content,
        http_port=spec.http_port,
        has_token=has_token,
        spec=cluster,
    )


def _node(
    spec: HeadSpec,
    record: Record,
    ip: str,
    token_file: Path | None,
    temp_dir: Path,
    prometheus_url: str | None,
) -> PlainNode:
    pid, create_time = supervised.supervisor_id()
    host = ip if spec.http_host == "0.0.0.0" else spec.http_host
    return PlainNode(
        role="head",
        pid=pid,
        create_time=create_time,
        address=f"{ip}:{spec.port}",
        node_ip=ip,
        dashboard_url=f"http://{ip}:{spec.dashboard_port}",
        http_url=f"http://{host}:{spec.http_port}",
        token_file=str(token_file) if token_file else None,
        store=record.store,
        mark=record.mark,
        store_options=options_of(record.spec),
        temp_dir=str(temp_dir),
        prometheus_url=prometheus_url,
    )
