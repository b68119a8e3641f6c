"""Whether an object is ready, and what it does until then: pure functions of the object as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.kubernetes.owned import title
from cluster.kubernetes.workloads import Manifest

WAITED_FOR = ("PersistentVolumeClaim", "RayCluster", "RayService", "RayJob", "Job")
"""Kinds that take time."""


@dataclass(frozen=True)
class State:
    """How far an object is."""

    title: str
    is_ready: bool
    doing: str
    """One short line."""

    has_failed: bool = False
    """Waiting on would be in vain."""


def state_of(manifest: Manifest | None, name: str = "") -> State:
    """The state of a live object; other kinds than ``WAITED_FOR`` are ready once they are there.

    Args:
        name: What it is called where there is none.
    """
    if manifest is None:
        return State(name, False, "is not there")
    status, kind = manifest.get("status") or {}, manifest["kind"]
    if kind == "PersistentVolumeClaim":
        phase = status.get("phase", "Pending")
        return State(title(manifest), phase == "Bound", phase, phase == "Lost")
    if kind not in WAITED_FOR:
        return State(title(manifest), True, "there")
    if kind == "Job":
        return _submission(title(manifest), status)
    if kind == "RayJob":
        # Of whatever spec it is: a job begins once.
        return _job(title(manifest), status)
    if not _is_of_this_spec(manifest):
        return State(title(manifest), False, "KubeRay has not looked at it yet")
    return _cluster(title(manifest), status) if kind == "RayCluster" else _service(title(manifest), status)


def conditions(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """An object's conditions by type."""
    found = (manifest.get("status") or {}).get("conditions") or []
    return {one["type"]: one for one in found}


def _is_of_this_spec(manifest: Manifest) -> bool:
    """Whether the status is of the spec as it is now; that of the spec before says nothing about this one."""
    seen = (manifest.get("status") or {}).get("observedGeneration")
    return seen is not None and seen >= manifest["metadata"].get("generation", 0)


def _service(name: str, status: dict[str, Any]) -> State:
    """Ready by its condition, never by its pods: workers without a replica stay NotReady by design."""
    held = {one["type"]: one for one in status.get("conditions") or []}
    if _is_true(held, "UpgradeInProgress"):
        return State(name, False, _said(held["UpgradeInProgress"], "moves to a new cluster"))
    is_ready = _is_true(held, "Ready")
    return State(name, is_ready, "serves" if is_ready else _said(held.get("Ready"), "starts"))


def _cluster(name: str, status: dict[str, Any]) -> State:
    held = {one["type"]: one for one in status.get("conditions") or []}
    if _is_true(held, "ReplicaFailure"):
        # Such as a quota: the operator tries on.
        return State(name, False, _said(held["ReplicaFailure"], "cannot make pods"))
    if not _is_true(held, "HeadPodReady"):
        return State(name, False, _said(held.get("HeadPodReady"), "the head starts"))
    workers = f"{status.get('readyWorkerReplicas', 0)} of {status.get('desiredWorkerReplicas', 0)} workers"
    return State(name, _is_true(held, "RayClusterProvisioned"), workers)


def _job(name: str, status: dict[str, Any]) -> State:
    """Ready once it runs: how long it then takes nobody knows."""
    word = status.get("jobDeploymentStatus") or "New"
    doing = ": ".join(one for one in (word, status.get("reason"), status.get("message")) if one)
    is_over = word == "Complete"
    has_failed = word in ("Failed", "ValidationFailed") or status.get("jobStatus") == "FAILED"
    return State(name, (is_over or word == "Running") and not has_failed, doing, has_failed)


def _submission(name: str, status: dict[str, Any]) -> State:
    """Ready once its pod is, which waits for the cluster, submits the run, and then follows it."""
    held = {one["type"]: one for one in status.get("conditions") or []}
    if _is_true(held, "Failed"):
        return State(name, False, _said(held["Failed"], "failed"), has_failed=True)
    if _is_true(held, "Complete"):
        return State(name, True, "complete")
    if status.get("ready"):
        return State(name, True, "its run is submitted")
    waits = "waits for its Ray cluster, to submit the run"
    return State(name, False, waits if status.get("active") else "its pod starts")


def _is_true(held: dict[str, dict[str, Any]], type_: str) -> bool:
    return bool(held.get(type_, {}).get("status") == "True")


def _said(condition: dict[str, Any] | None, otherwise: str) -> str:
    if condition is None:
        return otherwise
    return condition.get("message") or condition.get("reason") or otherwise
