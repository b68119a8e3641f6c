"""Leftovers: what interrupted publishers, savers and uploads left in a store, found and removed on request.

Nothing that a manifest names is ever one, and nothing younger than the age that is asked for: it may be in
the middle of being written.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from storage.backend import Entry
from storage.commit import read_manifest
from storage.location import Location, delete_all, side_by_side
from storage.manifest import MANIFEST_NAME, Manifest

DEFAULT_AGE_S = 24 * 3600.0

_FILES = re.compile(r"(?P<folder>.*/)(?P<prefix>files-[0-9a-f]{12})/")


@dataclass(frozen=True)
class Leftover:
    """Something that no reader sees and no writer goes on with."""

    uri: str
    reason: str
    size_bytes: int | None
    """None for an upload whose parts the store does not list."""
    last_touched_s: float
    """Seconds since 1970."""
    remove: Callable[[], None]


def leftovers(root: Location, *, older_than_s: float = DEFAULT_AGE_S) -> list[Leftover]:
    """What is left over below ``root`` and has not been touched for ``older_than_s``, by address."""
    found = [*_uncommitted(root), *_unfinished(root)]
    limit_s = time.time() - older_than_s
    return sorted((one for one in found if one.last_touched_s <= limit_s), key=lambda one: one.uri)


def _uncommitted(root: Location) -> list[Leftover]:
    """Files below a prefix that no manifest names."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in root.find():
        if match := _FILES.match(f"/{root.relative(entry)}"):
            groups.setdefault((match["folder"].strip("/"), match["prefix"]), []).append(entry)
    folders = sorted({folder for folder, _ in groups})
    manifests = side_by_side(lambda folder: read_manifest(root / folder, Manifest), folders)
    named = {folder: manifest.prefix for folder, manifest in zip(folders, manifests, strict=True) if manifest}
    return [
        _leftover(root / folder / prefix, entries, folder in named)
        for (folder, prefix), entries in groups.items()
        if named.get(folder) != prefix
    ]


def _leftover(place: Location, entries: list[Entry], has_manifest: bool) -> Leftover:
    why = "of a publisher that lost to another" if has_manifest else "never committed, or removed"

    def remove() -> None:
        delete_all(place.at(entry) for entry in entries)
        place.attempt(lambda: place.backend.remove_empty_folders(place.key))

    touched_s = max(entry.modified_s for entry in entries)
    return Leftover(place.uri, why, sum(entry.size_bytes for entry in entries), touched_s, remove)


def _unfinished(root: Location) -> list[Leftover]:
    uploads = root.attempt(lambda: list(root.backend.unfinished(root.key)))
    return [
        Leftover(
            root.backend.uri(one.key),
            "an upload that was not finished",
            None,
            one.began_s,
            lambda one=one: root.attempt(lambda: root.backend.give_up(one.key, one.upload_id)),  # type: ignore[misc]
        )
        for one in uploads
    ]


def is_committed(place: Location) -> bool:
    """Whether ``place`` is a committed folder, or lies in one."""
    parts = place.key.split("/")
    places = [Location(place.backend, "/".join(parts[:count])) for count in range(1, len(parts) + 1)]
    return any(side_by_side(lambda one: (one / MANIFEST_NAME).stat() is not None, places))
