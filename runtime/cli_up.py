"""Starting and ending Ray on this machine: ``tandem up``, ``up --head``, ``up --join``, ``down``."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from runtime.cli_options import json_option, store_option

if TYPE_CHECKING:
    from cluster.plain.state import PlainNode


@click.command()
@click.argument("cluster", required=False, type=click.Path(path_type=Path), metavar="[CLUSTER]")
@click.option("--head", is_flag=True, help="Start the head of a cluster of several machines.")
@click.option("--join", metavar="HEAD:PORT", help="Make this machine a node of the cluster with this head.")
@click.option("--num-cpus", type=int, help="CPUs that Ray may hand out. Default: all, at least 2.")
@click.option("--num-gpus", type=int, help="GPUs that Ray may hand out. Default: all.")
@click.option(
    "--dashboard-port",
    type=int,
    help="Dashboard, job and Serve API; with --join: the head's. Default 8265; of the local cluster 0: any "
    "free one.",
)
@click.option(
    "--http-port", type=int, help="Serving endpoint. Default 8000; of the local cluster 0: any free one."
)
@click.option("--http-host", help="With --head: where the endpoint listens. Default 0.0.0.0.")
@click.option("--port", type=int, help="With --head: Ray's own port. Default 6379.")
@click.option("--metrics-port", type=int, help="With --head or --join: this machine's metrics. Default 8080.")
@click.option("--node-ip-address", metavar="IP", help="This machine's IPv4 address, as the others reach it.")
@click.option("--group", metavar="NAME", help="This machine's node group in the cluster spec.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="With --head: made where it is missing. With --join: a copy of the head's. "
    "Default: ~/.tandem/ray-token.",
)
@click.option(
    "--monitoring",
    is_flag=True,
    default=None,
    help="Prometheus beside it, with Tandem's alert rules; must be installed.",
)
@click.option(
    "--prometheus-port",
    type=int,
    help="Of that Prometheus, on 127.0.0.1. Default 9090; of the local cluster 0: any free one.",
)
@store_option
@json_option
def up(cluster: Path | None, head: bool, join: str | None, as_json: bool, **options: Any) -> None:
    """Start Ray on this machine, or find the one that runs. It outlives this command.

    Alone: the local cluster. With --head: the head of a cluster of several machines, as CLUSTER
    (cluster.yaml) says; with --join, on each other machine: a node of it.
    """
    from cluster.setup import ensure

    if head and join:
        raise click.UsageError("a machine is the head or joins one. Give --head or --join.")
    if cluster and not head:
        raise click.UsageError("CLUSTER is for --head. A machine that joins learns it from there.")
    ensure(["core", "train", "serve"])
    given = {name: value for name, value in options.items() if value is not None}
    if head:
        _up_head(cluster, given, as_json)
    elif join:
        _join(join, given, as_json)
    else:
        _up_local(given, as_json)


@click.command()
def down() -> None:
    """End Ray on this machine: training jobs, replicas, engines. With the head the whole cluster ends.

    A machine that joined leaves: training saves a checkpoint, requests are finished first.
    """
    from cluster import local
    from cluster.plain import state

    node = state.down()
    if node is None:
        click.echo("The local cluster has ended." if local.down() else "No local cluster runs.")
    elif node.role == "head":
        click.echo(f"The cluster at {node.address} has ended.")
    else:
        click.echo(f"This machine has left the cluster at {node.address}.")


def _up_local(given: dict[str, Any], as_json: bool) -> None:
    from cluster import local
    from runtime.core.config import load_spec

    spec = load_spec(local.LocalClusterSpec, _only(local.LocalClusterSpec.model_fields, given))
    # The store may come from the environment, where it is no wish for another cluster.
    if local.current() and given.keys() - {"store"}:
        click.echo("A cluster runs already: the options change nothing. First: tandem down", err=True)
    cluster = local.up(spec)
    if as_json:
        click.echo(cluster.to_json())
        return
    click.echo(f"Cluster    {cluster.address}\nDashboard  {cluster.dashboard_url}")
    _echo_prometheus(cluster.prometheus_url)
    click.echo("End it     tandem down")


def _up_head(cluster: Path | None, given: dict[str, Any], as_json: bool) -> None:
    from cluster.cluster_spec import ClusterSpec
    from cluster.plain import state
    from cluster.plain.head import HeadSpec, up_head
    from runtime.core.config import load_spec

    _refuse_any_free_port(given)
    spec = load_spec(HeadSpec, _only(HeadSpec.model_fields, given))
    ran = state.current()
    node = up_head(spec, load_spec(ClusterSpec, cluster) if cluster else None)
    if node == ran:
        _echo_in_vain([*(["CLUSTER"] if cluster else []), *_options(given.keys() - {"store"})])
    if as_json:
        click.echo(node.to_json())
        return
    click.echo(
        f"Head       {node.address}\nDashboard  {node.dashboard_url}\nEndpoint   {node.http_url}/v1\n"
        f"Store      {node.store}"
    )
    _echo_prometheus(node.prometheus_url)
    _echo_token(node)
    click.echo(f"Join       {shlex.join(_join_command(node))}\nEnd it     tandem down")


def _join(address: str, given: dict[str, Any], as_json: bool) -> None:
    from cluster.plain import state
    from cluster.plain.join import JoinSpec, join
    from runtime.core.config import load_spec

    _refuse_any_free_port(given)
    fields = {"address": address, **_only(JoinSpec.model_fields, given)}
    ran = state.current()
    node = join(load_spec(JoinSpec, fields))
    if node == ran:
        # The line that the head printed may be given twice: it says where the head is, no wish.
        _echo_in_vain(_options(given.keys() - {"store", "dashboard_port", "token_file"}))
    if as_json:
        click.echo(node.to_json())
        return
    click.echo(f"Joined     {node.address}, as {node.node_ip}\nDashboard  {node.dashboard_url}")
    click.echo(f"Store      {node.store}")
    _echo_token(node)
    click.echo("Leave it   tandem down")


def _join_command(node: PlainNode) -> list[str]:
    """What each other machine is told, as a shell takes it."""
    port = urlsplit(node.dashboard_url).port
    return [
        *("tandem", "up", "--join", node.address),
        *([] if port == 8265 else ["--dashboard-port", str(port)]),
        *(["--token-file", node.token_file] if node.token_file else []),
    ]


def _echo_in_vain(words: list[str]) -> None:
    if words:
        click.echo(
            f"This machine is a node already: {', '.join(words)} change nothing. First: tandem down", err=True
        )


def _refuse_any_free_port(given: dict[str, Any]) -> None:
    """A plain cluster's ports are told to other machines and their firewalls: nobody finds a free one."""
    zero = _options(name for name, value in given.items() if name.endswith("port") and value == 0)
    if zero:
        raise click.UsageError(
            f"{', '.join(zero)}: 0 takes any free port, which only the local cluster does: several machines "
            "must know the ports. Give a number, or leave it out for the default."
        )


def _options(names: Iterable[str]) -> list[str]:
    """As the user wrote them."""
    return sorted(f"--{name.replace('_', '-')}" for name in names)


def _echo_prometheus(url: str | None) -> None:
    if url:
        click.echo(f"Prometheus {url}")


def _echo_token(node: PlainNode) -> None:
    """Where the token is, never what it is."""
    if node.token_file:
        file = shlex.quote(node.token_file)
        click.echo(f"Token      export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={file}")


def _only(fields: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The options, where all of them are for this way of starting."""
    foreign = _options(name for name in given if name not in fields)
    if foreign:
        raise click.UsageError(f"{', '.join(foreign)} cannot be used here. See: tandem up --help")
    return given
