"""What runs now: the cluster, its serve apps, the newest runs. Looks, and starts nothing."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console

from cluster import applications, local
from cluster.rest import cluster_resources, ray_version
from runtime.app import App
from runtime.core.errors import ClusterError, ConfigError
from runtime.run import ENDED, Run
from runtime.show import print_table
from storage.store import open_store

_NEWEST = 5


def print_status(address: str | None, store: str | None, *, as_json: bool) -> None:
    """Print cluster, apps and the newest runs."""
    data = collect(address, store)
    if as_json:
        click.echo(json.dumps(data, indent=2))
        return
    cluster = data["cluster"]
    if cluster:
        print_table([cluster], ["dashboard_url", "ray_version", "CPU", "GPU"], title="cluster")
        print_table(data["apps"], ["name", "status", "model", "url", "message"], title="apps")
    else:
        click.echo("No local cluster runs. Start one with `tandem up`.")
    print_table(data["runs"], ["run_id", "status", "step", "max_steps", "loss", "model"], title="newest runs")


def collect(address: str | None, store: str | None) -> dict[str, Any]:
    """Cluster (or None), apps and the newest runs as plain data."""
    url = local.dashboard_of(address)
    runs = [Run(folder).describe() for folder in open_store(store).runs()[-_NEWEST:]]
    if url is None:
        return {"cluster": None, "apps": [], "runs": runs}
    total = cluster_resources(url)
    cluster = {
        "dashboard_url": url,
        "ray_version": ray_version(url),
        "CPU": total["CPU"],
        "GPU": total["GPU"],
    }
    apps = [App(url, name).describe() for name in sorted(applications.applications(url))]
    return {"cluster": cluster, "apps": apps, "runs": runs}


def stop_anything(name: str, address: str | None, store: str | None, *, now: bool = False) -> str:
    """Stop the serve app ``name``, or else this run, and wait until it has ended; says what was done.

    Args:
        now: End a run at once, without a checkpoint.

    Raises:
        ConfigError: neither exists.
        ClusterError: no cluster runs.
    """
    url = local.dashboard_of(address)
    if url is None:
        raise ClusterError(
            "no local cluster runs, so nothing is to be stopped. Name a remote one with --address."
        )
    if name in applications.applications(url):
        App(url, name).stop()
        return f"App {name} has ended." + _still_running(name, store)
    try:
        run = Run(open_store(store).run(name))
    except ConfigError:
        deployed = ", ".join(sorted(applications.applications(url))) or "none"
        raise ConfigError(
            f"{name!r} is neither a deployed app ({deployed}) nor a run. See `tandem runs`."
        ) from None
    return _stop_run(run, now=now)


def _stop_run(run: Run, *, now: bool) -> str:
    saves = not now and run.is_training()
    if not run.stop(now=now):
        return f"Run {run.run_id} has ended already: {run.status}."
    with Console().status(f"run {run.run_id}: " + ("saving a checkpoint..." if saves else "ending...")):
        status = run.wait_until_ended()
    if status != "STOPPED":
        return (
            f"Run {run.run_id} ended before it could be stopped: {status}. See: tandem runs show {run.run_id}"
        )
    return f"Run {run.run_id} {run.error}. Go on with: tandem train --resume {run.run_id}"


def _still_running(name: str, store: str | None) -> str:
    """A word on runs of the same name, which somebody may have meant."""
    runs = [run for run in map(Run, open_store(store).runs(name)) if run.status not in ENDED]
    return "".join(f"\nThe run {run.run_id} goes on; stop it by its id." for run in runs)
