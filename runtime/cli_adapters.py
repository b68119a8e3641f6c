"""``tandem adapters``: attach LoRA adapters to apps that run, detach and list them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from runtime.cli_options import ListsByDefault, address_option, json_option, show, store_option

if TYPE_CHECKING:
    from runtime.adapters import AppAdapters

_timeout_option = click.option(
    "--timeout-s",
    type=click.FloatRange(min=0),
    default=120,
    show_default=True,
    help="Seconds to wait for every replica; 0: do not wait.",
)


@click.group(cls=ListsByDefault)
def adapters() -> None:
    """List the LoRA adapters of serve apps (`tandem adapters [APP]`), add or remove one while they run."""


@adapters.command("ls")
@click.argument("app", required=False)
@address_option
@store_option
@json_option
def list_(app: str | None, address: str | None, store: str | None, as_json: bool) -> None:
    """List the adapters of APP, or of all apps, with the version that each means now."""
    from cluster import applications

    names = [app] if app else sorted(applications.applications(_dashboard(address)))
    # Apps that are not Tandem's have no spec of ours.
    opened = [_of(name, address, store) for name in names if app or _is_ours(name, address)]
    rows = [row for one in opened for row in one.list()]
    show(rows, ["app", "name", "reference", "from", "version", "loaded", "fault"], as_json)


@adapters.command()
@click.argument("app")
@click.argument("adapter", metavar="NAME=REF")
@_timeout_option
@address_option
@store_option
@json_option
def add(
    app: str, adapter: str, timeout_s: float, address: str | None, store: str | None, as_json: bool
) -> None:
    """Serve the adapter REF under NAME in the app APP, and wait until every replica does.

    REF is a model of the store (`helper`: its latest version, followed as newer ones are published),
    a version (`helper/v2`), `run:RUN` (the latest that this run published), a path or an address.
    """
    from runtime.core.errors import ConfigError

    name, found, reference = adapter.partition("=")
    if not (name and found and reference):
        raise ConfigError(
            f"NAME=REF is {adapter!r}. Write for instance helper=helper/v2, or helper=run:my-run."
        )
    row = _of(app, address, store).add(name, reference, wait=timeout_s > 0, timeout_s=timeout_s)
    click.echo(json.dumps(row, indent=2) if as_json else f"{name} is {row['version']} in {app}")


@adapters.command()
@click.argument("app")
@click.argument("name")
@_timeout_option
@address_option
@store_option
@json_option
def rm(app: str, name: str, timeout_s: float, address: str | None, store: str | None, as_json: bool) -> None:
    """Serve NAME no more in the app APP, and wait until no replica does. Requests that run end first."""
    _of(app, address, store).remove(name, wait=timeout_s > 0, timeout_s=timeout_s)
    click.echo(json.dumps({"app": app, "removed": name}) if as_json else f"{name} is served no more in {app}")


def _of(app: str, address: str | None, store: str | None) -> AppAdapters:
    from runtime.adapters import AppAdapters
    from storage.store import open_store

    return AppAdapters(_dashboard(address), app, open_store(store))


def _is_ours(app: str, address: str | None) -> bool:
    from cluster import applications
    from serve_apps.plan import IMPORT_PATH

    config = applications.applications(_dashboard(address))[app].get("deployed_app_config") or {}
    return bool(config.get("import_path") == IMPORT_PATH)


def _dashboard(address: str | None) -> str:
    from cluster import local
    from runtime.core.errors import ClusterError

    url = local.dashboard_of(address)
    if url is None:
        raise ClusterError("no local cluster runs. Start one (tandem up), or name a cluster with --address.")
    return url
