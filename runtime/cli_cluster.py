"""``tandem cluster``: bring a cluster spec to Kubernetes, look at it, reach it, end it."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.cli_level import level
from runtime.cli_options import Age, json_option
from runtime.cli_preflight import preflight, print_findings

if TYPE_CHECKING:
    from cluster.cluster_spec import ClusterSpec
    from cluster.kubernetes.client import Kubernetes
    from cluster.kubernetes.workloads import Manifest

_cluster_argument = click.argument("cluster", metavar="CLUSTER.yaml", type=click.Path(path_type=Path))
_specs_argument = click.argument("specs", metavar="[SPEC.yaml]...", nargs=-1, type=click.Path(path_type=Path))
_context_option = click.option("--context", help="Of the kubeconfig. Default: its current one.")
_offline_option = click.option(
    "--offline", is_flag=True, help="Do not look at the store: the cluster checks models and datasets."
)


def _timeout_option(default: str) -> Any:
    return click.option(
        "--timeout", type=Age(), default=default, show_default=True, help="How long to wait: 90s, 30m."
    )


@click.group()
def cluster() -> None:
    """Bring a cluster spec to Kubernetes, look at it, reach it, end it.

    CLUSTER.yaml says what there is, SPEC.yaml what runs on it: serve and train specs.
    """


@cluster.command()
@_cluster_argument
@_specs_argument
@click.option(
    "--prune",
    is_flag=True,
    help="Delete objects of this cluster that are no longer rendered, but no app or job that runs.",
)
@click.option(
    "--prune-running",
    is_flag=True,
    help="As --prune, and end the apps and jobs that run and whose specs are not given, too.",
)
@click.option("--force-conflicts", is_flag=True, help="Take over fields that others have set.")
@click.option("--no-preflight", is_flag=True, help="Apply whatever the cluster lacks.")
@click.option("--no-wait", is_flag=True, help="Return once everything is applied, before it is ready.")
@_timeout_option("30m")
@_offline_option
@_context_option
def apply(
    cluster: Path,
    specs: tuple[Path, ...],
    prune: bool,
    prune_running: bool,
    force_conflicts: bool,
    no_preflight: bool,
    no_wait: bool,
    timeout: float,
    offline: bool,
    context: str | None,
) -> None:
    """Apply a cluster and what runs on it, and wait until it is ready.

    The cluster is looked at first, as `tandem cluster preflight` does, and every object is asked for in a dry
    run: if one is refused, nothing changes. Fields that others have set stay theirs and are named;
    --force-conflicts takes them over.

    Apps and jobs that run already and whose specs are not given go on, and are named.
    """
    from rich.console import Console

    from cluster.kubernetes.apply import apply as bring
    from runtime.cluster_kubernetes import print_applied

    spec, manifests = _rendered(cluster, specs, offline=offline, tell=True)
    kubernetes, console = _connected(context), Console()
    if not no_preflight:
        _refuse_what_cannot_work(kubernetes, spec)
    done = bring(
        kubernetes,
        spec,
        manifests,
        force=force_conflicts,
        prune=prune,
        prune_running=prune_running,
        tell=click.echo,
    )
    print_applied(done, console)
    if not no_wait:
        _wait(kubernetes, spec, manifests, timeout_s=timeout, console=console)
        click.echo(f"Ready. Reach it: tandem cluster connect {cluster}")


def _refuse_what_cannot_work(kubernetes: Kubernetes, spec: ClusterSpec) -> None:
    from cluster.kubernetes.findings import errors
    from cluster.kubernetes.preflight import preflight as looked_at
    from runtime.core.errors import ClusterError

    troubles = [one for one in looked_at(kubernetes, spec) if one.level != "ok"]
    if troubles:
        print_findings(troubles)
    if errors(troubles):
        raise ClusterError(
            "nothing was applied: what is shown above would keep it from working. Mend it, or apply all "
            "the same "
            "with --no-preflight."
        )


def _wait(
    kubernetes: Kubernetes, spec: ClusterSpec, manifests: list[Manifest], *, timeout_s: float, console: Any
) -> None:
    from cluster.kubernetes.waiting import wait
    from runtime.cluster_kubernetes import Progress

    try:
        with Progress(console) as progress:
            wait(kubernetes, spec, manifests, timeout_s=timeout_s, show=progress.show)
    except KeyboardInterrupt:
        click.echo("\nNo longer watched. Everything is applied and goes on starting.", err=True)
        sys.exit(130)


@cluster.command()
@_cluster_argument
@_context_option
@json_option
def status(cluster: Path, context: str | None, as_json: bool) -> None:
    """Show a cluster's objects, pods, address, and what its pods wait for."""
    from rich.console import Console

    from cluster.kubernetes.status import status as look
    from runtime.cluster_kubernetes import print_status

    found = look(_connected(context), _spec(cluster))
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
    else:
        print_status(found, Console())


@cluster.command()
@_cluster_argument
@_specs_argument
@_offline_option
@_context_option
def diff(cluster: Path, specs: tuple[Path, ...], offline: bool, context: str | None) -> None:
    """Show what apply would change. Exit code 1 if anything."""
    from cluster.kubernetes.diff import differences

    spec, manifests = _rendered(cluster, specs, offline=offline)
    found = differences(_connected(context), spec, manifests)
    for one in found:
        click.secho(f"{one.title}: {one.kind}", bold=True)
        if one.conflict:
            click.echo(f"Conflict: {one.conflict}")
        if one.text:
            click.echo(one.text)
    if not found:
        click.echo("Nothing differs.")
    sys.exit(1 if found else 0)


