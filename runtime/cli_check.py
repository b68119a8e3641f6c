"""``tandem check``: whether a cluster would take manifests, before one is asked."""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runtime.cli_options import json_option

if TYPE_CHECKING:
    from cluster.kubernetes.faults import Fault
    from cluster.kubernetes.schemas import Schemas


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--schemas",
    "folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder with the CustomResourceDefinitions of custom kinds. Default: those of the cluster that the "
    "kubeconfig names, if it answers.",
)
@click.option("--from-cluster", is_flag=True, help="Only with the schemas of that cluster: it must answer.")
@click.option("--strict", is_flag=True, help="Advice counts as a fault, too.")
@json_option
def check(
    paths: tuple[Path, ...], folder: Path | None, from_cluster: bool, strict: bool, as_json: bool
) -> None:
    """Check Kubernetes manifests (YAML, JSON, folders of them) without applying anything.

    Structure against the kinds' schemas, strictly, and the kinds' own rules; what only KubeRay's operator or
    the creation of pods would refuse; objects that are there twice; and advice. Exit code 2 when there are
    faults.
    """
    from cluster.kubernetes.check import check as check_manifests
    from cluster.kubernetes.check import without_schema
    from cluster.kubernetes.manifest_files import read_manifests

    if folder and from_cluster:
        raise click.UsageError("--schemas and --from-cluster are two sources. Leave one out.")
    written = read_manifests(paths)
    schemas, source = _schemas(folder, from_cluster)
    manifests = [one.manifest for one in written]
    found = check_manifests(manifests, schemas, files=[one.file for one in written])
    unknown = without_schema(manifests, schemas)
    if as_json:
        _print_json(found, len(written), unknown, source)
    else:
        _print(found, len(written), unknown, source)
    sys.exit(2 if any(strict or not fault.warning for fault in found) else 0)


def _schemas(folder: Path | None, from_cluster: bool) -> tuple[Schemas, str]:
    """The schemas of custom kinds, and where they are from."""
    from cluster.kubernetes.client import Kubernetes
    from cluster.kubernetes.schemas import Schemas
    from runtime.core.errors import ClusterError

    if folder:
        return Schemas.from_folder(folder), str(folder)
    try:
        return Schemas.from_cluster(Kubernetes.connect()), "the cluster"
    except ClusterError:
        if from_cluster:
            raise
        return Schemas({}), "none"


def _print_json(found: list[Fault], objects: int, unknown: list[str], source: str) -> None:
    report = {
        "objects": objects,
        "schemas": source,
        "without_schema": unknown,
        "faults": [fault.to_dict() for fault in found if not fault.warning],
        "advice": [fault.to_dict() for fault in found if fault.warning],
    }
    click.echo(json.dumps(report, indent=2, default=str))


def _print(found: list[Fault], objects: int, unknown: list[str], source: str) -> None:
    for (file, kind, name), faults in groupby(found, key=lambda fault: (fault.file, fault.kind, fault.name)):
        click.secho(f"{file}: {kind} {name}", bold=True)
        for fault in faults:
            word, colour = ("advice", "yellow") if fault.warning else ("fault", "red")
            click.echo(f"  {click.style(word, fg=colour)}: {fault.in_object()}")
    if unknown:
        why = "No schemas were given and no cluster answered" if source == "none" else f"Not in {source}"
        click.echo(f"{why}, so these kinds were checked by Tandem's lint only: {', '.join(unknown)}.")
    advice = sum(fault.warning for fault in found)
    click.echo(f"{objects} objects: {len(found) - advice} faults, {advice} pieces of advice.")
