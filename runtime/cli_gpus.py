"""``tandem gpus``: the cards of the cluster and who holds which part of them."""

from __future__ import annotations

import json
import sys
import time

import click

from runtime.cli_options import address_option, json_option


@click.command()
@click.option("--watch", is_flag=True, help="Look again every second, until Ctrl-C.")
@address_option
@json_option
def gpus(address: str | None, watch: bool, as_json: bool) -> None:
    """Show every card, who holds which part of it, promised against used, and who waits for room.

    Without GPUs the shares are of the nodes' memory.
    """
    from rich.console import Console
    from rich.live import Live

    from cluster import local
    from cluster.ledger.shown import picture
    from runtime.core.errors import ClusterError
    from runtime.gpus import Gpus

    url = local.dashboard_of(address)
    if url is None:
        raise ClusterError("no local cluster runs. Start one with `tandem up`, or name one with --address.")
    if as_json:
        click.echo(json.dumps(picture(url), indent=2))
        return
    if not watch:
        console = Console()
        console.print(Gpus(picture(url)), soft_wrap=False)
        return
    try:
        with Live(console=Console(), auto_refresh=False, screen=True) as live:
            while True:
                live.update(Gpus(picture(url)), refresh=True)
                time.sleep(1)
    except KeyboardInterrupt:
        sys.exit(130)