@cluster.command()
@_cluster_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--namespace", is_flag=True, help="Delete the namespace too, if apply made it.")
@_timeout_option("15m")
@_context_option
def delete(cluster: Path, yes: bool, namespace: bool, timeout: float, context: str | None) -> None:
    """Delete a cluster and wait until it is gone. The store's data stays."""
    from cluster.kubernetes.deletion import delete as end
    from cluster.kubernetes.deletion import to_delete
    from cluster.kubernetes.owned import title

    spec, kubernetes = _spec(cluster), _connected(context)
    found = to_delete(kubernetes, spec)
    objects = found.objects
    for one in found.unseen:
        click.echo(f"Note: {one}", err=True)
    if not objects and not namespace:
        click.echo(f"Nothing of {spec.name} is in namespace {spec.in_namespace}.")
        return
    for each in objects:
        click.echo(title(each))
    if not yes:
        click.confirm(f"Delete these {len(objects)} objects in namespace {spec.in_namespace}?", abort=True)
    try:
        end(kubernetes, spec, objects, namespace=namespace, timeout_s=timeout, tell=click.echo)
    except KeyboardInterrupt:
        click.echo(
            "\nNo longer watched. What was asked to end goes on ending; delete again ends the rest.", err=True
        )
        sys.exit(130)
    click.echo(f"{spec.name} is gone. Its store is not: {spec.store.root}")


@cluster.command()
@_cluster_argument
@click.option("--dashboard-port", default=0, type=click.IntRange(0, 65535), help="Default: any free one.")
@click.option("--http-port", default=0, type=click.IntRange(0, 65535), help="Default: any free one.")
@_context_option
def connect(cluster: Path, dashboard_port: int, http_port: int, context: str | None) -> None:
    """Make the dashboard and the endpoint reachable from this machine, until Ctrl-C.

    Only from this machine (127.0.0.1), through the Kubernetes API server. When a pod goes, the next
    connection finds the one that took its place.
    """
    import threading

    from cluster.kubernetes.connect import ports

    spec, kubernetes = _spec(cluster), _connected(context)
    dashboard, endpoint = ports(kubernetes, spec, dashboard_port=dashboard_port, http_port=http_port)
    with dashboard, endpoint:
        _print_addresses(kubernetes, spec, cluster, dashboard.port, endpoint.port)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            click.echo("\nNo longer connected. The cluster goes on.", err=True)


def _print_addresses(
    kubernetes: Kubernetes, spec: ClusterSpec, file: Path, dashboard: int, endpoint: int
) -> None:
    from cluster.kubernetes.token import write_token

    url, store = f"http://127.0.0.1:{dashboard}", spec.store.root
    click.echo(f"Dashboard  {url}\nEndpoint   http://127.0.0.1:{endpoint}/v1")
    exports = []
    if spec.auth.mode == "token":
        path = shlex.quote(str(write_token(kubernetes, spec)))
        exports.append(("its token", f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={path}"))
    if spec.store.is_bucket:
        exports.append(("its store", f"TANDEM_STORE={shlex.quote(store)}"))
    if exports:
        what = " and ".join(name for name, _ in exports)
        click.echo(f"\nIn another terminal, so that tandem, ray and the SDK use the cluster with {what}:")
        for _, variables in exports:
            click.echo(f"  export {variables}")
    argument = f", store={json.dumps(store)}" if spec.store.is_bucket else ""
    click.echo(f'\n  tandem status --address {url}\n  Tandem("{url}"{argument})')
    click.echo(f"\n{_about_the_store(spec, file)}\n\nCtrl-C ends the connection.")


def _about_the_store(spec: ClusterSpec, file: Path) -> str:
    """From where `tandem train` and `tandem serve` can use the store that the cluster's pods use."""
    from cluster.cluster_store import MOUNT

    root = spec.store.root
    if not spec.store.is_bucket:
        return (
            f"The store, {root}, is on a volume of the pods. Specs go there with\n"
            f"  tandem cluster apply {shlex.quote(str(file))} SPEC.yaml\n"
            f"or with tandem train and tandem serve where the volume is mounted at {MOUNT}, too: "
            f"--store {root}"
        )
    reach = (
        f"tandem train and tandem serve write their specs to {root}: this machine needs credentials for it"
    )
    options = ", and the cluster file's store.options as `storage` of its workspace config"
    return f"{reach}{options if spec.store.options else ''}."


def _spec(path: Path) -> ClusterSpec:
    from cluster.cluster_spec import ClusterSpec
    from runtime.core.config import load_spec

    return load_spec(ClusterSpec, path)


def _rendered(
    cluster: Path, specs: tuple[Path, ...], *, offline: bool, tell: bool = False
) -> tuple[ClusterSpec, list[Manifest]]:
    from runtime.rendering import rendered

    done = rendered(cluster, specs, offline=offline)
    if tell:
        for note in done.notes:
            click.echo(f"Note: {note}", err=True)
    return done.spec, done.manifests


def _connected(context: str | None) -> Kubernetes:
    from cluster.kubernetes.client import Kubernetes

    return Kubernetes.connect(context)


cluster.add_command(level)
cluster.add_command(preflight)
