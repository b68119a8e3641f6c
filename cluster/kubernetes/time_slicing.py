"""Time-slicing (and MPS) as it stands on a cluster: policies, ConfigMaps, nodes, pods on replicas. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from cluster.kubernetes.keepers import Keeper, keeper
from cluster.kubernetes.nodes_seen import GKE_STRATEGY_LABEL, PLUGIN_CONFIG_LABEL, NodeSeen
from cluster.kubernetes.pods_seen import controller, gpus_reserved, has_ended, node_of, stays_on_its_node
from cluster.kubernetes.workloads import Manifest

CORDONED_BY_US = "tandem.dev/cordoned-for-time-slicing"
"""Annotation of nodes that we cordoned: only these are uncordoned again, by this run or a later one."""
CONFIG_LEFT = "tandem.dev/time-slicing-config-map"
"""Annotation of a ClusterPolicy whose config was cleared: the ConfigMap that is still to be deleted."""
PLUGIN_IMAGE = "k8s-device-plugin"
_OPERATOR_APP = "nvidia-device-plugin-daemonset"


@dataclass(frozen=True)
class ConfigMapSeen:
    """A ConfigMap with configs of the device plugin."""

    namespace: str
    name: str
    shares: Mapping[str, str]
    """By key, what a config shares: ``nvidia.com/gpu into 4 by time-slicing``."""

    also: Mapping[str, tuple[str, ...]]
    """By key, what a config sets besides; it is lost with the ConfigMap."""

    keeper: Keeper | None


@dataclass(frozen=True)
class PolicySeen:
    """A ClusterPolicy of NVIDIA's GPU operator."""

    name: str
    config: str | None
    """The ConfigMap's name in ``spec.devicePlugin.config``; None where no config is set."""

    default: str | None
    """The config of nodes without a label; None: nodes without a label are not shared."""

    left: str | None
    """``namespace/name`` of a ConfigMap that an interrupted run still had to delete."""

    namespace: str | None
    """The operator's, in which the ConfigMap lies."""

    keeper: Keeper | None


@dataclass(frozen=True)
class PodOnReplica:
    """A pod that holds replicas of a shared GPU."""

    namespace: str
    name: str
    uid: str
    node: str
    reserves: Mapping[str, int]
    """By resource: ``{"nvidia.com/gpu": 1}``, of which each is a replica."""

    controller: str | None
    """Who makes it anew, ``ReplicaSet/web-5d9``; None: once evicted it is gone."""

    labels: Mapping[str, str]


@dataclass(frozen=True)
class PluginSeen:
    """NVIDIA's device plugin installed without the GPU operator."""

    namespace: str
    name: str
    config_maps: tuple[str, ...]
    """Those that it mounts."""

    keeper: Keeper | None


@dataclass(frozen=True)
class Shared:
    """All that is there of time-slicing and MPS."""

    policies: tuple[PolicySeen, ...]
    config_maps: tuple[ConfigMapSeen, ...]
    nodes: tuple[NodeSeen, ...]
    """Nodes that are shared, carry a config label, or were cordoned by us."""

    pods: tuple[PodOnReplica, ...]
    plugins: tuple[PluginSeen, ...]

    def config_map(self, policy: PolicySeen) -> ConfigMapSeen | None:
        """The ConfigMap that a policy's config names; None where it does not exist."""
        wanted = (policy.namespace, policy.config)
        return next((one for one in self.config_maps if (one.namespace, one.name) == wanted), None)

    def place_of(self, policy: PolicySeen) -> str | None:
        """``namespace/name`` of that ConfigMap; None where it does not exist."""
        found = self.config_map(policy)
        return f"{found.namespace}/{found.name}" if found else None

    @property
    def to_leave(self) -> bool:
        """Whether a policy's config is to be left, or a run that left one was interrupted."""
        return any(policy.left or self.shares(policy) for policy in self.policies)

    def shares(self, policy: PolicySeen) -> bool:
        """Whether a policy's config is to be left: it shares, or points to a ConfigMap that is not there."""
        if not policy.config:
            return False
        found = self.config_map(policy)
        return found is None or bool(found.shares)


def policy_seen(manifest: Manifest, plugin_namespace: str | None) -> PolicySeen:
    """What a ClusterPolicy says of the device plugin's config.

    Args:
        plugin_namespace: Where the operator's device plugin runs, for policies whose status names none.
    """
    config = ((manifest.get("spec") or {}).get("devicePlugin") or {}).get("config") or {}
    meta = manifest["metadata"]
    return PolicySeen(
        name=meta["name"],
        config=config.get("name") or None,
        default=config.get("default") or None,
        left=(meta.get("annotations") or {}).get(CONFIG_LEFT),
        namespace=(manifest.get("status") or {}).get("namespace") or plugin_namespace,
        keeper=keeper(manifest),
    )


