"""``tandem monitoring``: what Prometheus and Grafana need to watch a cluster, as files of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

_out_option = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write into this folder, not to the screen.",
)


@click.group()
def monitoring() -> None:
    """Print or write the configuration of Prometheus, the alert rules, and Grafana's dashboards.

    \b
    tandem up --monitoring     starts Prometheus with the same beside the local cluster
    """


@monitoring.command()
@click.option(
    "--discovery",
    metavar="WHERE",
    help="Ray's temp folder on the head, or the dashboard's URL. Default: of the cluster that runs here.",
)
@click.option(
    "--cluster", default="local", show_default=True, help="The label ray_io_cluster of every series."
)
@click.option("--haproxy", multiple=True, metavar="HOST:PORT", help="HAProxy's own metrics. May be repeated.")
@click.option(
    "--haproxy-port",
    type=click.IntRange(1, 65535),
    help="Port of HAProxy's own metrics on every node that Ray lists: 9101 on a plain cluster.",
)
@click.option(
    "--token-file",
    help="File with Ray's token, where the dashboard asks for one; Prometheus' account must be able to read "
    "it. Default: that of the plain cluster that runs here.",
)
@_out_option
def config(
    discovery: str | None,
    cluster: str,
    haproxy: tuple[str, ...],
    haproxy_port: int | None,
    token_file: str | None,
    out: Path | None,
) -> None:
    """prometheus.yml, which reads the alert rules from rules.yml beside it."""
    from cluster.monitoring.prometheus import prometheus_config, to_text

    if discovery is None:
        discovery, own_token_file = _found_here()
        token_file = token_file or own_token_file
    _warn_where_nothing_is_listed(discovery)
    made = prometheus_config(
        discovery=discovery,
        cluster=cluster,
        rule_files=["rules.yml"],
        haproxy=haproxy,
        haproxy_port=haproxy_port,
        token_file=token_file,
    )
    _give({"prometheus.yml": to_text(made)}, out)


@monitoring.command()
@_out_option
def rules(out: Path | None) -> None:
    """rules.yml: what is an alert."""
    from cluster.monitoring.prometheus import to_text
    from cluster.monitoring.rules import rule_groups

    _give({"rules.yml": to_text({"groups": rule_groups()})}, out)


@monitoring.command()
@_out_option
def dashboards(out: Path | None) -> None:
    """Grafana's dashboards: Ray's own, as the installed Ray makes them, and ours. With --out a file each."""
    from cluster.monitoring.dashboards import dashboards as made
    from cluster.monitoring.prometheus import to_text

    found = made()
    _give({f"{name}.json": to_text(one) for name, one in found.items()} if out else {"": to_text(found)}, out)


def _found_here() -> tuple[str, str | None]:
    """Where the cluster of this machine lists its nodes, and the file with its token.

    A node of a plain cluster gives the dashboard's address, which serves any machine and any account.
    """
    from cluster import local
    from cluster.plain import state
    from runtime.core.errors import ConfigError

    if running := local.current():
        return running.temp_dir, None
    if node := state.current():
        return node.dashboard_url, node.token_file
    raise ConfigError(
        "--discovery is missing, and no cluster runs on this machine. Give the dashboard's URL, "
        "http://head:8265, or Ray's temp folder on the head."
    )


def _warn_where_nothing_is_listed(discovery: str) -> None:
    from cluster.monitoring.prometheus import DISCOVERY_FILE

    file = Path(discovery) / DISCOVERY_FILE
    if discovery.startswith("/") and not file.exists():
        click.echo(
            f"Note: {file} does not exist, or this account may not look. Ray's head writes it into its temp "
            "folder, which `tandem up --head` has at ~/.tandem/ray or /tmp/tandem-UID-*. Its dashboard's URL "
            "lists the same.",
            err=True,
        )


def _give(files: Mapping[str, str], out: Path | None) -> None:
    for name, text in files.items():
        if out is None:
            click.echo(text, nl=False)
            continue
        out.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
        click.echo(out / name)
