"""Where things of this machine lie. Standard library only: the environment builder asks it too."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """Tandem's own folder on this machine: ``$TANDEM_HOME``, else ``~/.tandem``."""
    return Path(os.environ.get("TANDEM_HOME") or "~/.tandem").expanduser().absolute()


def cache_root() -> Path:
    """The folder of everything that can be made again: ``$TANDEM_CACHE``, else ``~/.cache/tandem``."""
    return Path(os.environ.get("TANDEM_CACHE") or Path.home() / ".cache" / "tandem").absolute()


def file_cache() -> Path:
    """The folder of this node's cached models and datasets: ``$TANDEM_FILE_CACHE``, else below the above."""
    return Path(os.environ.get("TANDEM_FILE_CACHE") or cache_root() / "files").absolute()
