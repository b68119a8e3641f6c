"""RayServices: names, upgrades and Serve's config, as the operator wants them and no schema says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import yaml

from cluster.kubernetes.faults import Fault, advice
from cluster.kubernetes.lints.parts import is_rays, mapping, rows, whole
from cluster.kubernetes.workloads import Manifest
from runtime.core.lookup import did_you_mean

_INCREMENTAL = "NewClusterWithIncrementalUpgrade"
_UPGRADES = ("NewCluster", _INCREMENTAL, "None")
_SPEC = "spec.rayClusterConfig"
_OPTIONS = "spec.upgradeStrategy.clusterUpgradeOptions"


def lint(manifest: Manifest) -> Iterator[Fault]:
    """Faults of a RayService's own spec; those of its cluster are found by ``rayclusters``."""
    if not (is_rays(manifest) and manifest.get("kind") == "RayService"):
        return
    spec = mapping(manifest, "spec")
    yield from _cluster(spec)
    yield from _upgrade(spec)
    yield from _serve_config(spec)
    yield from _service(spec)


def _cluster(spec: dict[str, Any]) -> Iterator[Fault]:
    if "rayClusterSpec" in spec:
        # Ray's documentation has it in its example of an incremental upgrade.
        yield Fault(
            "spec.rayClusterSpec", "given", "A RayService has no such field: that is a RayJob's.",
            "Call it rayClusterConfig.",
        )  # fmt: skip
    elif not mapping(spec, "rayClusterConfig"):
        yield Fault(_SPEC, None, "There is no cluster to serve on.", "Add it.")
    name = mapping(spec, "rayClusterConfig", "headGroupSpec", "headService", "metadata").get("name")
    if name:
        yield Fault(
            f"{_SPEC}.headGroupSpec.headService.metadata.name", name,
            "During an upgrade there are two heads, and two Services cannot have one name.", "Leave it out.",
        )  # fmt: skip


def _upgrade(spec: dict[str, Any]) -> Iterator[Fault]:
    kind = mapping(spec, "upgradeStrategy").get("type")
    if kind is not None and kind not in _UPGRADES:
        yield Fault(
            "spec.upgradeStrategy.type", kind, "The API server takes any word, but the operator knows three.",
            did_you_mean(str(kind), _UPGRADES),
        )  # fmt: skip
    delay = whole(spec.get("rayClusterDeletionDelaySeconds"))
    if delay is not None and delay < 0:
        yield Fault(
            "spec.rayClusterDeletionDelaySeconds", delay, "It cannot be negative.", "Write 60 or more."
        )
    if kind == _INCREMENTAL:
        yield from _incremental(spec)


def _incremental(spec: dict[str, Any]) -> Iterator[Fault]:
    autoscales = mapping(spec, "rayClusterConfig").get("enableInTreeAutoscaling")
    if mapping(spec, "rayClusterConfig") and not autoscales:
        yield Fault(
            f"{_SPEC}.enableInTreeAutoscaling", autoscales,
            "An incremental upgrade grows the new cluster by Ray's autoscaler.", "Write true.",
        )  # fmt: skip
    options = mapping(spec, "upgradeStrategy", "clusterUpgradeOptions")
    if not options.get("gatewayClassName"):
        yield Fault(
            f"{_OPTIONS}.gatewayClassName", options.get("gatewayClassName"),
            "A Gateway splits the traffic between the two clusters.", "Name a GatewayClass of the cluster.",
        )  # fmt: skip
    yield from _steps(options)
    if mapping(spec, "serveService", "spec").get("type") == "LoadBalancer":
        yield advice(
            "spec.serveService.spec.type", "LoadBalancer",
            "With an incremental upgrade the operator ignores it: the Gateway is the entry.",
            "Leave it out, and give the Gateway's address to clients.",
        )  # fmt: skip


def _steps(options: dict[str, Any]) -> Iterator[Fault]:
    step, surge = whole(options.get("stepSizePercent")), whole(options.get("maxSurgePercent", 100))
    for name, value in (("stepSizePercent", step), ("maxSurgePercent", surge)):
        if value is not None and not 0 <= value <= 100:
            yield Fault(f"{_OPTIONS}.{name}", value, "It is a percentage.", "Write 0 to 100.")
    if step is not None and surge is not None and step > surge:
        yield Fault(
            f"{_OPTIONS}.stepSizePercent", step, f"It is more than maxSurgePercent ({surge}).",
            f"Write {surge} or less.",
        )  # fmt: skip
    interval = whole(options.get("intervalSeconds"))
    if interval is not None and interval < 1:
        yield Fault(f"{_OPTIONS}.intervalSeconds", interval, "It is too small.", "Write 1 or more.")


def _serve_config(spec: dict[str, Any]) -> Iterator[Fault]:
    text, where = spec.get("serveConfigV2"), "spec.serveConfigV2"
    if not isinstance(text, str):
        if text is None:
            yield Fault(where, None, "There is nothing to serve.", "Add Serve's config as a text block.")
        return
    try:
        config = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        # ValueError: a word that looks like a date, and is none.
        yield Fault(where, text, "The text is no YAML.", "Repair it.")
        return
    apps = [app for _, app in rows(config, "applications", "")] if isinstance(config, dict) else []
    if not apps:
        yield Fault(where, text, "Serve's config has no applications.", "Add applications: [...].")
    for name, default in (("name", "default"), ("route_prefix", "/")):
        counts = Counter(
            value for value in (app.get(name, default) for app in apps) if isinstance(value, str)
        )
        for value, count in counts.items():
            if count > 1:
                why = f"{count} applications share it, which Serve refuses."
                remedy = "Give each application one of its own."
                yield Fault(f"{where}: applications[].{name}", value, why, remedy)


def _service(spec: dict[str, Any]) -> Iterator[Fault]:
    if not spec.get("excludeHeadPodFromServeSvc"):
        yield advice(
            "spec.excludeHeadPodFromServeSvc", spec.get("excludeHeadPodFromServeSvc"),
            "The head would take requests beside the cluster's state.", "Write true.",
        )  # fmt: skip
    if spec.get("rayClusterDeletionDelaySeconds") is None:
        yield advice(
            "spec.rayClusterDeletionDelaySeconds", None,
            "After an upgrade the old cluster goes after 60 s, with the answers that still stream.",
            "Write more seconds than the longest answer takes.",
        )  # fmt: skip
