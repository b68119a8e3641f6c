"""What runs now: the cluster, its serve apps, the newest runs. Looks, and starts nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from cluster import applications, local
from cluster.ledger.shown import picture
from cluster.rest import cluster_resources, ray_version
from runtime.app import App
from runtime.core.errors import ClusterError, ConfigError, TandemError
from runtime.gpus import Gpus, share_row, waiting_row
from runtime.run import ENDED, Run
from runtime.show import Rows, print_table, table
from storage.store import open_store

_NEWEST = 5
_NO_CLUSTER = "No local cluster runs. Start one with `tandem up`."
_LIVE: dict[str, tuple[str, Callable[[float], str]]] = {
    "running": ("running", "{:.0f}".format),
    "waiting": ("waiting", "{:.0f}".format),
    "tok/s": ("tokens_per_s", "{:.0f}".format),
    "TTFT": ("ttft_s", lambda ttft_s: f"{ttft_s * 1000:.0f} ms"),
    "KV": ("kv_cache_usage", "{:.0%}".format),
}
"""Column by column: the figure of a replica, and how it is written."""


def print_status(address: str | None, store: str | None, *, as_json: bool) -> None:
    """Print cluster, apps with their replicas, and the newest runs."""
    data = collect(address, store)
    if as_json:
        click.echo(json.dumps(data, indent=2))
        return
    if data["cluster"] is None:
        click.echo(_NO_CLUSTER)
    for rows, columns, title in _tables(data):
        print_table(rows, columns, title=title)


def watch_status(address: str | None, store: str | None, *, period_s: float) -> None:
    """The same again and again in one place, until Ctrl-C."""
    with Live(console=Console(), auto_refresh=False, screen=True) as live:
        while True:
            live.update(_screen(address, store), refresh=True)
            time.sleep(period_s)


def _screen(address: str | None, store: str | None) -> RenderableType:
    try:
        data = collect(address, store)
    except TandemError as error:
        return Text(str(error))  # the next look may find it again
    shown: list[RenderableType] = [] if data["cluster"] else [Text(_NO_CLUSTER)]
    return Group(*shown, *(table(rows, columns, title=title) for rows, columns, title in _tables(data)))


def _tables(data: dict[str, Any]) -> list[tuple[Rows, list[str], str]]:
    tables: list[tuple[Rows, list[str], str]] = []
    if data["cluster"]:
        tables.append(([data["cluster"]], ["dashboard_url", "ray_version", "CPU", "GPU"], "cluster"))
        apps = [{**app, "replicas": _count(app["replicas"])} for app in data["apps"]]
        tables.append((apps, ["name", "status", "replicas", "model", "url", "message"], "apps"))
        live = [row for app in data["apps"] for row in _live_rows(app["replicas"])]
        tables.append((live, ["app", "replica", "state", *_LIVE], "replicas"))
        if data["waiting"]:
            rows = [waiting_row(one) for one in data["waiting"]]
            tables.append((rows, ["position", "name", "priority", "waits", "reason"], "waiting for room"))
        if data["over"]:
            rows = [share_row(one) for one in data["over"]]
            columns = ["holder", "worker", "node", "promised", "used", "over"]
            tables.append((rows, columns, "uses more than it promised"))
    newest = ["run_id", "status", "step", "max_steps", "loss", "model"]
    return [*tables, (data["runs"], newest, "newest runs")]


def _count(replicas: list[dict[str, Any]]) -> str:
    return f"{sum(replica['state'] == 'RUNNING' for replica in replicas)}/{len(replicas)}"


def _live_rows(replicas: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each replica of an app, and for several their sum; of times and shares the worst."""
    rows = [{**replica, "replica": replica["replica_id"], **_shown(replica)} for replica in replicas]
    told = [replica for replica in replicas if replica["running"] is not None]
    if len(told) < 2:
        return rows
    sums, worst = ("running", "waiting", "tokens_per_s"), ("ttft_s", "kv_cache_usage")
    over_all = {name: sum(replica[name] for replica in told) for name in sums}
    over_all |= {name: max((v for r in told if (v := r[name]) is not None), default=None) for name in worst}
    return [*rows, {"app": replicas[0]["app"], "replica": "all", **_shown(over_all)}]


def _shown(live: Mapping[str, Any]) -> dict[str, str]:
    return {title: "" if live[name] is None else show(live[name]) for title, (name, show) in _LIVE.items()}


def collect(address: str | None, store: str | None) -> dict[str, Any]:
    """Cluster (or None), apps, each with its replicas, and the newest runs as plain data."""
    url = local.dashboard_of(address)
    runs = [Run(folder).describe() for folder in open_store(store).runs()[-_NEWEST:]]
    if url is None:
        return {"cluster": None, "apps": [], "waiting": [], "over": [], "runs": runs}
    total = cluster_resources(url)
    cluster = {
        "dashboard_url": url,
        "ray_version": ray_version(url),
        "CPU": total["CPU"],
        "GPU": total["GPU"],
    }
    apps = [App(url, name) for name in sorted(applications.applications(url))]
    described = [{**app.describe(), "replicas": app.replicas()} for app in apps]
    gpus = Gpus(picture(url))
    return {
        "cluster": cluster,
        "apps": described,
        "waiting": gpus.waiting,
        "over": [share for share in gpus.shares if share["over_bytes"]],
        "runs": runs,
    }


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
