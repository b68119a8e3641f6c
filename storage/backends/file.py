"""``file://`` and plain paths: a folder of this machine, or a mount that every node has at the same path."""

from __future__ import annotations

from pathlib import Path


def root_folder(address: str) -> Path:
    """The folder at ``address`` (a path, ``~`` allowed, or ``file:///...``), absolute, made if missing."""
    folder = Path(address.removeprefix("file://")).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
