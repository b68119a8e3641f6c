"""``tandem cluster preflight``: whether a Kubernetes cluster has what a cluster spec counts on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runtime.cli_options import json_option

if TYPE_CHECKING:
    from rich.table import Table

    from cluster.kubernetes.findings import Finding

_COLOURS = {"error": "red", "warning": "yellow", "ok": "green"}


@click.command()
@click.argument("cluster", metavar="CLUSTER.yaml", type=click.Path(path_type=Path))
@click.option("--context", help="Of the kubeconfig. Default: its current one.")
@json_option
def preflight(cluster: Path, context: str | None, as_json: bool) -> None:
    """Look at a Kubernetes cluster and say what a cluster spec would find missing. Changes nothing.

    Nodes and their GPUs, time-slicing, KubeRay, the Prometheus operator, namespaces, storage classes, Secrets
    (names and keys, never values), Gateway classes, queues. Exit code 1 when something would not work.
    """
    from cluster.cluster_spec import ClusterSpec
    from cluster.kubernetes.client import Kubernetes
    from cluster.kubernetes.findings import errors
    from cluster.kubernetes.preflight import preflight as looked_at
    from runtime.core.config import load_spec

    spec = load_spec(ClusterSpec, cluster)
    found = looked_at(Kubernetes.connect(context), spec)
    if as_json:
        click.echo(json.dumps([one.to_dict() for one in found], indent=2))
    else:
        print_findings(found)
    sys.exit(1 if errors(found) else 0)


def print_findings(found: list[Finding]) -> None:
    """Print findings as a table, and how many there are of each level."""
    from rich.console import Console

    console = Console()
    console.print(_table(found))
    counts = {level: sum(one.level == level for one in found) for level in _COLOURS}
    console.print(f"{counts['error']} errors, {counts['warning']} warnings, {counts['ok']} fine.")


def _table(found: list[Finding]) -> Table:
    from rich.table import Column, Table
    from rich.text import Text

    table = Table("", "about", Column("seen, why it matters, what to do", overflow="fold"), show_lines=True)
    for one in found:
        # As text: brackets in a message are no markup.
        words = Text(one.seen)
        for part, style in ((one.why, ""), (one.remedy, "bold")):
            if part:
                words.append(f"\n{part}", style)
        table.add_row(Text(one.level, _COLOURS[one.level]), Text(one.topic), words)
    return table
