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
from cluster.priority import priorities_env, priorities_here
from cluster.ray_settings import RAY_SETTINGS
from runtime.core.errors import ClusterError
from runtime.core.places import cache_root, file_cache, home

_SOCKET_PATH_BYTES = 107
"""Longest UNIX socket path on Linux."""

_LONGEST_SOCKET = "session_2026-11-27_03-17-30_023464_4194304/sockets/dash_TaskEventsHead"
"""The longest socket path that Ray makes below its folder: the largest process id that Linux gives, and
the longest name of a dashboard module. A path that is too long costs Ray its dashboard, a minute later."""


def ray_command() -> str:
    """The ``ray`` of the core environment."""
    return str(interpreter("core").with_name("ray"))


def ray_environment(store: str, *parts: Mapping[str, str]) -> dict[str, str]:
    """The environment of a node's Ray, which every worker on it inherits.

    Args:
        store: Root address of the store for jobs and apps that name none.
        parts: Variables besides, such as those for HAProxy and the token.

    Raises:
        ConfigError: ``TANDEM_PRIORITIES`` is no order of the priority classes.
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
        **priorities_env(priorities_here()),
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
    if not _has_room(folder):
        folder = _short_dir()
    folder.mkdir(parents=True, exist_ok=True)
    _drop_old_sessions(folder)
    return folder


def haproxy_dir(temp_dir: Path) -> Path:
    """HAProxy's folder below Ray's own, or a short one: its sockets' paths may be shorter still."""
    folder = temp_dir / "haproxy"
    return folder if len(os.fsencode(folder)) <= FOLDER_BYTES else _short_dir() / "h"


def _has_room(folder: Path) -> bool:
    return len(os.fsencode(folder / _LONGEST_SOCKET)) <= _SOCKET_PATH_BYTES


def _short_dir() -> Path:
    """A folder of this user with a short path, for this TANDEM_HOME."""
    mark = hashlib.sha256(str(home()).encode()).hexdigest()[:8]
    name = f"tandem-{os.getuid()}-{mark}"
    folder = Path(tempfile.gettempdir()) / name
    if not _has_room(folder) or len(os.fsencode(folder / "h")) > FOLDER_BYTES:
        # A job's own TMPDIR may be long; this one never is.
        folder = Path("/tmp") / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ClusterError(f"{folder} belongs to somebody else. Set TANDEM_HOME to a shorter path.")
    return folder


def _drop_old_sessions(folder: Path, keep: int = 3) -> None:
    """Keep the logs of the last sessions; Ray never removes any."""
    sessions = sorted(path for path in folder.glob("session_2*") if path.is_dir())
    for path in sessions[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
