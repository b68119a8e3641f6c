"""``tandem storage``: look at, move and clean up bytes at any address."""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Any

import click

from runtime.cli_options import Age, Bytes, in_words, json_option, show, store_option
from runtime.core.errors import ConfigError, NotFound


@click.group()
def storage() -> None:
    """Look at, move and clean up bytes at any address.

    \b
    A PLACE is a name in the store (models/mine/v1), a path that begins with / or ./, or a
    full address: gs://bucket/..., s3://bucket/..., hf://org/name.
    """


@storage.command()
@click.argument("place", default="")
@click.option("-r", "--recursive", is_flag=True, help="Everything below, at any depth.")
@store_option
@json_option
def ls(place: str, recursive: bool, store: str | None, as_json: bool) -> None:
    """List what is at PLACE (default: the store itself)."""
    from storage.store import open_store

    at = open_store(store).locate(place)
    if recursive:
        rows = [_row(at.relative(entry), entry) for entry in at.find()]
    else:
        folders, files = at.names()
        rows = [{"name": f"{name}/", "size_bytes": None, "modified": None} for name in folders]
        rows += [_row(entry.key.rpartition("/")[2], entry) for entry in files]
    if not rows and (entry := at.stat() if place else None):
        rows = [_row(at.name, entry)]
    if not rows and place:
        raise NotFound(f"{at}: nothing is there. See what is: tandem storage ls.")
    if not as_json:
        rows = [row | {"size": in_words(row["size_bytes"])} for row in rows]
    show(rows, ["name", "size", "modified"], as_json)


def _row(name: str, entry: Any) -> dict[str, Any]:
    modified = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(entry.modified_s))
    return {"name": name, "size_bytes": entry.size_bytes, "modified": modified}


@storage.command()
@click.argument("source")
@click.argument("target")
@click.option(
    "--files",
    is_flag=True,
    help="Of a committed folder (model version, dataset, checkpoint) only its files, as engines want them.",
)
@store_option
def cp(source: str, target: str, files: bool, store: str | None) -> None:
    """Copy the file SOURCE, or everything below it, to TARGET. Verified; goes on after a cut."""
    from runtime.transfer_bar import TransferBar
    from storage.store import open_store

    at, to = open_store(store).locate(source), open_store(store).locate(target)
    with TransferBar(f"{at} -> {to}") as bar:
        count, size_bytes = _copy(at, to, into=target.endswith("/"), files=files, bar=bar)
    click.echo(f"{count} file{'s' if count != 1 else ''}, {in_words(size_bytes)}: {to}")


def _copy(at: Any, to: Any, *, into: bool, files: bool, bar: Any) -> tuple[int, int]:
    from storage.commit import read_manifest
    from storage.manifest import Manifest
    from storage.transfer import Copy, copy_all, copy_file, copy_folder

    if files:
        manifest = read_manifest(at, Manifest)
        if manifest is None:
            raise ConfigError(f"{at}: is no committed folder, so --files means nothing. Leave it out.")
        within = at / manifest.prefix if manifest.prefix else at
        wanted = [(entry, (within / entry.path)) for entry in manifest.files]
        copy_all(
            [
                Copy(place, found, to / entry.path, crc32c=entry.crc32c_number)
                for entry, place in wanted
                if (found := place.stat())
            ],
            progress=bar,
        )
        return len(wanted), manifest.total_bytes
    if (entry := at.stat()) is not None:
        is_folder = into or bool(any(to.names()))
        copy_file(at, to / at.name if is_folder else to, progress=bar)
        return 1, entry.size_bytes
    entries = copy_folder(at, to, progress=bar)
    return len(entries), sum(entry.size_bytes for entry in entries)


@storage.command()
@click.argument("place")
@store_option
def cat(place: str, store: str | None) -> None:
    """Print the file at PLACE."""
    from storage.store import open_store

    at = open_store(store).locate(place)
    entry = at.stat()
    if entry is None:
        raise NotFound(f"{at}: there is no such file. List the folder with: tandem storage ls.")
    for start in range(0, entry.size_bytes, 8 << 20):
        length = min(8 << 20, entry.size_bytes - start)
        sys.stdout.buffer.write(at.attempt(partial(_range, at, entry, start, length)))


def _range(at: Any, entry: Any, start: int, length: int) -> bytes:
    return b"".join(at.backend.read(entry, start, length))


