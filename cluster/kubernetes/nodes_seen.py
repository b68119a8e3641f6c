"""A node as Kubernetes tells of it: its GPUs, their product, whether they are shared, its taints. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cluster.kubernetes.workloads import Manifest

PRODUCT_LABEL = "nvidia.com/gpu.product"
STRATEGY_LABEL = "nvidia.com/gpu.sharing-strategy"
PLUGIN_CONFIG_LABEL = "nvidia.com/device-plugin.config"
GKE_STRATEGY_LABEL = "cloud.google.com/gke-gpu-sharing-strategy"
GKE_PRODUCT_LABEL = "cloud.google.com/gke-accelerator"

_SHARED = "-SHARED"
"""What GPU feature discovery writes behind a product whose GPUs are shared under their own name."""
_GPU_RESOURCE = re.compile(r"nvidia\.com/(gpu|mig-[a-z0-9.]+?)(\.shared)?")
_COUNT_LABEL = re.compile(r"(nvidia\.com/(?:gpu|mig-[a-z0-9.]+))\.count")
_REPLICAS_LABEL = re.compile(r"(nvidia\.com/(?:gpu|mig-[a-z0-9.]+))\.replicas")
_UNSCHEDULABLE = "node.kubernetes.io/unschedulable"
_SHARING = {"time-slicing": "time-slicing", "time-sharing": "time-slicing", "mps": "MPS"}
"""NVIDIA's and GKE's words for one thing."""


@dataclass(frozen=True)
class NodeSeen:
    """One node; every property is read from the object as it is."""

    manifest: Manifest

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.manifest["metadata"]["name"])

    @property
    def labels(self) -> Mapping[str, str]:
        """Its labels."""
        return self.manifest["metadata"].get("labels") or {}

    @property
    def annotations(self) -> Mapping[str, str]:
        """Its annotations."""
        return self.manifest["metadata"].get("annotations") or {}

    @property
    def cordoned(self) -> bool:
        """Whether new pods are kept off it."""
        return bool((self.manifest.get("spec") or {}).get("unschedulable"))

    @property
    def ready(self) -> bool:
        """Whether its kubelet says so."""
        conditions = (self.manifest.get("status") or {}).get("conditions") or []
        return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

    @property
    def taints(self) -> Sequence[Mapping[str, str]]:
        """Those that keep pods off, but for a cordon's own."""
        found = (self.manifest.get("spec") or {}).get("taints") or []
        keep_off = ("NoSchedule", "NoExecute")
        return [one for one in found if one["key"] != _UNSCHEDULABLE and one.get("effect") in keep_off]

    @cached_property
    def allocatable(self) -> Mapping[str, float]:
        """What pods may have of it in all: CPUs, bytes, devices."""
        found = (self.manifest.get("status") or {}).get("allocatable") or {}
        return {name: number(quantity) for name, quantity in found.items()}

    @property
    def gpus(self) -> dict[str, int]:
        """GPUs and MIG devices that it offers, by resource; replicas count as many where they are shared."""
        return {
            name: int(count)
            for name, count in self.allocatable.items()
            if count and _GPU_RESOURCE.fullmatch(name)
        }

    @property
    def product(self) -> str | None:
        """The GPU product as its label has it, without the mark of sharing."""
        label = self.labels.get(PRODUCT_LABEL)
        return label.removesuffix(_SHARED) if label else None

    @property
    def physical(self) -> dict[str, int]:
        """Devices that are really there, by resource; empty where GPU feature discovery does not run."""
        return _numbers(self.labels, _COUNT_LABEL)

    @property
    def replicas(self) -> int | None:
        """Into how many replicas the most divided device is cut; None where no label says so."""
        gke = self.labels.get("cloud.google.com/gke-max-shared-clients-per-gpu", "")
        counts = [*_numbers(self.labels, _REPLICAS_LABEL).values(), *([int(gke)] if gke.isdigit() else [])]
        return max((count for count in counts if count > 1), default=None)

    @property
    def sharing(self) -> str | None:
        """``time-slicing`` or ``MPS`` where one GPU is offered as several; None where devices are whole."""
        for label in (STRATEGY_LABEL, GKE_STRATEGY_LABEL):
            if found := _SHARING.get(self.labels.get(label, "")):
                return found
        return "time-slicing" if self.sharing_signs else None

    @property
    def sharing_signs(self) -> list[str]:
        """What on the node says that its devices are shared, as ``label=value``."""
        labels = [f"{key}={value}" for key, value in sorted(self.labels.items()) if _says_shared(key, value)]
        return labels + [f"allocatable {name}: {n}" for name, n in self.gpus.items() if ".shared" in name]

    @property
    def whole_devices(self) -> dict[str, int]:
        """What it offers once nothing is shared, by resource; empty where the labels do not say."""
        # With mixed MIG the count of nvidia.com/gpu has the divided cards too, which it does not offer.
        mixed = any(name.startswith("nvidia.com/mig-") for name in self.gpus)
        return {name: n for name, n in self.physical.items() if not (mixed and name == "nvidia.com/gpu")}

    @property
    def whole(self) -> bool:
        """Whether it offers each device once: no sign of sharing, and as many as are there."""
        offered = self.gpus
        return not self.sharing_signs and all(
            offered.get(name, 0) == n for name, n in self.whole_devices.items()
        )


def number(quantity: str | float) -> float:
    """A Kubernetes quantity as a number: ``250m`` is 0.25, ``2Gi`` is 2147483648."""
    from kubernetes.utils.quantity import parse_quantity

    return float(parse_quantity(quantity))  # type: ignore[no-untyped-call]


def tolerated(taint: Mapping[str, str], tolerations: Sequence[Mapping[str, str]]) -> bool:
    """Whether one of a pod's tolerations puts up with the taint."""
    return any(
        one["key"] == taint["key"]
        and one.get("effect") in (None, taint.get("effect"))
        and (one.get("operator") == "Exists" or one.get("value", "") == taint.get("value", ""))
        for one in tolerations
    )


def taint_text(taint: Mapping[str, str]) -> str:
    """A taint as kubectl writes it: ``key=value:effect``."""
    value = f"={taint['value']}" if taint.get("value") else ""
    return f"{taint['key']}{value}:{taint['effect']}"


def _says_shared(key: str, value: str) -> bool:
    if key in (STRATEGY_LABEL, GKE_STRATEGY_LABEL):
        return value in _SHARING
    if key.startswith("nvidia.com/") and key.endswith(".product"):
        return value.endswith(_SHARED)
    return bool(_REPLICAS_LABEL.fullmatch(key)) and value.isdigit() and int(value) > 1


def _numbers(labels: Mapping[str, Any], pattern: re.Pattern[str]) -> dict[str, int]:
    return {
        found[1]: int(value)
        for key, value in labels.items()
        if (found := pattern.fullmatch(key)) and str(value).isdigit()
    }
