"""Tools that manage an object and write their own state back: Helm, Argo CD, Flux. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.kubernetes.workloads import Manifest

_MARKS = {
    "argocd.argoproj.io/": "Argo CD",
    "helm.toolkit.fluxcd.io/": "Flux",
    "kustomize.toolkit.fluxcd.io/": "Flux",
}
"""Beginnings of labels and annotations by which a tool knows its objects."""
_HELM_NOTE = "meta.helm.sh/release-name"


@dataclass(frozen=True)
class Keeper:
    """Whose object it is."""

    tool: str
    """``Helm``, ``Argo CD`` or ``Flux``."""

    release: str | None = None
    """Helm's release; None where the object does not say."""

    namespace: str | None = None
    """The release's."""

    chart_version: str | None = None
    """``v25.3.0``: the chart must stay the same when values are changed."""


def keeper(manifest: Manifest) -> Keeper | None:
    """Which tool's object this is; None where nothing says so."""
    labels = manifest["metadata"].get("labels") or {}
    notes = manifest["metadata"].get("annotations") or {}
    for mark, tool in _MARKS.items():
        if any(key.startswith(mark) for key in (*labels, *notes)):
            return Keeper(tool)
    if _HELM_NOTE not in notes and labels.get("app.kubernetes.io/managed-by") != "Helm":
        return None
    release = notes.get(_HELM_NOTE) or labels.get("app.kubernetes.io/instance")
    _, has_version, version = labels.get("helm.sh/chart", "").rpartition("-v")
    return Keeper(
        "Helm", release, notes.get("meta.helm.sh/release-namespace"), f"v{version}" if has_version else None
    )


def helm_command(keeper: Keeper, *, chart: str, values: Sequence[str], namespace: str | None) -> str:
    """The command that sets values of a release and leaves all else as it is.

    Args:
        chart: As NVIDIA's documentation adds its repository: ``nvidia/gpu-operator``.
        values: ``devicePlugin.config.name=`` and the like.
        namespace: Of the release, where the object does not say.
    """
    words = ["helm", "upgrade", keeper.release or "RELEASE", chart]
    words += ["--namespace", keeper.namespace or namespace or "NAMESPACE"]
    words += ["--version", keeper.chart_version] if keeper.chart_version else []
    words += ["--reuse-values", *(word for value in values for word in ("--set", value))]
    return shlex.join(words)
