"""Manifests: what a committed folder holds, and where it came from. Written last, never changed."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import crc32c
from pydantic import Field, field_validator

from runtime.core.config import ConfigModel
from storage.backend import CHUNK_BYTES

MANIFEST_NAME = "manifest.json"


class FileEntry(ConfigModel):
    """One file of a committed folder."""

    path: str
    """Relative to the folder, with forward slashes."""

    size_bytes: int
    """Length of the file."""

    sha256: str
    """SHA-256 of the content, in hex: its name in every node cache."""

    crc32c: str | None = None
    """CRC-32C of the content, in hex: what object stores keep too, and what transfers compare."""

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(
                f"is {path!r}, which leads out of the folder. This manifest is not to be trusted."
            )
        return path

    @property
    def crc32c_number(self) -> int | None:
        """The CRC-32C as a number."""
        return None if self.crc32c is None else int(self.crc32c, 16)


class Manifest(ConfigModel):
    """What every committed folder says of itself."""

    created_at: str
    """UTC, ISO 8601."""

    created_by: str | None = None
    """Who committed it, as ``user@host``."""

    attempt: str | None = None
    """A random mark of the attempt that won: a publisher whose answer was lost knows itself again."""

    prefix: str = ""
    """The sub-folder that holds the files; each content has its own, so that two publishers cannot mix."""

    files: list[FileEntry] = Field(default_factory=list)
    """Every file, sorted by path, the manifest itself left out."""

    @property
    def total_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size_bytes for entry in self.files)

    @property
    def revision(self) -> str:
        """SHA-256 over names and contents of all files: equal where, and only where, the files are."""
        return revision_of(self.files)


class ModelManifest(Manifest):
    """A model version."""

    kind: Literal["full", "adapter"] = "full"
    """``full``: all weights. ``adapter``: LoRA weights over ``base``."""

    base: str | None = None
    """The model version that training began from."""

    base_revision: str | None = None
    """The revision of ``base`` at that time."""

    template: str | None = None
    """LLaMA-Factory's chat template that the model was trained with."""

    run: str | None = None
    """The run that made it."""

    llamafactory: dict[str, Any] = {}
    """The arguments of LLaMA-Factory that it was trained with."""

    stage: str | None = None
    """LLaMA-Factory's stage that made it: ``pt``, ``sft``, ``rm``, ``dpo``, ``kto``."""

    finetuning_type: str | None = None
    """``full``, ``freeze``, ``lora``, ...: how it was trained."""

    merged: bool = False
    """Whether a trained adapter was merged into the base to make it."""

    metrics: dict[str, float] = {}
    """What the run logged last: ``loss``, ``epoch``, and so on."""


class DatasetManifest(Manifest):
    """A dataset; ``dataset_info.json`` and the data files are its files."""

    kind: Literal["dataset"] = "dataset"

    format: Literal["alpaca", "sharegpt", "openai"] = "alpaca"
    """LLaMA-Factory's word for the form of the rows."""

    rows: int
    """Rows of all files together."""

    columns: list[str] = []
    """Names that occur in the rows."""

    info: dict[str, Any]
    """The entry in ``dataset_info.json``, in LLaMA-Factory's words."""


class CheckpointManifest(Manifest):
    """A checkpoint of a run."""

    kind: Literal["checkpoint"] = "checkpoint"

    step: int
    """The optimizer step after which it was saved."""

    num_workers: int
    """Workers that wrote it; DeepSpeed's sharded states fit this number only, until they are converted."""

    metrics: dict[str, float] = {}
    """What was logged last at this step: ``loss``, ``eval_loss``, and so on."""


class OutputManifest(Manifest):
    """The result of a run that publishes nothing."""

    kind: Literal["output"] = "output"


def revision_of(files: list[FileEntry]) -> str:
    """SHA-256 over names and contents."""
    digest = hashlib.sha256()
    for entry in sorted(files, key=lambda entry: entry.path):
        digest.update(f"{entry.sha256}  {entry.path}\n".encode())
    return digest.hexdigest()


def entries_of(folder: Path) -> list[FileEntry]:
    """An entry for every file below ``folder``, sorted by path; read once, as many at a time as cores."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda path: _entry(folder, path), files))


def _entry(folder: Path, path: Path) -> FileEntry:
    sha256, crc, size_bytes = hashlib.sha256(), 0, 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            sha256.update(chunk)
            crc = crc32c.crc32c(chunk, crc)
            size_bytes += len(chunk)
    name = path.relative_to(folder).as_posix()
    return FileEntry(path=name, size_bytes=size_bytes, sha256=sha256.hexdigest(), crc32c=f"{crc:08x}")
