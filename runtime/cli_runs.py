"""``tandem runs``: list training runs, look at one closely, compare several."""

from __future__ import annotations

import json
from string import ascii_uppercase

import click

from runtime.cli_options import ListsByDefault, json_option, show, store_option


@click.group(cls=ListsByDefault)
def runs() -> None:
    """List training runs (`tandem runs [NAME]`), show or compare them.

    A run is named by its id, or by its name for the newest.
    """


@runs.command("ls")
@click.argument("name", required=False)
@store_option
@json_option
def list_(name: str | None, store: str | None, as_json: bool) -> None:
    """List the training runs in the store, of NAME or all."""
    from runtime.run import Run
    from storage.store import open_store

    rows = [Run(folder).describe() for folder in open_store(store).runs(name)]
    show(rows, ["run_id", "status", "step", "max_steps", "loss", "model"], as_json)


@runs.command("show")
@click.argument("run_id", metavar="RUN")
@click.option("-f", "--follow", is_flag=True, help="Keep it up to date until the run has ended.")
@store_option
@json_option
def show_(run_id: str, follow: bool, store: str | None, as_json: bool) -> None:
    """Show where RUN stands: loss, speed, loss curve, checkpoints, attempts, evaluations."""
    from rich.console import Console

    from runtime.progress import watch
    from runtime.run import Run
    from runtime.run_report import report
    from runtime.run_view import view
    from storage.store import open_store

    if follow and as_json:
        raise click.UsageError("--json prints the run as it stands: leave out --follow.")
    run = Run(open_store(store).run(run_id))
    console = Console()
    if follow:
        watch(run, console)
    if as_json:
        click.echo(json.dumps(report(run), indent=2))
    else:
        console.print(view(report(run)))


@runs.command()
@click.argument("run_ids", metavar="RUN RUN...", nargs=-1, required=True)
@store_option
@json_option
def compare(run_ids: tuple[str, ...], store: str | None, as_json: bool) -> None:
    """Compare runs: fields of the spec that differ, last metrics, loss curves."""
    from runtime.compare import compare as compared
    from runtime.run import Run
    from runtime.show import loss_curves, print_table
    from storage.store import open_store

    opened = open_store(store)
    found = compared(*(Run(opened.run(run_id)) for run_id in run_ids))
    if as_json:
        click.echo(json.dumps(found.table(), indent=2))
        return
    # Ids are too long for columns, and a curve is drawn with one letter.
    letters = dict(zip(found.metrics, ascii_uppercase, strict=False))
    if len(letters) < len(run_ids):
        raise click.UsageError(f"{len(run_ids)} runs: a terminal has room for {len(letters)}. Use --json.")
    print_table(
        [
            {"": letter, "run_id": run_id, "status": found.statuses[run_id]}
            for run_id, letter in letters.items()
        ],
        ["", "run_id", "status"],
    )
    for title, rows in (("spec", found.spec), ("metrics", found.outcome)):
        named = [{letters.get(key, key): value for key, value in row.items()} for row in rows]
        if named:
            print_table(named, ["name", *letters.values()], title=title)
    click.echo(loss_curves({letters[run_id]: rows for run_id, rows in found.metrics.items()}))
