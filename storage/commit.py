"""All or nothing in any store: files first, under a prefix of their own; then one manifest, created once.

A folder exists for readers when its ``manifest.json`` does. The files' prefix is named by their content, so
publishers of different contents never touch each other's files, and one that was cut goes on where it was.
Stores with preconditions refuse the second manifest; on file systems link(2) does.
"""

from __future__ import annotations

import getpass
import secrets
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from runtime.core.config import load_spec
from runtime.core.errors import ConfigError, Conflict, Corrupt, StorageError
from storage.backend import Entry
from storage.location import Location, delete_all, locate
from storage.manifest import MANIFEST_NAME, FileEntry, Manifest, entries_of, revision_of
from storage.patience import Transient
from storage.transfer import Copy, Progress, copy_all

M = TypeVar("M", bound=Manifest)


def commit_folder(folder: Path, target: Location, draft: M, *, progress: Progress | None = None) -> M:
    """Copy ``folder`` to ``target`` and make it visible there, all at once.

    Args:
        folder: Files on this machine; all of them are committed. They must not change meanwhile.
        target: Where ``manifest.json`` will be.
        draft: The manifest, complete but for what is found here: files, prefix, who and which attempt.

    Returns:
        The manifest as it was written.

    Raises:
        Conflict: a manifest is there; says whose. Nothing of the loser is left.
        StorageError: it could not be written; nothing is visible.
    """
    files = entries_of(folder)
    return commit_files(
        [(entry, locate(str(folder / entry.path))) for entry in files], target, draft, progress=progress
    )


def commit_files(
    sources: list[tuple[FileEntry, Location]], target: Location, draft: M, *, progress: Progress | None = None
) -> M:
    """The same for files that lie anywhere, whose sums are known."""
    files = [entry for entry, _ in sources]
    manifest = finished(draft, files)
    _refuse_existing(target, type(draft))
    upload(sources, target / manifest.prefix, progress=progress)
    write_manifest(manifest, target)
    return manifest


def finished(draft: M, files: list[FileEntry]) -> M:
    """The manifest that says all: who commits what, under which prefix."""
    found = {
        "files": sorted(files, key=lambda entry: entry.path),
        "prefix": f"files-{revision_of(files)[:12]}",
        "attempt": secrets.token_hex(8),
        "created_by": f"{getpass.getuser()}@{socket.gethostname()}",
    }
    return draft.model_copy(update=found)


def now() -> str:
    """The time for ``created_at``."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def upload(
    sources: list[tuple[FileEntry, Location]],
    target: Location,
    *,
    give_away: bool = False,
    progress: Progress | None = None,
) -> None:
    """Copy the files below ``target``, but for those that an earlier attempt brought there, and verify all.

    Args:
        give_away: Nobody will change the sources any more: where they are on the target's file system they
            become the target's files, and no byte is written twice.

    Raises:
        Corrupt: a file is not there as it should be.
    """
    there = {target.relative(entry): entry for entry in target.find()}
    missing = [
        (entry, source) for entry, source in sources if not _is_there(entry, there.get(entry.path), target)
    ]
    copies = [
        Copy(source, _stat(source), target / entry.path, crc32c=entry.crc32c_number)
        for entry, source in missing
        if not (give_away and _given(source, target / entry.path))
    ]
    copy_all(copies, progress=progress)
    _verify([entry for entry, _ in sources], target)
    keys = [(target / entry.path).key for entry, _ in sources]
    target.attempt(lambda: target.backend.sync(keys))


def write_manifest(manifest: Manifest, target: Location) -> None:
    """Make a folder visible whose files are all there.

    Raises:
        Conflict: somebody else was first; says who. What only this attempt brought is removed.
    """
    place = target / MANIFEST_NAME
    try:
        place.write_bytes(manifest.to_json().encode(), create_only=True)
        target.attempt(lambda: target.backend.sync([place.key]))
    except Conflict:
        winner = target.attempt(lambda: _visible(target, type(manifest)))
        if winner.attempt == manifest.attempt:
            # The store's answer to our own first request was lost.
            return
        if winner.prefix != manifest.prefix:
            remove_below(target / manifest.prefix)
        raise _taken(target, winner) from None


def read_manifest(place: Location, cls: type[M]) -> M | None:
    """The manifest of the folder at ``place``, or None when nothing is committed there.

    Args:
        cls: What kind it must be. ``Manifest`` itself reads the fields that all kinds have.

    Raises:
        StorageError: it is there and cannot be used.
    """
    data = (place / MANIFEST_NAME).read_json()
    if data is None:
        return None
    if cls is Manifest and isinstance(data, dict):
        data = {name: value for name, value in data.items() if name in Manifest.model_fields}
    try:
        return load_spec(cls, data)
    except (ConfigError, TypeError) as error:
        raise StorageError(
            f"{place / MANIFEST_NAME}: {error} Remove the folder, or repair the file."
        ) from None


def remove_committed(place: Location) -> None:
    """Take a committed folder away: first out of sight, then its files."""
    (place / MANIFEST_NAME).delete()
    remove_below(place)


def remove_below(place: Location) -> None:
    """Remove every object below ``place``, and the empty folders that are left."""
    delete_all([place.at(entry) for entry in place.find()])
    place.attempt(lambda: place.backend.remove_empty_folders(place.key))


def _refuse_existing(target: Location, cls: type[Manifest]) -> None:
    """Known before gigabytes are sent; the manifest's creation decides all the same."""
    existing = read_manifest(target, cls)
    if existing is not None:
        raise _taken(target, existing)


def _visible(target: Location, cls: type[M]) -> M:
    """The manifest that is known to be there; a network mount may show it a minute late."""
    found = read_manifest(target, cls)
    if found is None:
        raise Transient("a manifest is there and does not show yet")
    return found


def _taken(target: Location, winner: Manifest) -> Conflict:
    who = f" by {winner.created_by}" if winner.created_by else ""
    run = getattr(winner, "run", None)
    return Conflict(
        f"{target} exists already and is immutable: it was committed{who} at {winner.created_at}"
        f"{f', from run {run}' if run else ''}. Choose another name or version."
    )


def _is_there(wanted: FileEntry, found: Entry | None, target: Location) -> bool:
    if found is None or found.size_bytes != wanted.size_bytes:
        return False
    # Listings of some stores leave the checksum out; without one the file is sent again.
    known = (
        found.crc32c if found.crc32c is not None else getattr((target / wanted.path).stat(), "crc32c", None)
    )
    return known is not None and known == wanted.crc32c_number


def _given(source: Location, target: Location) -> bool:
    path = source.local_path()
    return path is not None and target.attempt(lambda: target.backend.adopt(path, target.key))


def _stat(source: Location) -> Entry:
    entry = source.stat()
    if entry is None:
        raise StorageError(
            f"{source}: has gone while it was to be committed. Let nobody write there meanwhile."
        )
    return entry


def _verify(files: list[FileEntry], target: Location) -> None:
    there = {target.relative(entry): entry for entry in target.find()}
    for wanted in files:
        found = there.get(wanted.path)
        sums = (None, wanted.crc32c_number)
        if found is None or found.size_bytes != wanted.size_bytes or found.crc32c not in sums:
            raise Corrupt(
                f"{target / wanted.path}: is not what was sent ({wanted.size_bytes} bytes, crc32c "
                f"{wanted.crc32c}). Nothing was committed. Try again; if it stays so, the store loses data."
            )
