"""``tandem plan``: will it fit, and on what."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from runtime.cli_options import address_option, json_option, store_option


@click.command()
@click.argument("target", metavar="SPEC|MODEL")
@click.option("--llamafactory", is_flag=True, help="SPEC is a YAML file as llamafactory-cli train takes it.")
@click.option(
    "--gpu",
    metavar="PRODUCT",
    help="On this GPU instead of the cluster's: a name as NVML, Kubernetes or Ray spells it (A100-SXM4-80GB, "
    "NVIDIA-L4), or a MIG device's.",
)
@click.option(
    "--num-gpus", type=click.IntRange(1), default=1, show_default=True, help="With --gpu: how many."
)
@address_option
@store_option
@json_option
def plan(target: str, **options: Any) -> None:
    """Estimate the memory of SPEC (a train or serve spec) before anything runs, or of MODEL on all hardware.

    Of a spec: what each worker needs and has, where the bytes go, what would make it fit, and on which GPUs
    it fits. Exit code 1 when it does not. Of a model: how many GPUs of each product serve and train it. Only
    the headers of the model's files are read; nothing is downloaded or started.
    """
    from runtime.estimate import Overview, estimate
    from runtime.estimate_view import print_overview, print_report
    from runtime.plans import nodes_at
    from storage.store import open_store

    found = estimate(
        target,
        open_store(options["store"]),
        inventory=nodes_at(options["address"]),
        gpu=options["gpu"],
        num_gpus=options["num_gpus"],
        is_llamafactory=options["llamafactory"],
    )
    if options["as_json"]:
        click.echo(json.dumps(found.to_dict(), indent=2))
    elif isinstance(found, Overview):
        print_overview(found)
    else:
        print_report(found)
    if not isinstance(found, Overview) and found.fits is False:
        sys.exit(1)
