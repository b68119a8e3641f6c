"""Bring a cluster to what was rendered: asked first, then applied, in order; what others own stays theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.beside import MADE_BY_US, fitted
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.keeping_data import keep_data
from cluster.kubernetes.owned import key, live, owned, title, without_the_servers
from cluster.kubernetes.refusals import Conflicted, no_such_kind
from cluster.kubernetes.scaling import only_the_operators, scale_running, with_the_autoscalers
from cluster.kubernetes.token import ensure_token
from cluster.kubernetes.workloads import Manifest
from runtime.core.errors import ClusterError


@dataclass
class Applied:
    """What an apply did."""

    created: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    pruned: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """Objects of this cluster that are no longer rendered."""
    notes: list[str] = field(default_factory=list)
    """What else was done, a sentence each."""


def apply(
    kubernetes: Kubernetes,
    spec: ClusterSpec,
    manifests: Sequence[Manifest],
    *,
    force: bool = False,
    prune: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Applied:
    """Server-side apply of ``manifests`` in their order, after the API server took each in a dry run.

    Args:
        force: Take over fields that others own.
        prune: Delete what is no longer rendered.
        tell: Hears a line for each object.

    Raises:
        Conflicted: others own fields; nothing was changed.
        ClusterError: the API server refuses objects, and says which and why; nothing was changed, unless one
            that it took in the dry run.
    """
    _check_kinds(kubernetes, manifests)
    made = _make_namespace(kubernetes, spec, manifests)
    try:
        fitting, notes = fitted(kubernetes, spec, manifests)
        _dry_run(kubernetes, fitting, force=force)
    except BaseException:
        if made:
            kubernetes.delete("v1", "Namespace", spec.in_namespace)
        raise
    done = Applied(notes=notes)
    if ensure_token(kubernetes, spec):
        done.notes.append("made Ray's token, in a Secret of its own")
    for manifest in fitting:
        _apply_one(kubernetes, manifest, done, force=force, tell=tell)
    for service in [one for one in manifests if one["kind"] == "RayService"]:
        done.notes += scale_running(kubernetes, service)
    _prune(kubernetes, spec, manifests, done, prune=prune)
    return done


def no_longer_rendered(
    kubernetes: Kubernetes, spec: ClusterSpec, manifests: Sequence[Manifest]
) -> list[Manifest]:
    """Objects of the cluster that ``manifests`` does not have."""
    rendered = {key(one) for one in manifests}
    return [one for one in owned(kubernetes, spec) if key(one) not in rendered]


def _check_kinds(kubernetes: Kubernetes, manifests: Sequence[Manifest]) -> None:
    for api_version, kind in dict.fromkeys((one["apiVersion"], one["kind"]) for one in manifests):
        if not kubernetes.has(api_version, kind):
            raise no_such_kind(api_version, kind)


def _make_namespace(kubernetes: Kubernetes, spec: ClusterSpec, manifests: Sequence[Manifest]) -> bool:
    """Dry runs need the namespace, so it comes first, with nothing but its name; whether it was made."""
    name = spec.in_namespace
    is_rendered = any(key(one) == ("Namespace", None, name) for one in manifests)
    if not is_rendered or kubernetes.get("v1", "Namespace", name) is not None:
        return False
    metadata = {"name": name, "annotations": {MADE_BY_US: "true"}}
    kubernetes.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    return True


def _dry_run(kubernetes: Kubernetes, manifests: Sequence[Manifest], *, force: bool) -> None:
    """Asks the API server of every object before one is changed."""
    refused: list[ClusterError] = []
    for manifest in manifests:
        try:
            send(kubernetes, manifest, force=force, dry_run=True)
        except ClusterError as error:
            refused.append(error)
    if len(refused) == 1:
        raise refused[0]
    if refused:
        lines = "".join(f"\n- {error}" for error in refused)
        raise ClusterError(f"{len(refused)} objects would be refused, so nothing was changed:{lines}")


def send(
    kubernetes: Kubernetes, manifest: Manifest, *, force: bool, dry_run: bool = False
) -> tuple[Manifest | None, Manifest, str | None]:
    """Apply one object; what it was, what it is, and a note where a field was taken over from an operator.

    Raises:
        Conflicted, ClusterError: as ``Kubernetes.apply`` does.
    """
    before = live(kubernetes, manifest)
    sent = with_the_autoscalers(manifest, before)
    try:
        return before, kubernetes.apply(sent, force=force, dry_run=dry_run), None
    except Conflicted as conflict:
        if not only_the_operators(conflict):
            raise
        note = f"{title(manifest)}: took over its worker groups; replicas stay what the autoscaler decided"
        return before, kubernetes.apply(sent, force=True, dry_run=dry_run), note


def _apply_one(
    kubernetes: Kubernetes,
    manifest: Manifest,
    done: Applied,
    *,
    force: bool,
    tell: Callable[[str], None],
) -> None:
    before, after, note = send(kubernetes, manifest, force=force)
    if before is None:
        word, place = "created", done.created
    elif without_the_servers(before) != without_the_servers(after):
        word, place = "changed", done.changed
    else:
        word, place = "unchanged", done.unchanged
    if manifest["kind"] == "RayJob" and word == "changed" and (before or {}).get("status"):
        done.notes.append(
            f"{title(manifest)} began before this change, and KubeRay begins a job once. For another "
            "run give the train spec another name, or delete the RayJob first"
        )
    place.append(title(manifest))
    tell(f"{title(manifest)} {word}")
    done.notes += [note] if note else []


def _prune(
    kubernetes: Kubernetes,
    spec: ClusterSpec,
    manifests: Sequence[Manifest],
    done: Applied,
    *,
    prune: bool,
) -> None:
    for one in reversed(no_longer_rendered(kubernetes, spec, manifests)):
        if prune:
            kind, namespace, name = key(one)
            if kind == "PersistentVolumeClaim" and (kept := keep_data(kubernetes, one)):
                done.notes.append(kept)
            kubernetes.delete(one["apiVersion"], kind, name, namespace)
        (done.pruned if prune else done.left).append(title(one))
