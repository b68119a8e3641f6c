"""Bring a cluster to what was rendered: asked first, then applied, in order; what others own stays theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.beside import MADE_BY_US, fitted, is_there
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.elsewhere import explained
from cluster.kubernetes.keeping_data import keep_data
from cluster.kubernetes.owned import key, live, title, without_the_servers
from cluster.kubernetes.readiness import state_of
from cluster.kubernetes.refusals import Conflicted, Forbidden, no_such_kind
from cluster.kubernetes.scaling import (
    only_the_operators,
    outgrown,
    scale_running,
    with_the_autoscalers,
    worker_groups,
)
from cluster.kubernetes.token import ensure_token
from cluster.kubernetes.unrendered import no_longer_rendered
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
    running: list[str] = field(default_factory=list)
    """Apps and jobs that run on, and what they stand on: their specs were not given."""
    notes: list[str] = field(default_factory=list)
    """What else was done, a sentence each."""


def apply(
    kubernetes: Kubernetes,
    spec: ClusterSpec,
    manifests: Sequence[Manifest],
    *,
    force: bool = False,
    prune: bool = False,
    prune_running: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Applied:
    """Server-side apply of ``manifests`` in their order, after the API server took each in a dry run.

    Args:
        force: Take over fields that others own.
        prune: Delete what is no longer rendered, but not what runs.
        prune_running: Delete that, too: apps and jobs whose specs are not among what was rendered.
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
        _dry_run(kubernetes, spec, fitting, force=force)
        # Before anything is changed: an account that may not look finds that out now.
        left = no_longer_rendered(kubernetes, spec, manifests)
        ensure_token(kubernetes, spec, may_be_there=not made, dry_run=True)
    except BaseException:
        if made:
            _take_back(kubernetes, spec, tell)
        raise
    done = Applied(notes=[*notes, *left.unseen])
    if token := ensure_token(kubernetes, spec):
        done.notes.append(token.rstrip("."))
    for manifest in fitting:
        if has_failed(kubernetes, manifest):
            # It stands there until its time to live is over, and whoever applies it again mended something.
            _delete(kubernetes, manifest)
            done.notes.append(f"{title(manifest)} had failed, and is begun again")
        _apply_one(kubernetes, spec, manifest, done, force=force, tell=tell)
    for service in [one for one in manifests if one["kind"] == "RayService"]:
        done.notes += scale_running(kubernetes, service)
    if prune_running:
        _prune(kubernetes, left.objects, done)
        return done
    done.running += [title(one) for one in reversed(left.running)]
    if prune:
        _prune(kubernetes, left.rest, done)
    else:
        done.left += [title(one) for one in reversed(left.rest)]
    if prune and done.running:
        done.notes.append("--prune leaves what runs; --prune-running ends it, too")
    return done


def _check_kinds(kubernetes: Kubernetes, manifests: Sequence[Manifest]) -> None:
    for api_version, kind in dict.fromkeys((one["apiVersion"], one["kind"]) for one in manifests):
        if not kubernetes.has(api_version, kind):
            raise no_such_kind(api_version, kind)


def _make_namespace(kubernetes: Kubernetes, spec: ClusterSpec, manifests: Sequence[Manifest]) -> bool:
    """Dry runs need the namespace, so it comes first, with nothing but its name; whether it was made."""
    name = spec.in_namespace
    is_rendered = any(key(one) == ("Namespace", None, name) for one in manifests)
    if not is_rendered or is_there(kubernetes, name):
        return False
    metadata = {"name": name, "annotations": {MADE_BY_US: "true"}}
    kubernetes.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    return True


def _take_back(kubernetes: Kubernetes, spec: ClusterSpec, tell: Callable[[str], None]) -> None:
    try:
        kubernetes.delete("v1", "Namespace", spec.in_namespace)
    except ClusterError as error:
        # Not instead of the reason why nothing was applied.
        tell(f"Namespace {spec.in_namespace} was made and stays, empty: {error}")


def _dry_run(
    kubernetes: Kubernetes, spec: ClusterSpec, manifests: Sequence[Manifest], *, force: bool
) -> None:
    """Asks the API server of every object before one is changed."""
    # A namespace that is missing is the same refusal of all that would be in it.
    refused: dict[str, ClusterError] = {}
    for manifest in manifests:
        try:
            send(kubernetes, spec, manifest, force=force, dry_run=True)
        except ClusterError as error:
            refused[str(error)] = error
    if len(refused) == 1:
        raise next(iter(refused.values()))
    if refused:
        lines = "".join(f"\n- {error}" for error in refused)
        raise ClusterError(f"{len(refused)} objects would be refused, so nothing was changed:{lines}")


def send(
    kubernetes: Kubernetes, spec: ClusterSpec, manifest: Manifest, *, force: bool, dry_run: bool = False
) -> tuple[Manifest | None, Manifest, str | None]:
    """Apply one object; what it was, what it is, and a note where a field was taken over from an operator.

    Raises:
        Conflicted, ClusterError: as ``Kubernetes.apply`` does.
    """
    with explained(spec, manifest):
        return _sent(kubernetes, manifest, force=force, dry_run=dry_run)


def _sent(
    kubernetes: Kubernetes, manifest: Manifest, *, force: bool, dry_run: bool
) -> tuple[Manifest | None, Manifest, str | None]:
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
    spec: ClusterSpec,
    manifest: Manifest,
    done: Applied,
    *,
    force: bool,
    tell: Callable[[str], None],
) -> None:
    before, after, note = send(kubernetes, spec, manifest, force=force)
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
    if manifest["kind"] == "RayCluster" and before is not None:
        raised = outgrown(worker_groups(before), worker_groups(after))
        done.notes += [f"{title(manifest)}: {one}" for one in raised]
    place.append(title(manifest))
    tell(f"{title(manifest)} {word}")
    done.notes += [note] if note else []


def has_failed(kubernetes: Kubernetes, manifest: Manifest) -> bool:
    """Whether it is a Job that has failed for good: Kubernetes never begins one again by itself."""
    return manifest["kind"] == "Job" and state_of(live(kubernetes, manifest), title(manifest)).has_failed


def _prune(kubernetes: Kubernetes, objects: Sequence[Manifest], done: Applied) -> None:
    """Delete from the last to the first; what this account may not delete is left, and told."""
    for one in reversed(objects):
        try:
            kept = _delete(kubernetes, one)
        except Forbidden as error:
            done.left.append(title(one))
            done.notes.append(str(error).rstrip("."))
        else:
            done.pruned.append(title(one))
            done.notes += [kept] if kept else []


def _delete(kubernetes: Kubernetes, one: Manifest) -> str | None:
    """A sentence where its data had to be kept first."""
    kind, namespace, name = key(one)
    kept = keep_data(kubernetes, one) if kind == "PersistentVolumeClaim" else None
    kubernetes.delete(one["apiVersion"], kind, name, namespace)
    return kept
