"""The command line. Every command is a few lines over the SDK; heavy imports wait until they are used."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from runtime import __version__
from runtime.cli_adapters import adapters
from runtime.cli_batch import batch
from runtime.cli_check import check
from runtime.cli_cluster import cluster
from runtime.cli_datasets import datasets
from runtime.cli_gpus import gpus
from runtime.cli_keys import keys
from runtime.cli_migrate import migrate
from runtime.cli_models import models
from runtime.cli_monitoring import monitoring
from runtime.cli_options import address_option, dry_run_option, json_option, no_wait_option, store_option
from runtime.cli_plan import plan as plan_command
from runtime.cli_render import render
from runtime.cli_runs import runs
from runtime.cli_simulate import simulate
from runtime.cli_storage import storage
from runtime.cli_sweep import sweep
from runtime.cli_up import down, up
from runtime.core.errors import TandemError
from runtime.core.log import configure, get_logger
from runtime.path_errors import path_in_words

_log = get_logger(__name__)
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Group(click.Group):
    """Turns our errors into one readable message and an exit code; nobody wants a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TandemError as error:
            click.secho(f"Error: {error}", fg="red", err=True)
            sys.exit(error.exit_code)
        except OSError as error:
            if error.filename is None:
                raise
            # A folder that an option or a variable names: anybody's to mend, wherever it was met.
            click.secho(f"Error: {path_in_words(error)}", fg="red", err=True)
            _log.debug("where it happened", exc_info=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo(
                "\nInterrupted. What runs on the cluster goes on; `tandem down` ends all of it.", err=True
            )
            sys.exit(130)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Group, context_settings=_CONTEXT)
@click.version_option(__version__)
@click.option("-v", "--verbose", is_flag=True, help="Log what Tandem does.")
def main(verbose: bool) -> None:
    """Fine-tune with LLaMA-Factory and serve with vLLM on one Ray cluster.

    \b
    First steps:
      tandem demo                 train, publish, serve and ask a small model
      tandem train train.yaml     submit a training job and watch it
      tandem serve serve.yaml     put a model behind an OpenAI-compatible endpoint
      tandem down                 end the local cluster and every process of it
    """
    configure(verbose)


@main.command()
def setup() -> None:
    """Build the environments (core, train, serve) that are missing."""
    from cluster.setup import ensure

    ensure(["core", "train", "serve"])


main.add_command(up)
main.add_command(down)


@main.command()
@click.option(
    "--watch",
    "period_s",
    type=click.FloatRange(0.2),
    is_flag=False,
    flag_value=1.0,
    metavar="[SECONDS]",
    help="Look again every so many seconds (1), until Ctrl-C.",
)
@address_option
@store_option
@json_option
def status(address: str | None, store: str | None, as_json: bool, period_s: float | None) -> None:
    """Show the cluster, its serve apps and the newest runs. Starts nothing.

    Of a replica: requests in its engine and waiting, the share of the KV cache in use, and of the last 10 s
    the tokens generated per second and the time to first token (90th percentile).
    """
    from runtime.status import print_status, watch_status

    if period_s is None:
        print_status(address, store, as_json=as_json)
        return
    if as_json:
        raise click.UsageError("--watch is for a terminal. Leave out --watch or --json.")
    try:
        watch_status(address, store, period_s=period_s)
    except KeyboardInterrupt:
        sys.exit(130)


