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
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from runtime.core.config import ConfigModel, blamed_on, load_spec
from runtime.core.errors import ConfigError
from runtime.core.places import home
from storage.address import holds_credentials

_TRAVELLING = "TANDEM_STORAGE_OPTIONS"
_SECRET = re.compile(
    r"secret|passw|passphrase|private|token|signature|credentials$|(^|_)(key|pass|pwd|sas)(_|$)",
    re.IGNORECASE,
)


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

    @model_validator(mode="before")
    @classmethod
    def _holds_no_secret(cls, data: Any) -> Any:
        # Before all other checks: their messages repeat the value.
        if secret := next(_secrets(data), None):
            raise ValueError(
                f"{secret} would hold a secret, and this file is shown and sent to workers. Give credentials "
                "the store's own way: a profile, a key file, the environment."
            )
        return data


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
    return found.model_copy(update={"storage": _travelled(travelling)}) if travelling else found


def _travelled(text: str) -> dict[str, dict[str, Any]]:
    try:
        storage = json.loads(text)
    except ValueError:
        raise ConfigError(
            f"{_TRAVELLING} is not JSON. Write what `storage` is in the workspace config, or unset it."
        ) from None
    with blamed_on(f"${_TRAVELLING}"):
        return load_spec(Workspace, {"storage": storage}).storage


def _secrets(data: Any, field: str = "") -> Iterator[str]:
    """Fields that are named like a secret, or hold one in an address; the latter's own text is left out."""
    if isinstance(data, str) and holds_credentials(data):
        yield field
    for name, value in data.items() if isinstance(data, Mapping) else ():
        is_secret_address = holds_credentials(str(name))
        below = f"{field}.{'***' if is_secret_address else name}".lstrip(".")
        # A prefix may be called what it likes, and a file's path is no secret.
        is_option = "/" not in str(name) and not str(name).endswith("_file")
        if is_secret_address or (is_option and _SECRET.search(str(name))):
            yield below
        yield from _secrets(value, below)


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
    stem = re.sub("^gcs://", "gs://", prefix).rstrip("/")
    return f"{uri}/".startswith(f"{stem}/")


def default_store() -> str:
    """``$TANDEM_STORE``, else ``store`` of the workspace config, else ``~/.tandem/store``."""
    return os.environ.get("TANDEM_STORE") or workspace().store or "~/.tandem/store"