@storage.command()
@click.argument("place", default="")
@store_option
@json_option
def du(place: str, store: str | None, as_json: bool) -> None:
    """Show how much lies in each folder at PLACE, and in all."""
    from storage.store import open_store

    at = open_store(store).locate(place)
    sums: dict[str, list[int]] = {}
    for entry in at.find():
        name, slash, _ = at.relative(entry).partition("/")
        sums.setdefault(name + slash, []).append(entry.size_bytes)
    rows: list[dict[str, Any]] = [
        {"name": name, "files": len(sizes), "size_bytes": sum(sizes)} for name, sizes in sorted(sums.items())
    ]
    if as_json:
        show(rows, [], as_json)
        return
    total = {
        "name": str(at),
        "files": sum(r["files"] for r in rows),
        "size_bytes": sum(r["size_bytes"] for r in rows),
    }
    show(
        [row | {"size": in_words(row["size_bytes"])} for row in [*rows, total]],
        ["name", "files", "size"],
        False,
    )


@storage.command()
@click.argument("places", nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="A folder, with everything below it.")
@store_option
def rm(places: tuple[str, ...], recursive: bool, store: str | None) -> None:
    """Remove files, or with -r folders. Models and datasets, being committed, have an rm of their own."""
    from storage.commit import remove_below
    from storage.gc import is_committed
    from storage.store import open_store

    opened = open_store(store)
    found = [opened.locate(place) for place in places]
    # All are looked at before the first one goes.
    for at in found:
        below = [entry for entry in at.find() if entry.key.endswith("/manifest.json")]
        if is_committed(at) or below:
            raise ConfigError(
                f"{at} is committed, or holds what is. Use `tandem models rm NAME/VERSION` or "
                "`tandem datasets rm NAME`; what nobody needs any more is found by `tandem storage gc`."
            )
        if at.stat() is None and not (recursive and at.find()):
            hint = " It is a folder: add -r." if at.find() else " See what is: tandem storage ls."
            raise NotFound(f"{at}: there is no such file.{hint}")
    for at in found:
        if at.stat() is not None:
            at.delete()
        if recursive:
            remove_below(at)
        click.echo(f"Removed {at}")


@storage.command()
@click.option("--remove", is_flag=True, help="Remove them. Default: only list.")
@click.option(
    "--older-than",
    type=Age(),
    default="24h",
    show_default=True,
    help="Only what was not touched for so long.",
)
@store_option
@json_option
def gc(remove: bool, older_than: float, store: str | None, as_json: bool) -> None:
    """List what interrupted publishers, savers and uploads left in the store; remove it with --remove."""
    from storage.gc import leftovers
    from storage.store import open_store

    found = leftovers(open_store(store).root, older_than_s=older_than)
    rows = [
        {
            "uri": one.uri,
            "reason": one.reason,
            "size_bytes": one.size_bytes,
            "size": in_words(one.size_bytes),
            "touched": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(one.last_touched_s)),
        }
        for one in found
    ]
    if remove:
        for one in found:
            one.remove()
    show(rows, ["uri", "reason", "size", "touched"], as_json)
    if not as_json:
        size = in_words(sum(one.size_bytes or 0 for one in found))
        done = "removed" if remove else "found; remove with --remove" if found else "found"
        click.echo(f"{len(found)} leftover{'s' if len(found) != 1 else ''}, {size}, {done}.")


@storage.command()
@click.option(
    "--max-bytes", type=Bytes(), help="Evict the least recently used until so much is left (20G, 0)."
)
@json_option
def cache(max_bytes: int | None, as_json: bool) -> None:
    """Show this node's cache; trim it with --max-bytes. What is in use stays."""
    from storage.cache import node_cache

    kept = node_cache()
    freed = kept.trim(max_bytes) if max_bytes is not None else 0
    rows = [
        {
            "what": one.label,
            "size_bytes": one.size_bytes,
            "size": in_words(one.size_bytes),
            "last_used": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(one.last_used_s)),
            "in_use": one.in_use,
            "path": str(one.path),
        }
        for one in kept.held()
    ]
    show(rows, ["what", "size", "last_used", "in_use"], as_json)
    if not as_json:
        used, budget = in_words(kept.used_bytes()), in_words(kept.max_bytes)
        freed_words = f", {in_words(freed)} freed" if max_bytes is not None else ""
        click.echo(f"{used} of {budget} in {kept.root}{freed_words}")
