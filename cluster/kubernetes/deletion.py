"""The end of a cluster: its work first, then what carried it. Data on volumes and in buckets stays."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.beside import MADE_BY_US
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.keeping_data import keep_data
from cluster.kubernetes.names import token_secret
from cluster.kubernetes.owned import Owned, key, live, owned, selector, title
from cluster.kubernetes.refusals import Forbidden
from cluster.kubernetes.workloads import Manifest
from runtime.core.errors import WaitTimeout

_FIRST = ("Job", "RayJob", "RayService", "RayCluster")
"""Their pods drain; what they stand on, such as the store's claim, must not go before them."""
_POLL_S = 0.5


def to_delete(kubernetes: Kubernetes, spec: ClusterSpec) -> Owned:
    """The cluster's objects in the order in which they go: jobs, services, clusters, then the rest."""
    found = owned(kubernetes, spec)
    first = [one for kind in _FIRST for one in found.objects if one["kind"] == kind]
    rest = [one for one in reversed(found.objects) if one["kind"] not in _FIRST]
    token, unseen = _token(kubernetes, spec)
    return Owned([*first, *rest, *token], [*found.unseen, *unseen])


def delete(
    kubernetes: Kubernetes,
    spec: ClusterSpec,
    objects: Sequence[Manifest],
    *,
    namespace: bool,
    timeout_s: float,
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """Delete ``objects`` and wait until they are gone. A claim whose volume cannot be told to stay is left.

    Args:
        objects: What ``to_delete`` found.
        namespace: Delete the namespace too, if an apply made it.
        timeout_s: For all of it.
        tell: Hears a line for each object.

    Raises:
        WaitTimeout: something is still there; its end goes on.
        ClusterError: the API server refuses or does not answer.
    """
    deadline = time.monotonic() + timeout_s
    for kind in _FIRST:
        _delete_all(kubernetes, [one for one in objects if one["kind"] == kind], deadline, tell)
    _wait_for_pods(kubernetes, spec, deadline)
    _delete_all(kubernetes, [one for one in objects if one["kind"] not in _FIRST], deadline, tell)
    if namespace:
        _delete_namespace(kubernetes, spec, deadline, tell)


def _token(kubernetes: Kubernetes, spec: ClusterSpec) -> tuple[list[Manifest], list[str]]:
    """The Secret with the token, if an apply made it; a sentence where nobody knows."""
    try:
        found = kubernetes.list("v1", "Secret", spec.in_namespace, selector(spec))
    except Forbidden as error:
        stays = f"Ray's token, the Secret {token_secret(spec)}, stays where an apply made it"
        return [], [f"not looked at: {error} {stays}"]
    return [one for one in found if one["metadata"]["name"] == token_secret(spec)], []


def _delete_all(
    kubernetes: Kubernetes, objects: Sequence[Manifest], deadline: float, tell: Callable[[str], None]
) -> None:
    going = [one for one in objects if _may_go(kubernetes, one, tell)]
    for one in going:
        kind, namespace, name = key(one)
        kubernetes.delete(one["apiVersion"], kind, name, namespace)
    for one in going:
        _until(lambda one=one: live(kubernetes, one) is None, title(one), deadline)  # type: ignore[misc]
        tell(f"{title(one)} deleted")


def _may_go(kubernetes: Kubernetes, one: Manifest, tell: Callable[[str], None]) -> bool:
    """Whether its data is safe without it. Of a claim whose volume this account may not see, nobody knows."""
    if one["kind"] != "PersistentVolumeClaim":
        return True
    try:
        kept = keep_data(kubernetes, one)
    except Forbidden as error:
        tell(f"{title(one)} stays, for its data might go with it. {error}")
        return False
    if kept:
        tell(kept)
    return True


def _wait_for_pods(kubernetes: Kubernetes, spec: ClusterSpec, deadline: float) -> None:
    """Pods drain after their cluster is gone, for as long as their longest request."""

    def none_left() -> bool:
        return not kubernetes.list("v1", "Pod", spec.in_namespace, selector(spec))

    _until(none_left, f"pods of {spec.name}", deadline)


def _delete_namespace(
    kubernetes: Kubernetes, spec: ClusterSpec, deadline: float, tell: Callable[[str], None]
) -> None:
    name = spec.in_namespace
    found = kubernetes.get("v1", "Namespace", name)
    if found is None:
        return
    if MADE_BY_US not in (found["metadata"].get("annotations") or {}):
        tell(f"Namespace {name} stays: it was there before the cluster")
        return
    kubernetes.delete("v1", "Namespace", name)
    _until(lambda: kubernetes.get("v1", "Namespace", name) is None, f"Namespace {name}", deadline)
    tell(f"Namespace {name} deleted")


def _until(is_over: Callable[[], bool], what: str, deadline: float) -> None:
    while not is_over():
        if time.monotonic() > deadline:
            raise WaitTimeout(
                f"{what}: still there, its end goes on. Look what holds it (kubectl describe; "
                "finalizers), or wait longer: --timeout."
            )
        time.sleep(_POLL_S)
