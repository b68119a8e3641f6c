"""``tandem simulate``: how a cluster would fill, as a picture."""

from __future__ import annotations

import json
from pathlib import Path

import click

from runtime.cli_options import json_option


@click.command()
@click.argument("cluster", metavar="CLUSTER.yaml", type=click.Path(path_type=Path))
@click.argument("workload", metavar="WORKLOAD.yaml", type=click.Path(path_type=Path))
@click.option(
    "--at",
    "at_s",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="When to look at the cards. Default: when most of them are used.",
)
@json_option
def simulate(cluster: Path, workload: Path, at_s: float | None, as_json: bool) -> None:
    """Show how a cluster would fill with a workload: who lies where, who waits, who is refused.

    Nothing is started. Places and queue follow the rules that a real cluster's admission uses. CLUSTER.yaml
    is a cluster spec (its node groups at their largest), or a list of nodes as in examples/simulate.
    """
    from cluster.simulation import simulate as simulated
    from cluster.simulation_spec import WorkloadSpec, load_cluster
    from runtime.core.config import load_spec
    from runtime.simulate import described, print_picture

    inventory, classes = load_cluster(cluster)
    result = simulated(inventory, load_spec(WorkloadSpec, workload), classes=classes)
    if as_json:
        click.echo(json.dumps(described(result, at_s), indent=2))
        return
    print_picture(result, at_s)
