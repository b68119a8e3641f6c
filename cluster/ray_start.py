"""What every ``ray start`` of ours gets, the embedded cluster's and a plain node's: environment, folders."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from cluster.code import code_snapshot
from cluster.environments import interpreter
from cluster.haproxy import FOLDER_BYTES
from cluster.ray_settings import RAY_SETTINGS
from runtime.core.errors import ClusterError
from runtime.core.places import cache_root, file_cache, home

_SOCKET_PATH_BYTES = 107
"""Longest UNIX socket path; Ray's own part below the temp folder takes about 65 of it."""


def ray_command() -> str:
    """The ``ray`` of the core environment."""
    return str(interpreter("core").with_name("ray"))


def ray_environment(store: str, *parts: Mapping[str, str]) -> dict[str, str]:
    """The environment of a node's Ray, which every worker on it inherits.

    Args:
        store: Root address of the store for jobs and apps that name none.
        parts: Variables besides, such as those for HAProxy and the token.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHON", "VIRTUAL_ENV"))}
    core_bin = str(interpreter("core").parent)
    env = inherited | {
        # `python` in a plain `ray job submit -- python -m train_jobs ...` is the core environment's.
        "PATH": core_bin + os.pathsep + os.environ.get("PATH", ""),
        "PYTHONPATH": str(code_snapshot()),
        "PYTHONUNBUFFERED": "1",
        # Absolute: workers run in folders of their own.
        "TANDEM_HOME": str(home()),
        "TANDEM_CACHE": str(cache_root()),
        "TANDEM_FILE_CACHE": str(file_cache()),
        "TANDEM_STORE": store,
        **_config_file(),
        **RAY_SETTINGS,
    }
    for part in parts:
        env |= part
    return env


def _config_file() -> dict[str, str]:
    given = os.environ.get("TANDEM_CONFIG")
    return {"TANDEM_CONFIG": str(Path(given).expanduser().absolute())} if given else {}


def ray_temp_dir() -> Path:
    """Ray's folder below our own, or a short one where the sockets' paths would become too long."""
    folder = home() / "ray"
    if len(str(folder)) + 65 > _SOCKET_PATH_BYTES:
        folder = _short_dir()
    folder.mkdir(parents=True, exist_ok=True)
    _drop_old_sessions(folder)
    return folder


def haproxy_dir(temp_dir: Path) -> Path:
    """HAProxy's folder below Ray's own, or a short one: its sockets' paths may be shorter still."""
    folder = temp_dir / "haproxy"
    return folder if len(str(folder)) <= FOLDER_BYTES else _short_dir() / "haproxy"


def _short_dir() -> Path:
    """A folder of this user with a short path, for this TANDEM_HOME."""
    mark = hashlib.sha256(str(home()).encode()).hexdigest()[:8]
    folder = Path(tempfile.gettempdir()) / f"tandem-{os.getuid()}-{mark}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ClusterError(f"{folder} belongs to somebody else. Set TANDEM_HOME to a shorter path.")
    return folder


def _drop_old_sessions(folder: Path, keep: int = 3) -> None:
    """Keep the logs of the last sessions; Ray never removes any."""
    sessions = sorted(path for path in folder.glob("session_2*") if path.is_dir())
    for path in sessions[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
