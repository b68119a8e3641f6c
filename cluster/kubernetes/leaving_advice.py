"""Leaving time-slicing: what no step does, and somebody must know or do. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.kubernetes.keepers import Keeper, helm_command
from cluster.kubernetes.nodes_seen import PLUGIN_CONFIG_LABEL
from cluster.kubernetes.time_slicing import PluginSeen, Shared, on_gke

_OPERATOR_CHART, _PLUGIN_CHART = "nvidia/gpu-operator", "nvdp/nvidia-device-plugin"
"""With the names that NVIDIA's documentation gives its Helm repositories."""
_OPERATOR_VALUES = (
    "devicePlugin.config.create=false", "devicePlugin.config.name=", "devicePlugin.config.default=",
)  # fmt: skip
_PLUGIN_VALUES = ("config.name=", "config.default=", "config.map=null")


def advice(shared: Shared) -> list[str]:
    """What no step does, and somebody must know or do."""
    return [*_kept_elsewhere(shared), *_lost(shared), *_renamed(shared), *_not_ours(shared)]


def _kept_elsewhere(shared: Shared) -> Iterator[str]:
    """Tools that would write the old state back."""
    for policy in shared.policies:
        if policy.keeper and (policy.left or shared.shares(policy)):
            kept = _kept(policy.keeper, _OPERATOR_CHART, _OPERATOR_VALUES, policy.namespace)
            yield f"ClusterPolicy {policy.name} {kept}"
    for one in shared.config_maps:
        # Helm's own ConfigMap goes with the values of the release that has the policy, too.
        if one.keeper and one.keeper.tool != "Helm" and one.shares:
            yield f"ConfigMap {one.namespace}/{one.name} {_kept(one.keeper, '', (), one.namespace)}"


def _kept(keeper: Keeper, chart: str, values: tuple[str, ...], namespace: str | None) -> str:
    if keeper.tool != "Helm":
        return f"is managed by {keeper.tool}, which would put it back: change it in its repository, too."
    command = helm_command(keeper, chart=chart, values=values, namespace=namespace)
    return (
        f"is managed by Helm, whose next upgrade would put the config back. Change the values, too: {command}"
    )


def _lost(shared: Shared) -> Iterator[str]:
    for one in shared.config_maps:
        for key, words in one.also.items() if one.shares else ():
            yield (
                f"ConfigMap {one.namespace}/{one.name} also sets, under {key}: {', '.join(words)}. That "
                "goes with it; what you still need belongs into the ClusterPolicy (mig.strategy, "
                "devicePlugin.env)."
            )


def _renamed(shared: Shared) -> Iterator[str]:
    """Pods that ask for ``.shared`` resources, which no node offers afterwards."""
    for pod in shared.pods:
        if names := [name for name in pod.reserves if name.endswith(".shared")]:
            yield (
                f"{pod.controller or pod.name} in {pod.namespace} asks for {names[0]}, which no node offers "
                f"afterwards. Change it to {names[0].removesuffix('.shared')}: a whole GPU."
            )


def _not_ours(shared: Shared) -> Iterator[str]:
    """Sharing that comes from elsewhere than a ClusterPolicy."""
    if gke := on_gke(shared.nodes):
        yield (
            f"{', '.join(node.name for node in gke)}: GKE shares these GPUs by the setting of their node "
            "pool, which cannot be changed. Make a node pool without it, and delete the other."
        )
    plugins = [plugin for plugin in shared.plugins if plugin.config_maps]
    yield from map(_plugin_advice, plugins)
    if any(node.sharing for node in shared.nodes) and not (shared.to_leave or gke or plugins):
        yield (
            "Nodes share their GPUs, but no ClusterPolicy has a config that does. Look at the pods of the "
            "device plugin and of GPU feature discovery, and at the node image's own settings."
        )


def _plugin_advice(plugin: PluginSeen) -> str:
    keeper = plugin.keeper or Keeper("Helm")
    command = helm_command(keeper, chart=_PLUGIN_CHART, values=_PLUGIN_VALUES, namespace=plugin.namespace)
    unlabel = f"kubectl label nodes --all {PLUGIN_CONFIG_LABEL}-"
    return (
        f"DaemonSet {plugin.namespace}/{plugin.name} is NVIDIA's device plugin without the GPU operator, "
        f"with the ConfigMap {', '.join(plugin.config_maps)}. This command does not change it. If that "
        f"config shares GPUs: drain the nodes' GPU pods, then: {command}; {unlabel}"
    )
