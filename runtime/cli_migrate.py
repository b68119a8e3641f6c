"""``tandem migrate``: from what a cluster was to what Tandem needs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from runtime.cli_options import json_option

if TYPE_CHECKING:
    from cluster.kubernetes.leaving_time_slicing import Step
    from cluster.kubernetes.time_slicing import Shared


@click.group()
def migrate() -> None:
    """Take a cluster from what it was to what Tandem needs."""


@migrate.command("time-slicing")
@click.option("--yes", is_flag=True, help="Do it. Without this, only say what would be done.")
@click.option("--force", is_flag=True, help="Evict pods, too, that nobody makes anew: they are gone then.")
@click.option("--context", help="Of the kubeconfig. Default: its current one.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="For each pod to leave, and for each node to offer whole GPUs.",
)
@json_option
def time_slicing(yes: bool, force: bool, context: str | None, timeout_s: float, as_json: bool) -> None:
    """Show what shares GPUs by time-slicing or MPS, and (with --yes) turn it off, in order.

    What holds a replica is evicted first, as PodDisruptionBudgets allow. Stopped at any point, it can be run
    again and goes on. kubectl's commands are printed for each step.
    """
    from cluster.kubernetes.client import Kubernetes
    from cluster.kubernetes.leaving_advice import advice
    from cluster.kubernetes.leaving_time_slicing import bare_pods, plan
    from cluster.kubernetes.time_slicing_steps import carry_out, look

    client = Kubernetes.connect(context)
    shared = look(client)
    steps, told = plan(shared, context=context), advice(shared)
    if not as_json:
        _print_plan(shared, steps, told)
    if yes:
        if not force:
            _refuse_bare(bare_pods(shared))
        carry_out(client, steps, timeout_s=timeout_s, on_step=_say(len(steps), as_json))
    if as_json:
        click.echo(json.dumps(_report(shared, steps, told, done=yes), indent=2))
    elif steps:
        click.echo("Done." if yes else "Nothing was changed. To do it: tandem migrate time-slicing --yes")


def _refuse_bare(pods: list[Any]) -> None:
    from runtime.core.errors import ClusterError

    if pods:
        names = ", ".join(f"{one.namespace}/{one.name}" for one in pods)
        raise ClusterError(
            f"{names}: nobody makes these pods anew, so evicting them ends them for good. Nothing was "
            "changed. Save what they hold and delete them, or run the command with --force."
        )


def _say(of: int, quiet: bool) -> Any:
    """What prints each step as it begins."""
    count = 0

    def say(step: Step) -> None:
        nonlocal count
        count += 1
        if not quiet:
            click.echo(f"[{count}/{of}] {step.title}")

    return say


def _print_plan(shared: Shared, steps: list[Step], told: list[str]) -> None:
    from runtime.migration_view import print_shared

    print_shared(shared)
    for line in told:
        click.secho(f"Note: {line}", fg="yellow")
    if not steps:
        click.echo("Nothing to do.")
        return
    click.secho("\nWhat is done, in this order:", bold=True)
    for number, step in enumerate(steps, start=1):
        click.echo(f"{number:3}. {step.title}")
        for command in step.commands:
            click.secho(f"     {command}", dim=True)
    click.echo()


def _report(shared: Shared, steps: list[Step], told: list[str], *, done: bool) -> dict[str, Any]:
    from runtime.migration_view import described

    doing = [{"do": one.verb, "title": one.title, "commands": list(one.commands)} for one in steps]
    return {"found": described(shared), "notes": told, "steps": doing, "done": done}
