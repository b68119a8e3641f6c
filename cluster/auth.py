"""Ray's token: made for a plain cluster's head, found as Ray finds it, put into requests to a dashboard.

Source: https://docs.ray.io/en/latest/ray-security/token-auth.html
"""

from __future__ import annotations

import os
import secrets
import shlex
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from runtime.core.errors import ClusterError, ConfigError

_TOKEN_BYTES = 32
_HERE: ContextVar[Mapping[str, str] | None] = ContextVar("ray_token_variables", default=None)


def make_token(file: Path) -> None:
    """Write a new token, which only this user may read; a file that is there keeps its own.

    Raises:
        ConfigError: it cannot be made there; or it is there, and cannot be used (:func:`read_token`).
    """
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The mode from the first moment on: a file made readable and closed later may have been read.
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        read_token(file, field="--token-file")
        return
    except OSError as error:
        raise ConfigError(
            f"--token-file is {file}, which cannot be made ({error.strerror}). Name a file in a folder of "
            "this account."
        ) from None
    with os.fdopen(handle, "w") as out:
        out.write(secrets.token_urlsafe(_TOKEN_BYTES))


def read_token(file: Path, *, field: str) -> str:
    """The token in ``file``.

    Raises:
        ConfigError: it cannot be read, is empty, belongs to somebody else, or others may read or write it.
    """
    try:
        _check_private(file, field)
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(
            f"{field} is {file}, which cannot be read ({reason}). Name the file that `tandem up --head` "
            "named, or a copy of it (scp), with mode 600."
        ) from None
    if not token:
        raise ConfigError(f"{field} is {file}, which is empty. Copy the head's file once more.")
    return token


def _check_private(file: Path, field: str) -> None:
    """As ssh does with a key: who has the token runs any code on the cluster."""
    found, we = file.stat(), os.geteuid()
    if we not in (found.st_uid, 0):
        raise ConfigError(
            f"{field} is {file}, which belongs to another user (uid {found.st_uid}, we are {we}). Make a "
            "copy of your own, with mode 600."
        )
    if found.st_mode & 0o077:
        raise ConfigError(
            f"{field} is {file}, which others may read or write (mode {stat.S_IMODE(found.st_mode):03o}), "
            f"and who has the token runs any code on the cluster. Run: chmod 600 {shlex.quote(str(file))}"
        )


def token_variables(file: Path | None) -> dict[str, str]:
    """Ray's variables for a process of a cluster with the token in ``file``, or with None."""
    if file is None:
        return {"RAY_AUTH_MODE": "disabled"}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(file)}


@contextmanager
def token_from(file: Path | None) -> Iterator[None]:
    """Within the block requests carry the token of this file, whatever the environment says."""
    before = _HERE.set(token_variables(file))
    try:
        yield
    finally:
        _HERE.reset(before)


def auth_headers() -> dict[str, str]:
    """The header with the token; empty where there is none, or ``RAY_AUTH_MODE`` is ``disabled``.

    Raises:
        ConfigError: the variables name a file that cannot be read, or ask for a token that is nowhere.
    """
    found = _token(os.environ if (here := _HERE.get()) is None else here)
    return {"Authorization": f"Bearer {found}"} if found else {}


def _token(variables: Mapping[str, str]) -> str | None:
    """By Ray's rules: the variable with the token, the one with its file, the account's own file."""
    mode = variables.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled":
        return None
    if given := variables.get("RAY_AUTH_TOKEN", "").strip():
        return given
    if path := variables.get("RAY_AUTH_TOKEN_PATH"):
        return read_token(Path(path).expanduser(), field="RAY_AUTH_TOKEN_PATH")
    own = Path.home() / ".ray" / "auth_token"
    if own.is_file():
        return read_token(own, field="the account's token")
    if mode == "token":
        raise ConfigError(
            "RAY_AUTH_MODE is 'token', but there is no token: RAY_AUTH_TOKEN and RAY_AUTH_TOKEN_PATH are "
            f"not set, and {own} does not exist. Set RAY_AUTH_TOKEN_PATH to the file that "
            "`tandem up --head` named."
        )
    return None


def token_refused(dashboard_url: str, status: int) -> ClusterError:
    """What a 401 or a 403 of a dashboard means, and what to do."""
    sent = bool(auth_headers())
    what = f"does not take this token ({status})" if sent else f"asks for a token ({status})"
    return ClusterError(
        f"Ray's dashboard at {dashboard_url} {what}. Give the cluster's own: export RAY_AUTH_MODE=token "
        "RAY_AUTH_TOKEN_PATH=FILE (to `tandem up --join`: --token-file FILE), where FILE is a copy of the "
        "file that `tandem up --head` named; on Kubernetes the value is in the Secret NAME-ray-token, key "
        "auth_token."
    )
