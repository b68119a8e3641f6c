"""What an apply would change: the API server's dry run against what is there, as unified diffs."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import yaml

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.apply import has_failed, send
from cluster.kubernetes.beside import fitted, is_there
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.owned import title, without_the_servers
from cluster.kubernetes.refusals import Conflicted
from cluster.kubernetes.scaling import rescaled
from cluster.kubernetes.unrendered import no_longer_rendered
from cluster.kubernetes.workloads import Manifest


@dataclass(frozen=True)
class Difference:
    """One object that differs."""

    title: str
    kind: Literal["new", "changed", "failed, begun again", "no longer rendered"]
    text: str
    """Unified diff of the object as YAML; empty where the object itself stays or goes as it is."""

    conflict: str | None = None
    """Who else owns fields that would change."""


def differences(kubernetes: Kubernetes, spec: ClusterSpec, manifests: Sequence[Manifest]) -> list[Difference]:
    """What is new, changed, or no longer rendered; empty: an apply would change nothing.

    Apps and jobs that run though their specs were not given are no difference: no apply ends them.

    Raises:
        ClusterError: the API server refuses an object, or does not answer.
    """
    has_namespace = is_there(kubernetes, spec.in_namespace)
    fitting, _ = fitted(kubernetes, spec, manifests)
    found = [_difference(kubernetes, one, spec, has_namespace) for one in fitting]
    # An apply changes them after their RayService, and one that was cut off may have left them behind.
    behind = [
        Difference(title(one.after), "changed", unified(one.before, one.after, title(one.after)))
        for service in fitting
        if service["kind"] == "RayService"
        for one in rescaled(kubernetes, service)
    ]
    gone = [
        Difference(title(one), "no longer rendered", "")
        for one in no_longer_rendered(kubernetes, spec, manifests).rest
    ]
    return [*(one for one in found if one is not None), *behind, *gone]


def _difference(
    kubernetes: Kubernetes, manifest: Manifest, spec: ClusterSpec, has_namespace: bool
) -> Difference | None:
    if not has_namespace and manifest["metadata"].get("namespace") == spec.in_namespace:
        # A dry run in a namespace that is not there is refused, whatever the object.
        return Difference(title(manifest), "new", unified(None, manifest, title(manifest)))
    if has_failed(kubernetes, manifest):
        return Difference(title(manifest), "failed, begun again", "")
    conflict = None
    try:
        before, after, _ = send(kubernetes, spec, manifest, force=False, dry_run=True)
    except Conflicted as refused:
        conflict = str(refused)
        before, after, _ = send(kubernetes, spec, manifest, force=True, dry_run=True)
    text = unified(before, after, title(manifest))
    if not text:
        return None
    return Difference(title(manifest), "changed" if before else "new", text, conflict)


def unified(before: Manifest | None, after: Manifest, name: str) -> str:
    """A unified diff of two states of an object, without what the server and operators write."""
    old, new = [_lines(one) for one in (before, after)]
    return "\n".join(difflib.unified_diff(old, new, f"cluster: {name}", f"spec: {name}", lineterm=""))


def _lines(manifest: Manifest | None) -> list[str]:
    if manifest is None:
        return []
    return yaml.safe_dump(without_the_servers(manifest), sort_keys=True, width=100).splitlines()
