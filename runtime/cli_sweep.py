"""``tandem sweep``: several runs of one recipe with different values, watched in one table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from runtime.cli_options import address_option, dry_run_option, json_option, show, store_option

if TYPE_CHECKING:
    from rich.table import Table

    from runtime.sweep import Sweep
    from runtime.sweep_folder import TrialRow


@click.command()
@click.argument("source", metavar="SPEC|ID")
@address_option
@store_option
@dry_run_option
@click.option("-d", "--detach", is_flag=True, help="Return once the sweep is submitted.")
@click.option("--stop", is_flag=True, help="With an ID: end the sweep and its runs.")
@json_option
def sweep(
    source: str,
    address: str | None,
    store: str | None,
    dry_run: bool,
    detach: bool,
    stop: bool,
    as_json: bool,
) -> None:
    """Run a hyper-parameter sweep with Ray Tune: SPEC is its file.

    Every trial is an ordinary run of its own. The sweep is a job on the cluster: it goes on when this command
    is interrupted. With the ID of a sweep: watch it again, or --stop it.
    """
    from runtime import sweep as sweeps
    from runtime.core.errors import ConfigError

    if sweeps.is_sweep_id(source):
        from storage.store import open_store

        found = sweeps.find_sweep(open_store(store), source)
        if stop:
            ended = found.stop()
            click.echo(
                f"Sweep {found.sweep_id} has ended; runs that end with it: {', '.join(ended) or 'none'}."
            )
            return
    elif stop:
        raise ConfigError(
            f"--stop takes the id of a sweep, and {source!r} is none. `tandem sweep` printed it."
        )
    else:
        planned = _planned(source, address, store)
        if dry_run:
            click.echo(planned.to_json())
            return
        found = _start(source, address, store)
        click.echo(
            f"Sweep {found.sweep_id}: {len(found.plan.trials)} trials, "
            f"{found.plan.max_concurrent_trials} at once\n"
            f"    {found.uri}",
            err=as_json,
        )
        if detach:
            return
    _watch(found, as_json)


def _planned(source: str, address: str | None, store: str | None) -> Any:
    """Before a cluster is started: a wrong spec costs no wait."""
    from cluster import local
    from cluster.ledger.shown import at_its_largest
    from runtime.sweep import plan_of
    from storage.store import open_store

    url = local.dashboard_of(address)
    nodes = at_its_largest(url) if url else local.expected(local.LocalClusterSpec())
    return plan_of(source, store=open_store(store), inventory=nodes)


def _start(source: str, address: str | None, store: str | None) -> Sweep:
    from cluster.setup import ensure
    from runtime.sdk import Tandem
    from runtime.sweep import start_sweep

    if address is None:
        ensure(["core", "train", "serve"])
    return start_sweep(Tandem(address, store=store), source)


def _watch(sweep: Sweep, as_json: bool) -> None:
    """A live table until the end; then the result, and its error where it failed."""
    from rich.console import Console
    from rich.live import Live

    from runtime.core.errors import TandemError

    console = Console(stderr=True)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for _ in sweep.watch():
            # Every look asks for every run: not for a pipe, which shows nothing of it.
            if console.is_terminal:
                live.update(_table(_cells(sweep.trials(), sweep.plan.metric)), refresh=True)
    if not as_json:
        trials = sweep.trials()
        rows = _cells(trials, sweep.plan.metric)
        show(rows, list(rows[0]), as_json=False)
        for trial in trials:
            if trial.error:
                click.echo(f"{trial.run_id or f'trial {trial.trial}'}: {trial.error}")
    result = sweep.ended()
    if as_json:
        click.echo(result.to_json())
    if result.error:
        raise TandemError(f"sweep {sweep.sweep_id} failed: {result.error}")


def _table(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(*rows[0])
    for row in rows:
        table.add_row(*("" if value is None else _short(value) for value in row.values()))
    return table


def _short(value: Any) -> str:
    from rich.markup import escape

    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def _cells(rows: list[TrialRow], metric: str) -> list[dict[str, Any]]:
    """What people look at: one column for each searched field, under its last word."""
    return [
        {
            "run_id": row.run_id or f"trial {row.trial}",
            **{field.rpartition(".")[2]: value for field, value in row.params.items()},
            "status": row.status,
            "step": row.step,
            metric: row.metric,
            "best": "best" if row.best else None,
        }
        for row in rows
    ]
