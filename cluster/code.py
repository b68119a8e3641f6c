"""Our own code as every worker sees it: a snapshot of the five packages, named by its content.

A worker of the train environment must import ``train_jobs`` without seeing the core environment's
packages, so the folder on PYTHONPATH holds our packages and nothing else. A snapshot also lets a
running job outlive an edit, a pull or a second clone.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from runtime.core.errors import StorageError
from runtime.core.places import cache_root
from storage.local_files import new_folder

PACKAGES = ("runtime", "storage", "cluster", "train_jobs", "serve_apps")


def code_root() -> Path:
    """The folder that holds the packages this process was started from."""
    return Path(__file__).resolve().parent.parent


def code_snapshot() -> Path:
    """The folder for PYTHONPATH with this process' packages, copied when this content is new."""
    files = sorted(_sources())
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.relative_to(code_root())).encode() + b"\0" + file.read_bytes() + b"\0")
    final = cache_root() / "code" / digest.hexdigest()[:16]
    if not final.is_dir():
        _copy(files, final)
    return final


def _sources() -> list[Path]:
    found = (path for package in PACKAGES for path in (code_root() / package).rglob("*"))
    return [path for path in found if path.is_file() and path.suffix in (".py", ".json", ".txt", ".in")]


def _copy(files: list[Path], final: Path) -> None:
    try:
        with new_folder(final) as scratch:
            for file in files:
                target = scratch / file.relative_to(code_root())
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    except StorageError:
        # Another process copied the same content first: its copy is as good as ours.
        if not final.is_dir():
            raise
