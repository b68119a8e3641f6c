"""The manifest of a model version: what is in it, and where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from runtime.core.config import ConfigModel
from storage.commit import sha256_of


class FileEntry(ConfigModel):
    """One file of a version."""

    path: str
    """Relative to the version's folder, with forward slashes."""

    size_bytes: int
    """Length of the file."""

    sha256: str
    """SHA-256 of the content, in hex."""


class Manifest(ConfigModel):
    """What a model version holds. Written last; never changed."""

    kind: Literal["full", "adapter"] = "full"
    """``full``: all weights. ``adapter``: LoRA weights over ``base``."""

    base: str | None = None
    """The model version that training began from."""

    template: str | None = None
    """LLaMA-Factory's chat template that the model was trained with."""

    run: str | None = None
    """The run that made it."""

    created_at: str
    """UTC, ISO 8601."""

    files: list[FileEntry] = Field(default_factory=list)
    """Every file, sorted by path, the manifest itself left out."""

    @property
    def total_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size_bytes for entry in self.files)


MANIFEST_NAME = "manifest.json"


def entries_of(folder: Path) -> list[FileEntry]:
    """An entry for every file below ``folder``, sorted by path, the manifest left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    return [
        FileEntry(
            path=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size, sha256=sha256_of(path)
        )
        for path in files
    ]