@main.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check environments, cluster, GPUs and disk; say the remedy for each problem. Exit code 1 if any."""
    from runtime.doctor import collect
    from runtime.doctor_table import print_report

    report = collect()
    if as_json:
        click.echo(json.dumps(asdict(report), indent=2))
    else:
        print_report(report)
    sys.exit(1 if report.problems else 0)


@main.command()
@click.argument("spec", required=False)
@click.option(
    "--llamafactory", metavar="FILE", help="Instead of SPEC: a YAML file as llamafactory-cli train takes it."
)
@click.option(
    "--resume",
    metavar="RUN",
    help="Instead of SPEC: a run that failed, was stopped or lost its cluster; goes on from its last "
    "checkpoint.",
)
@click.option(
    "--num-workers",
    type=click.IntRange(1),
    help="Workers, instead of scaling.num_workers; with --resume the global batch stays what it was.",
)
@address_option
@store_option
@dry_run_option
@click.option("-d", "--detach", is_flag=True, help="Return once the job is submitted.")
@no_wait_option
def train(
    spec: str | None,
    llamafactory: str | None,
    resume: str | None,
    num_workers: int | None,
    address: str | None,
    store: str | None,
    dry_run: bool,
    detach: bool,
    no_wait: bool,
) -> None:
    """Submit the training job in SPEC and watch it."""
    from runtime.plans import train_plan
    from storage.store import open_store
    from train_jobs.source import read_source

    if resume is not None:
        _refuse_a_spec_beside_resume(spec, llamafactory, dry_run)
        _follow(_tandem(address, store).resume(resume, num_workers=num_workers, no_wait=no_wait), detach)
        return
    opened = open_store(store)
    source = read_source(spec, llamafactory, store=opened, num_workers=num_workers)
    # Before a cluster is started: a wrong spec costs no wait.
    plan = train_plan(source, address, store)
    if dry_run:
        click.echo(plan.to_json())
        return
    for note in plan.notes:
        click.echo(f"Note: {note}", err=True)
    source.register(opened)
    _follow(_tandem(address, store).train(source.spec, no_wait=no_wait), detach)


def _refuse_a_spec_beside_resume(spec: str | None, llamafactory: str | None, dry_run: bool) -> None:
    from runtime.core.errors import ConfigError

    given = [
        name
        for name, is_there in (("SPEC", spec), ("--llamafactory", llamafactory), ("--dry-run", dry_run))
        if is_there
    ]
    if given:
        raise ConfigError(f"--resume goes on with the run's own spec. Leave out: {', '.join(given)}.")


def _follow(run: Any, detach: bool) -> None:
    from rich.console import Console

    from runtime.progress import follow

    click.echo(f"Run {run.run_id}\n    {run.uri}")
    if not detach:
        follow(run, Console())
        click.echo(f"Model {run.model}" if run.model else f"Done: {run.uri}")


@main.command()
@click.argument("spec", type=click.Path(path_type=Path))
@address_option
@store_option
@dry_run_option
@click.option("-d", "--detach", is_flag=True, help="Return once the app is deployed, before it answers.")
@no_wait_option
def serve(
    spec: Path, address: str | None, store: str | None, dry_run: bool, detach: bool, no_wait: bool
) -> None:
    """Deploy the serve app in SPEC and wait until it answers."""
    from runtime.plans import serve_plan

    plan = serve_plan(spec, address, store)
    if dry_run:
        click.echo(plan.to_json())
        return
    app = _tandem(address, store).serve(spec, no_wait=no_wait)
    if not detach:
        app.wait()
    click.echo(
        f"App {app.name}: {app.status}\n    {app.endpoint}  (model {app.name!r}; alone at {app.url}/v1)"
    )


main.add_command(adapters)
main.add_command(batch)
main.add_command(gpus)
main.add_command(keys)
main.add_command(runs)
main.add_command(models)
main.add_command(plan_command)
main.add_command(datasets)
main.add_command(storage)
main.add_command(sweep)
main.add_command(simulate)
main.add_command(render)
main.add_command(check)
main.add_command(cluster)
main.add_command(migrate)
main.add_command(monitoring)


@main.command()
@click.argument("run_id", metavar="RUN")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until the run has ended.")
@click.option("--rank", type=click.IntRange(0), help="Only what this worker prints, from 0 on.")
@store_option
def logs(run_id: str, follow: bool, rank: int | None, store: str | None) -> None:
    """Print the log of a run: its id, or its name for the newest. All workers' lines are in it.

    Of a run that has ended it is there also when its cluster is gone.
    """
    from runtime.run import Run
    from storage.store import open_store

    run = Run(open_store(store).run(run_id))
    if not follow:
        click.echo(run.logs(rank).rstrip("\n"))
        return
    for line in run.follow_logs(rank):
        click.echo(line)


@main.command()
@click.argument("name")
@click.option("--now", is_flag=True, help="End a run at once, without a checkpoint.")
@address_option
@store_option
def stop(name: str, now: bool, address: str | None, store: str | None) -> None:
    """Stop the serve app or the training run NAME, and wait until it has ended.

    A run saves a checkpoint at the end of its step first; `tandem train --resume RUN` goes on from there.
    """
    from runtime.status import stop_anything

    click.echo(stop_anything(name, address, store, now=now))


@main.command()
@store_option
@click.option(
    "--questions", default=20, show_default=True, type=click.IntRange(20, 100), help="How many to ask."
)
def demo(store: str | None, questions: int) -> None:
    """Train, publish, serve and ask a small model on this machine, in a few minutes."""
    from cluster.setup import ensure

    ensure(["core", "train", "serve"])
    from runtime.demo import run_demo

    sys.exit(run_demo(store, questions))


def _tandem(address: str | None, store: str | None) -> Any:
    from cluster.setup import ensure
    from runtime.sdk import Tandem

    if address is None:
        ensure(["core", "train", "serve"])
    return Tandem(address, store=store)


if __name__ == "__main__":
    main()
