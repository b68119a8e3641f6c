"""``tandem cluster level``: a cluster spec with a train and a serve spec for one of the usual layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("number", metavar="0|1|2", type=click.Choice(["0", "1", "2"]))
@click.option("--name", default="lab", show_default=True, help="Of the cluster.")
@click.option("--image", help="With the three environments (cluster/images/Dockerfile).")
@click.option("--gpu", default="L4", show_default=True, help="The product, as Kubernetes or NVML spells it.")
@click.option("--gpus", type=click.IntRange(1, 16), default=4, show_default=True, help="Of each node.")
@click.option("--nodes", type=click.IntRange(1), default=3, show_default=True, help="At level 2.")
@click.option(
    "--cpus", type=click.IntRange(1), default=8, show_default=True, help="That each node can allocate."
)
@click.option(
    "--memory-gib", type=click.IntRange(1), default=32, show_default=True, help="That each node can allocate."
)
@click.option("--store", help="gs://..., s3://..., or an NFS export as server:/path. Level 2 needs one.")
@click.option("--model", default="base", show_default=True, help="To train and serve: a name or an address.")
@click.option("--dataset", default="dataset", show_default=True, help="Of the store.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Folder for cluster.yaml, train.yaml and serve.yaml. Default: this one.",
)
def level(number: str, out: Path, image: str | None, **options: Any) -> None:
    """Write cluster.yaml, train.yaml and serve.yaml for a layout; files that are there stay.

    \b
    0   one GPU, shared by fractions between training and serving
    1   one node: some GPUs train, the others serve one model with tensor parallelism
    2   several nodes: a group that trains, a group of replicas spread over nodes, load balancer, autoscaling
    """
    from runtime.levels import LEVELS, Layout, files, write

    given = options | ({"image": image} if image else {})
    written = write(files(Layout(LEVELS[int(number)], **given)), out)
    for file in written:
        click.echo(file)
    if image is None:
        click.echo(
            "Note: `image` in cluster.yaml is a placeholder; docs/kubernetes.md says how to build one.",
            err=True,
        )
    if "://" in (options["store"] or ""):
        click.echo(
            "Note: `store` in cluster.yaml names no credentials for the bucket. Take one of the lines below "
            "its uri, unless the nodes' own identity may read and write it.",
            err=True,
        )
