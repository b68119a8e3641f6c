"""``tandem datasets``: register, list, show and remove what runs train on."""

from __future__ import annotations

import json
from typing import Any

import click

from runtime.cli_options import in_words, json_option, show, store_option
from runtime.core.errors import ConfigError


@click.group()
def datasets() -> None:
    """Register, list, show and remove datasets."""


@datasets.command()
@click.argument("name")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option(
    "--info",
    help="The entry in LLaMA-Factory's dataset_info.json as JSON, where the rows alone do not tell: "
    '\'{"columns": {"prompt": "question", "response": "answer"}}\'.',
)
@store_option
def add(name: str, sources: tuple[str, ...], info: str | None, store: str | None) -> None:
    """Check files row by row and register them as the dataset NAME.

    SOURCE is a json, jsonl, csv or parquet file, or a folder of them, by path or address (gs://, s3://), with
    rows in alpaca or sharegpt form; or a folder with LLaMA-Factory's dataset_info.json.
    """
    from runtime.transfer_bar import TransferBar
    from storage.store import open_store

    with TransferBar(f"dataset {name}") as bar:
        added = open_store(store).add_dataset(name, list(sources), info=_info(info), progress=bar)
    click.echo(f"Dataset {name}: {added.manifest.rows} rows, {added.manifest.format}")


def _info(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--info is {text!r}, which is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise ConfigError(f"--info is {text!r}, but an entry is a JSON object.")
    return found


@datasets.command("ls")
@store_option
@json_option
def list_(store: str | None, as_json: bool) -> None:
    """List the datasets in the store."""
    from storage.store import open_store

    rows = [_row(dataset) for dataset in open_store(store).datasets()]
    show(rows, ["dataset", "rows", "format", "size", "created_at"], as_json)


def _row(dataset: Any) -> dict[str, Any]:
    manifest = dataset.manifest
    return {
        "dataset": dataset.name,
        "rows": manifest.rows,
        "format": manifest.format,
        "columns": manifest.columns,
        "size_bytes": manifest.total_bytes,
        "size": in_words(manifest.total_bytes),
        "created_at": manifest.created_at,
        "revision": manifest.revision,
        "info": manifest.info,
        "uri": dataset.place.uri,
    }


@datasets.command("show")
@click.argument("name")
@click.option("--rows", default=3, show_default=True, type=click.IntRange(0), help="How many rows to print.")
@store_option
@json_option
def show_(name: str, rows: int, store: str | None, as_json: bool) -> None:
    """Show what the dataset NAME is, and its first rows."""
    from storage.store import open_store

    dataset = open_store(store).dataset(name, field="NAME")
    described = _row(dataset) | {"first_rows": dataset.rows(rows)}
    if as_json:
        click.echo(json.dumps(described, indent=2, ensure_ascii=False, default=str))
        return
    for key in ("dataset", "rows", "format", "columns", "size", "created_at", "uri"):
        click.echo(f"{key:<12}{described[key]}")
    for row in described["first_rows"]:
        click.echo(json.dumps(row, indent=2, ensure_ascii=False, default=str))


@datasets.command()
@click.argument("name")
@store_option
def rm(name: str, store: str | None) -> None:
    """Remove the dataset NAME. Runs that have begun keep what their nodes have cached."""
    from storage.store import open_store

    open_store(store).remove_dataset(name)
    click.echo(f"Removed the dataset {name}")