def config_map_seen(manifest: Manifest) -> ConfigMapSeen:
    """What the configs in a ConfigMap share, and what else they set."""
    configs = {key: _config(text) for key, text in (manifest.get("data") or {}).items()}
    return ConfigMapSeen(
        namespace=manifest["metadata"]["namespace"],
        name=manifest["metadata"]["name"],
        shares={key: text for key, config in configs.items() if (text := _shared_text(config))},
        also={key: tuple(sorted(_also(config))) for key, config in configs.items() if _also(config)},
        keeper=keeper(manifest),
    )


def nodes_concerned(nodes: Iterable[NodeSeen]) -> tuple[NodeSeen, ...]:
    """Nodes that are shared, carry a label that names a config, or that we cordoned."""
    return tuple(
        node
        for node in nodes
        if node.sharing or PLUGIN_CONFIG_LABEL in node.labels or CORDONED_BY_US in node.annotations
    )


def pods_on_replicas(pods: Iterable[Manifest], nodes: Iterable[NodeSeen]) -> tuple[PodOnReplica, ...]:
    """Pods on shared nodes that hold GPUs; a DaemonSet's and the kubelet's own are left where they are."""
    shared = {node.name for node in nodes if node.sharing}
    return tuple(
        PodOnReplica(
            namespace=pod["metadata"]["namespace"],
            name=pod["metadata"]["name"],
            uid=pod["metadata"].get("uid", ""),
            node=str(node_of(pod)),
            reserves=gpus_reserved(pod),
            controller=controller(pod),
            labels=pod["metadata"].get("labels") or {},
        )
        for pod in pods
        if node_of(pod) in shared and gpus_reserved(pod) and not has_ended(pod) and not stays_on_its_node(pod)
    )


def plugins_seen(daemonsets: Iterable[Manifest]) -> tuple[PluginSeen, ...]:
    """Device plugins that no GPU operator manages."""
    return tuple(
        PluginSeen(
            namespace=one["metadata"]["namespace"],
            name=one["metadata"]["name"],
            config_maps=tuple(
                volume["configMap"]["name"]
                for volume in _pod_spec(one).get("volumes") or []
                if "configMap" in volume
            ),
            keeper=keeper(one),
        )
        for one in daemonsets
        if is_device_plugin(one) and not _of_operator(one)
    )


def operators_plugin_namespace(daemonsets: Iterable[Manifest]) -> str | None:
    """Where the GPU operator's own device plugin runs; None where there is none."""
    return next((one["metadata"]["namespace"] for one in daemonsets if _of_operator(one)), None)


def is_device_plugin(daemonset: Manifest) -> bool:
    """Whether a DaemonSet runs NVIDIA's device plugin, whatever it is called."""
    return any(PLUGIN_IMAGE in one.get("image", "") for one in _pod_spec(daemonset).get("containers") or [])


def on_gke(nodes: Sequence[NodeSeen]) -> list[NodeSeen]:
    """Nodes whose sharing GKE's node pool decides: no ClusterPolicy or label turns it off."""
    return [node for node in nodes if GKE_STRATEGY_LABEL in node.labels]


def _of_operator(daemonset: Manifest) -> bool:
    labels = daemonset["metadata"].get("labels") or {}
    owners = daemonset["metadata"].get("ownerReferences") or []
    return labels.get("app") == _OPERATOR_APP or any(one.get("kind") == "ClusterPolicy" for one in owners)


def _pod_spec(workload: Manifest) -> Mapping[str, Any]:
    return ((workload.get("spec") or {}).get("template") or {}).get("spec") or {}


def _config(text: str) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        # Then the device plugin cannot read it either.
        return {}
    return found if isinstance(found, Mapping) else {}


def _shared_text(config: Mapping[str, Any]) -> str:
    sharing = config.get("sharing") or {}
    return ", ".join(
        f"{one.get('name', 'nvidia.com/gpu')} into {one['replicas']} by {how}"
        for kind, how in (("timeSlicing", "time-slicing"), ("mps", "MPS"))
        for one in (sharing.get(kind) or {}).get("resources") or []
        if isinstance(one.get("replicas"), int) and one["replicas"] > 1
    )


def _also(config: Mapping[str, Any]) -> list[str]:
    """What a config sets besides sharing, where that says anything."""
    flags = config.get("flags") or {}
    said = [
        f"flags.{name}={value}" for name, value in flags.items() if value not in (None, "none", {}, False)
    ]
    return said + [name for name in config if name not in ("version", "sharing", "flags") and config[name]]
