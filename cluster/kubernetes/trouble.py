"""What pods and applications wait for, in a line each: the reasons that ``kubectl describe`` would show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.owned import selector
from cluster.kubernetes.refusals import Forbidden
from cluster.kubernetes.workloads import Manifest

_LOG_LINES = 5
_WELL = frozenset({"ContainerCreating", "PodInitializing"})
"""Why a container waits where nothing is wrong."""
_JOB_LABEL = "batch.kubernetes.io/job-name"
"""Of a Job's pods; KubeRay calls the Job that submits a RayJob like the RayJob."""
_APP_WELL = frozenset({"RUNNING", "NOT_STARTED"})


def troubles(kubernetes: Kubernetes, spec: ClusterSpec, titles: Sequence[str] = ()) -> list[str]:
    """What keeps the cluster's pods and apps, the same of several pods once, and what may not be looked at.

    Args:
        titles: Objects that are not ready, as ``RayService lab-serve``: what operators last warned of them.

    Raises:
        ClusterError: the API server refuses or does not answer.
    """
    unseen: list[str] = []
    pods = _listed(kubernetes, spec, "v1", "Pod", unseen)
    services = _listed(kubernetes, spec, "ray.io/v1", "RayService", unseen)
    found: dict[str, list[str]] = {}
    for pod in pods:
        for reason in _of_pod(kubernetes, pod):
            found.setdefault(reason, []).append(pod["metadata"]["name"])
    told = [f"{_names(names)} {reason}" for reason, names in found.items()]
    told += [line for service in services for line in of_applications(service)]
    told += [line for title in titles for line in _of_the_last_try(kubernetes, pods, title)]
    events = _listed(kubernetes, spec, "v1", "Event", unseen) if titles else []
    return told + [line for title in titles for line in _last_warning(events, title)] + unseen


def _listed(
    kubernetes: Kubernetes, spec: ClusterSpec, api_version: str, kind: str, unseen: list[str]
) -> list[Manifest]:
    """The cluster's objects of a kind, all events; where that is refused none, and ``unseen`` says so."""
    labels = None if kind == "Event" else selector(spec)
    try:
        return kubernetes.list(api_version, kind, spec.in_namespace, labels)
    except Forbidden as error:
        unseen.append(f"not looked at: {error}")
        return []


def _of_the_last_try(kubernetes: Kubernetes, pods: Sequence[Manifest], title: str) -> list[str]:
    """What the newest pod of a job said that ended in vain: Kubernetes itself only counts the tries."""
    kind, name = title.split()
    failed = [
        pod
        for pod in pods
        if (pod["metadata"].get("labels") or {}).get(_JOB_LABEL) == name
        and (pod.get("status") or {}).get("phase") == "Failed"
    ]
    if kind not in ("Job", "RayJob") or not failed:
        return []
    newest = max(failed, key=lambda pod: pod["status"].get("startTime") or "")
    container = newest["spec"]["containers"][0]["name"]
    return [f"{title}: a try failed. Its last lines:{_last_lines(kubernetes, newest, container)}"]


def _last_warning(events: Sequence[Manifest], title: str) -> list[str]:
    """The newest warning of an object, such as the operator's that its spec is invalid."""
    kind, name = title.split()
    about = {"kind": kind, "name": name}
    warnings = [
        one
        for one in events
        if one.get("type") == "Warning" and about.items() <= (one.get("involvedObject") or {}).items()
    ]
    newest = max(warnings, key=lambda one: one.get("lastTimestamp") or "", default=None)
    return [f"{title} {newest.get('reason')}: {newest.get('message')}"] if newest else []


def of_applications(service: Manifest) -> list[str]:
    """What Serve says of a RayService's applications that do not run, in the new cluster and in the old."""
    status = service.get("status") or {}
    found: dict[str, None] = {}
    for place in ("pendingServiceStatus", "activeServiceStatus"):
        apps = (status.get(place) or {}).get("applicationStatuses") or {}
        for name, app in apps.items():
            if app.get("status") not in _APP_WELL:
                found[f"app {name}: {app.get('status', 'UNKNOWN')}{_said(app)}"] = None
    return list(found)


def _said(app: Manifest) -> str:
    """Its message, or those of its deployments."""
    deployments = (app.get("serveDeploymentStatuses") or {}).values()
    messages = [app.get("message"), *(one.get("message") for one in deployments)]
    first = next((one.strip() for one in messages if one and one.strip()), "")
    return f": {first}" if first else ""


def _of_pod(kubernetes: Kubernetes, pod: Manifest) -> Iterator[str]:
    status = pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
            yield f"waits for a node: {condition.get('message', 'no node fits')}"
    containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting")
        if waiting and waiting.get("reason") not in _WELL:
            yield _of_container(kubernetes, pod, container["name"], waiting)


def _of_container(kubernetes: Kubernetes, pod: Manifest, container: str, waiting: Manifest) -> str:
    reason, message = waiting.get("reason", "waits"), waiting.get("message", "")
    if reason != "CrashLoopBackOff":
        return f"{reason}: {message}".rstrip(": ")
    last_lines = _last_lines(kubernetes, pod, container, previous=True)
    return f"{reason}: {container} ends again and again. Its last lines:{last_lines}"


def _last_lines(kubernetes: Kubernetes, pod: Manifest, container: str, *, previous: bool = False) -> str:
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    try:
        log = kubernetes.logs(name, namespace, container=container, lines=_LOG_LINES, previous=previous)
    except Forbidden as error:
        log = f"(not looked at: {error})"
    return "".join(f"\n    {line}" for line in log.strip().splitlines()[-_LOG_LINES:])


def _names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
