"""``tandem render``: everything that a cluster is on Kubernetes, as manifests."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

import click


@click.command()
@click.argument("cluster", metavar="CLUSTER.yaml", type=click.Path(path_type=Path))
@click.argument("specs", metavar="[SPEC.yaml]...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Write one file for each object into this folder, numbered in the order to apply them.",
)
@click.option("--format", "form", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True)
@click.option(
    "--offline",
    is_flag=True,
    help="Do not look at the store: the cluster checks models, datasets and memory when it starts them.",
)
def render(
    cluster: Path, specs: tuple[Path, ...], out: Path | None, form: Literal["yaml", "json"], offline: bool
) -> None:
    """Print the Kubernetes objects of a cluster, with the serve apps and training jobs in SPEC.

    Nothing is applied. Secrets are only referred to, Ray's token among them, which `tandem cluster apply`
    makes where it is missing. `tandem check` validates what comes out.
    """
    from cluster.kubernetes.token import token_command
    from cluster.kubernetes.writing import text_of, write_folder
    from runtime.rendering import rendered

    done = rendered(cluster, specs, offline=offline)
    for note in done.notes:
        click.echo(f"Note: {note}", err=True)
    if done.spec.auth.mode == "token":
        click.echo(
            "Note: whatever applies these manifests, `tandem cluster apply` excepted, needs the Secret with "
            f"Ray's token, which they only name: {token_command(done.spec)}",
            err=True,
        )
    if out is None:
        click.echo(text_of(done.manifests, form), nl=False)
        return
    write_folder(done.manifests, out, form)
    files = shlex.join(map(str, (cluster, *specs)))
    click.echo(f"{len(done.manifests)} objects in {out}. Apply them: tandem cluster apply {files}")
