"""The workspace config: where the store is, and how its parts are reached. Never a secret.

``$TANDEM_CONFIG``, else ``config.yaml`` in Tandem's own folder (``~/.tandem``)::

    store: gs://team/tandem
    storage:
      s3://lab: {endpoint_url: "http://minio:9000", profile: lab}
      gs://other-team: {credentials_file: /secrets/other-team.json}
    cache: {max_bytes: 500_000_000_000}
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field

from runtime.core.config import ConfigModel, load_spec
from runtime.core.errors import ConfigError
from runtime.core.places import home

_TRAVELLING = "TANDEM_STORAGE_OPTIONS"
_SECRET = re.compile(r"secret|password|passwd|access_key|^key$|sas_token|private|^token$", re.IGNORECASE)


class CacheSettings(ConfigModel):
    """The node cache."""

    max_bytes: int | None = Field(None, gt=0)
    """How much the node cache may hold. Default: half of its disk."""


class Workspace(ConfigModel):
    """The workspace config's fields."""

    store: str | None = None
    """Root address of the store. ``--store`` and ``$TANDEM_STORE`` win. Default: ``~/.tandem/store``."""

    storage: dict[str, dict[str, Any]] = {}
    """Settings by URI prefix; the longest prefix that fits an address wins, alone."""

    cache: CacheSettings = CacheSettings()
    """The node cache."""


def workspace() -> Workspace:
    """The workspace config of this process; empty where there is no file.

    On a cluster the settings of whoever submitted the job win (``$TANDEM_STORAGE_OPTIONS``).

    Raises:
        ConfigError: the file cannot be used, or holds a secret; names the field, never its value.
    """
    file = os.environ.get("TANDEM_CONFIG")
    return _load(file, str(home()), os.environ.get(_TRAVELLING))


@cache
def _load(file: str | None, home_: str, travelling: str | None) -> Workspace:
    path = Path(file).expanduser() if file else Path(home_) / "config.yaml"
    found = load_spec(Workspace, path) if file or path.is_file() else Workspace()
    if travelling:
        found = found.model_copy(update={"storage": json.loads(travelling)})
    _refuse_secrets(found.storage, str(path))
    return found


def _refuse_secrets(storage: Mapping[str, Mapping[str, Any]], origin: str) -> None:
    for prefix, options in storage.items():
        for name in options:
            if _SECRET.search(name):
                raise ConfigError(
                    f"{origin}: storage.{prefix}.{name} would hold a secret, and this file is shown and "
                    "sent to workers. Give credentials the store's own way: a profile, a key file, the "
                    "environment."
                )


def storage_env() -> dict[str, str]:
    """Variables that give another process of ours, on any node, this process's storage settings."""
    names = ("TANDEM_STORAGE_PATIENCE_S",)
    variables = {name: os.environ[name] for name in names if name in os.environ}
    # Also when it is empty: the cluster may have others.
    return variables | {_TRAVELLING: json.dumps(workspace().storage, sort_keys=True)}


def options_for(uri: str) -> dict[str, Any]:
    """The settings of the longest prefix that ``uri`` begins with, whole path parts only."""
    fitting = [prefix for prefix in workspace().storage if _is_below(uri, prefix)]
    return workspace().storage[max(fitting, key=len)] if fitting else {}


def _is_below(uri: str, prefix: str) -> bool:
    stem = prefix if prefix.endswith("://") else prefix.rstrip("/")
    return uri == stem or uri.startswith(stem if stem.endswith("://") else f"{stem}/")


def default_store() -> str:
    """``$TANDEM_STORE``, else ``store`` of the workspace config, else ``~/.tandem/store``."""
    return os.environ.get("TANDEM_STORE") or workspace().store or "~/.tandem/store"
