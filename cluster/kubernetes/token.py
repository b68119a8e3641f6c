"""Ray's token in its Secret: made where it is missing, never printed, never replaced."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import shlex
from pathlib import Path

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.names import labels, token_secret
from cluster.kubernetes.refusals import AlreadyThere, Forbidden
from runtime.core.errors import ClusterError, ConfigError
from runtime.core.places import home

KEY = "auth_token"
_RANDOM_BYTES = 32


def ensure_token(
    kubernetes: Kubernetes, spec: ClusterSpec, *, may_be_there: bool = True, dry_run: bool = False
) -> str | None:
    """Make the Secret with a random token if there is none; a sentence where it was made, or nobody can know.

    Args:
        may_be_there: Whether an account that may neither read nor make it goes on: somebody else made it,
            perhaps. Else it is refused.
        dry_run: Only ask.

    Raises:
        ConfigError: the Secret is there, without a token in it.
        Forbidden: it is not there, and this account may not make it.
    """
    if spec.auth.mode == "none":
        return None
    is_missing = False
    try:
        if read_token(kubernetes, spec) is not None:
            return None
        is_missing = True
    except Forbidden:
        # Whether there is one, the attempt to make it says.
        pass
    metadata = {"name": token_secret(spec), "namespace": spec.in_namespace, "labels": labels(spec)}
    data = {KEY: base64.b64encode(secrets.token_urlsafe(_RANDOM_BYTES).encode()).decode()}
    try:
        kubernetes.create(
            {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": data},
            dry_run=dry_run,
        )
    except AlreadyThere:
        # One that this account may not read, or somebody else's apply was faster: one token for both.
        return None
    except Forbidden as error:
        if may_be_there and not is_missing:
            return (
                f"Ray's token was not looked at: {error} Pods wait until the Secret is there; whoever may, "
                f"makes it: {token_command(spec)}"
            )
        raise Forbidden(
            f"{error} It holds Ray's token; somebody else may make it before: {token_command(spec)}"
        ) from None
    return "made Ray's token, in a Secret of its own"


def token_command(spec: ClusterSpec) -> str:
    """The command line that makes the Secret with a token that nobody has seen."""
    names = f"-n {shlex.quote(spec.in_namespace)} create secret generic {shlex.quote(token_secret(spec))}"
    return f'kubectl {names} --from-literal={KEY}="$(openssl rand -hex {_RANDOM_BYTES})"'


def read_token(kubernetes: Kubernetes, spec: ClusterSpec) -> str | None:
    """The token; None where there is no Secret.

    Raises:
        ConfigError: the Secret is there, without a token in it.
    """
    name = token_secret(spec)
    secret = kubernetes.get("v1", "Secret", name, spec.in_namespace)
    if secret is None:
        return None
    token = base64.b64decode((secret.get("data") or {}).get(KEY, "")).decode().strip()
    if not token:
        raise ConfigError(
            f"auth.secret: the Secret {name!r} in namespace {spec.in_namespace!r} has no {KEY}. Put Ray's "
            "token there, or name another Secret: one that is missing is made."
        )
    return token


def write_token(kubernetes: Kubernetes, spec: ClusterSpec) -> Path:
    """Write the token into a file that only this user may read; where it is.

    Raises:
        ClusterError: the cluster has no token yet.
    """
    token = read_token(kubernetes, spec)
    if token is None:
        raise ClusterError(
            f"there is no Secret {token_secret(spec)!r} in namespace {spec.in_namespace!r}. Make the cluster "
            "first: tandem cluster apply CLUSTER.yaml."
        )
    # Clusters of one name in several places have a file each.
    mark = hashlib.sha256(f"{kubernetes.host} {spec.in_namespace}".encode()).hexdigest()[:8]
    path = home() / "tokens" / f"{spec.name}-{mark}"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Made anew: the mode of a file that was there would stay what it was.
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token)
    return path
