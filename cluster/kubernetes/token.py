"""Ray's token in its Secret: made where it is missing, never printed, never replaced."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from pathlib import Path

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.names import labels, token_secret
from cluster.kubernetes.refusals import AlreadyThere
from runtime.core.errors import ClusterError, ConfigError
from runtime.core.places import home

KEY = "auth_token"
_RANDOM_BYTES = 32


def ensure_token(kubernetes: Kubernetes, spec: ClusterSpec) -> bool:
    """Make the Secret with a random token if there is none; whether it was made.

    Raises:
        ConfigError: the Secret is there, without a token in it.
    """
    if spec.auth.mode == "none" or read_token(kubernetes, spec) is not None:
        return False
    metadata = {"name": token_secret(spec), "namespace": spec.in_namespace, "labels": labels(spec)}
    data = {KEY: base64.b64encode(secrets.token_urlsafe(_RANDOM_BYTES).encode()).decode()}
    try:
        kubernetes.create(
            {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": data}
        )
    except AlreadyThere:
        # Somebody else's apply was faster: one token for both.
        return False
    return True


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
