"""``tandem keys``: who may ask the served models, how much, and what they used."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from runtime.cli_options import ListsByDefault, json_option, show, store_option

if TYPE_CHECKING:
    from storage.keys import KeyRecord, Keys, NewKey

keys_option = click.option(
    "--keys",
    "folder",
    metavar="FOLDER",
    help="Folder of the records, as a serve spec's `keys` has it. Default: keys/ of the store.",
)


@click.group(cls=ListsByDefault)
def keys() -> None:
    """List API keys (`tandem keys`), create, revoke or rotate one, and show what they used."""


@keys.command()
@click.argument("name")
@click.option("--model", "models", multiple=True, help="Model name that it opens; repeatable. Default: all.")
@click.option("--admin", is_flag=True, help="It also opens the routes that change apps and replicas.")
@click.option("--requests-per-minute", type=click.IntRange(1), help="Default: no limit.")
@click.option(
    "--tokens-per-minute", type=click.IntRange(1), help="Prompt and completion together. Default: no limit."
)
@keys_option
@store_option
@json_option
def create(
    name: str,
    models: tuple[str, ...],
    admin: bool,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    folder: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Make an API key for NAME and print it. It is shown this once and kept nowhere."""
    from storage.keys import ALL_MODELS, Scopes

    new = _keys(store, folder).create(
        name,
        scopes=Scopes(models=models or (ALL_MODELS,), permissions="admin" if admin else "inference"),
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
    )
    _show_once(new, as_json, f"Key {new.record.id} for {name}. It is not shown again.")


@keys.command("ls")
@click.argument("name", required=False)
@keys_option
@store_option
@json_option
def list_(name: str | None, folder: str | None, store: str | None, as_json: bool) -> None:
    """List the keys, of NAME or all. Secrets are not kept, so none is shown."""
    found = [_row(key) for key in _keys(store, folder).all() if name in (None, key.name)]
    if not as_json:
        found = [_short(row) for row in found]
    columns = ["id", "name", "models", "permissions", "requests_per_minute", "tokens_per_minute"]
    show(found, [*columns, "created_at", "revoked_at"], as_json)


@keys.command()
@click.argument("key_id", metavar="ID")
@keys_option
@store_option
def revoke(key_id: str, folder: str | None, store: str | None) -> None:
    """Let a key open nothing more. Replicas know within seconds."""
    revoked = _keys(store, folder).revoke(key_id)
    click.echo(f"Revoked {revoked.id} ({revoked.name})")


@keys.command()
@click.argument("key_id", metavar="ID")
@keys_option
@store_option
@json_option
def rotate(key_id: str, folder: str | None, store: str | None, as_json: bool) -> None:
    """Give a key a new secret and print it; the old one opens nothing more, within seconds.

    Where both must work for a while, create a second key and revoke the first later.
    """
    new = _keys(store, folder).rotate(key_id)
    _show_once(
        new, as_json, f"Key {new.record.id} for {new.record.name} has a new secret. It is not shown again."
    )


@keys.command()
@click.option(
    "--since", type=click.DateTime(["%Y-%m-%d"]), help="First day, such as 2026-11-01. Default: all days."
)
@keys_option
@store_option
@json_option
def usage(since: Any, folder: str | None, store: str | None, as_json: bool) -> None:
    """Show requests and tokens per day, key and model. Replicas write theirs every 10 s."""
    from dataclasses import asdict

    from serve_apps.usage import read_usage
    from storage.store import open_store

    rows = read_usage(open_store(store).root / "usage", since=since and since.date().isoformat())
    names = {key.id: key.name for key in _keys(store, folder).all()} if rows else {}
    show(
        [{**asdict(row), "name": names.get(row.key_id)} for row in rows],
        ["date", "key_id", "name", "model", "requests", "prompt_tokens", "completion_tokens"],
        as_json,
    )


def _keys(store: str | None, folder: str | None) -> Keys:
    from storage.keys import keys_in
    from storage.store import open_store

    return keys_in(open_store(store).root, folder)


def _show_once(new: NewKey, as_json: bool, note: str) -> None:
    if as_json:
        click.echo(json.dumps({**_row(new.record), "key": new.text}, indent=2))
        return
    # Apart, so that KEY=$(tandem keys create me) is the key.
    click.echo(note, err=True)
    click.echo(new.text)


def _row(key: KeyRecord) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "models": list(key.scopes.models),
        "permissions": key.scopes.permissions,
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
    }


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """A row as it fits a terminal: times to the minute, lists as words."""
    times = {name: row[name] and row[name][:16].replace("T", " ") for name in ("created_at", "revoked_at")}
    return {**row, "models": ", ".join(row["models"]), **times}
