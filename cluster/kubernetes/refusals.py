"""What the API server refuses, in our words: one error for each thing that a caller tells apart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from runtime.core.errors import ClusterError

_MANAGER = re.compile(r'conflict with "([^"]*)"')
_NAMESPACE = re.compile(r'namespaces "([^"]*)" not found')
_PROJECTS = {
    "ray.io": "KubeRay is not installed, or too old for it. Install the KubeRay operator 1.4 or newer",
    "monitoring.coreos.com": "the Prometheus operator is not installed. Install kube-prometheus-stack, or "
    "set monitoring.enabled: false",
    "gateway.networking.k8s.io": "the Gateway API is not installed. Install its CRDs and a controller, or "
    "choose another endpoint.kind",
    "kueue.x-k8s.io": "Kueue is not installed. Install it, or set queueing.kind: none",
}


class Forbidden(ClusterError):
    """This account may not do it (403), or the API server does not know the account (401)."""


class NoSuchKind(ClusterError):
    """The cluster does not know this kind: what brings it is not installed."""


class NoSuchNamespace(ClusterError):
    """The object's namespace is not there (404)."""


class Invalid(ClusterError):
    """The API server, or an admission webhook, does not take this object (400, 422)."""


class AlreadyThere(ClusterError):
    """An object of this name was there before."""


class Changed(ClusterError):
    """Somebody changed the object since it was read: read it again."""


class Blocked(ClusterError):
    """A PodDisruptionBudget keeps the pod for now (429)."""


class Unanswered(ClusterError):
    """The API server does not answer, or says that it cannot now (5xx): it may again soon."""


@dataclass(frozen=True)
class Held:
    """A field that somebody else set to another value."""

    field: str
    """As the API server writes it: ``.spec.workerGroupSpecs``."""

    manager: str


class Conflicted(ClusterError):
    """Server-side apply: other managers own fields that we would change.

    Args:
        name: The object, such as ``RayCluster small``.
        held: The fields and who holds them.
    """

    def __init__(self, name: str, held: Sequence[Held]) -> None:
        fields = "; ".join(f"{one.field} (set by {one.manager!r})" for one in held)
        super().__init__(
            f"{name}: others own fields that would change: {fields}. Bring their change into your spec, or "
            "take the fields over with --force-conflicts."
        )
        self.name, self.held = name, tuple(held)

    def __reduce__(self) -> tuple[type[Conflicted], tuple[str, tuple[Held, ...]]]:
        return type(self), (self.name, self.held)


def no_such_kind(api_version: str, kind: str) -> NoSuchKind:
    """The error of a kind that no group of the cluster has."""
    group = api_version.partition("/")[0]
    why = _PROJECTS.get(group, "what brings it is not installed. Install that first")
    return NoSuchKind(f"the cluster knows no {kind} ({api_version}): {why}.")


@contextmanager
def in_our_words(what: str, name: str, host: str) -> Iterator[None]:
    """Turns the official client's errors into ours.

    Args:
        what: The act, for the message: ``apply``.
        name: The object, such as ``Service small-endpoint``.
        host: The API server's address.
    """
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        raise _refusal(error, what, name, host) from None
    except HTTPError as error:
        raise unreachable(host, error) from None


def unreachable(host: str, error: Exception) -> Unanswered:
    """The error of an API server that does not answer."""
    reason = getattr(error, "reason", None) or error
    return Unanswered(
        f"the Kubernetes API server at {host} does not answer ({type(reason).__name__}). Check that the "
        "cluster runs and that `kubectl get nodes` answers; another cluster: --context."
    )


def _refusal(error: Any, what: str, name: str, host: str) -> ClusterError:
    status = _status(error)
    message = status.get("message") or error.reason or "no reason given"
    if error.status == 0:
        # The official client's word for a websocket that did not open.
        return ClusterError(f"{name}: cannot {what}: {message}")
    if error.status == 401:
        return Forbidden(
            f"the API server at {host} does not know you (401). Log in again (your provider's command renews "
            "the kubeconfig), or name another context with --context."
        )
    if error.status == 403:
        return Forbidden(
            f"{name}: you may not {what} it: {message}. Ask the cluster's administrator for the right, or "
            "use another account."
        )
    if error.status == 404 and (found := _NAMESPACE.fullmatch(message)):
        return NoSuchNamespace(
            f"{name}: cannot {what} it: there is no namespace {found[1]!r}. Make it: kubectl create "
            f"namespace {found[1]}"
        )
    if error.status == 409:
        return _conflict(status, name, message)
    if error.status == 429:
        return Blocked(f"{name}: cannot {what} now: {message}")
    if error.status in (400, 422):
        return Invalid(f"{name}: the API server does not take it: {message}")
    kind = Unanswered if error.status >= 500 else ClusterError
    return kind(f"{name}: the API server cannot {what} it ({error.status}): {message}")


def _conflict(status: dict[str, Any], name: str, message: str) -> ClusterError:
    causes = (status.get("details") or {}).get("causes") or []
    held = [
        Held(cause.get("field", "?"), _manager(cause.get("message", "")))
        for cause in causes
        if cause.get("reason") == "FieldManagerConflict"
    ]
    if held:
        return Conflicted(name, held)
    if status.get("reason") == "AlreadyExists":
        return AlreadyThere(f"{name} is there already.")
    return Changed(f"{name}: {message}")


def _manager(message: str) -> str:
    found = _MANAGER.search(message)
    return found[1] if found else "?"


def _status(error: Any) -> dict[str, Any]:
    """The Status object in the body; empty where a proxy answered something else."""
    try:
        status = json.loads(error.body or "{}")
    except ValueError:
        return {}
    return status if isinstance(status, dict) else {}
