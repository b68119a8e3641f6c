"""What Ray gets of a machine: its node group in the cluster spec, held against what is there, or options."""

from __future__ import annotations

import os

import psutil

from cluster.cluster_spec import ClusterSpec
from cluster.gpus import find
from cluster.node_groups import RAYS_SHARE, NodeGroup
from cluster.nvml import CardReading, read_cards
from runtime.core.errors import ConfigError

GROUP_LABEL = "tandem.dev/group"


def machine_options(
    num_cpus: int | None, num_gpus: int | None, group: str | None, cluster: ClusterSpec | None
) -> list[str]:
    """Options of ``ray start`` for what Ray hands out of this machine: its group's, or what was given.

    Raises:
        ConfigError: there is no such group, or the machine has less; or both were given.
    """
    given = [
        f"{option}={value}"
        for option, value in (("--num-cpus", num_cpus), ("--num-gpus", num_gpus))
        if value is not None
    ]
    if group is None:
        return given
    if given:
        raise ConfigError(f"--group says what this machine gives to Ray. Leave out: {', '.join(given)}.")
    found = find_group(cluster, group)
    check_group(found)
    return group_options(found)


def find_group(spec: ClusterSpec | None, name: str) -> NodeGroup:
    """The group of this name.

    Raises:
        ConfigError: there is none, or no cluster spec.
    """
    if spec is None:
        raise ConfigError(
            f"--group is {name!r}, but the head was started without a cluster spec. Leave --group out, or "
            "start the head with: tandem up --head CLUSTER.yaml."
        )
    found = next((group for group in spec.node_groups if group.name == name), None)
    if found is None:
        known = ", ".join(group.name for group in spec.node_groups)
        raise ConfigError(f"--group is {name!r}, which cluster {spec.name} does not have. It has: {known}.")
    return found


def check_group(group: NodeGroup) -> None:
    """Refuse a machine that has less than its group promises, or other GPUs; and a part of a CPU.

    Raises:
        ConfigError: names the field, what it promises and what is there.
    """
    if group.cpus < 1:
        raise ConfigError(
            f"node group {group.name!r} has cpus: {group.cpus:g}, but Ray hands out a whole number of a "
            "machine's CPUs, which would be 0 here. Write cpus: 1 or more, or name no --group and give "
            "--num-cpus."
        )
    cpus, memory_bytes = len(os.sched_getaffinity(0)), psutil.virtual_memory().total
    if group.cpus > cpus:
        raise _lacks(group, f"cpus: {group.cpus:g}", f"{cpus} CPUs")
    if group.memory > memory_bytes:
        raise _lacks(
            group, f"memory: {group.memory / 2**30:.1f} GiB", f"{memory_bytes / 2**30:.1f} GiB of memory"
        )
    cards = read_cards()
    if group.gpus and (group.gpus > len(cards) or not all(_is_of(group, card) for card in cards)):
        there = ", ".join(card.product for card in cards) or "no GPU"
        raise _lacks(group, f"gpus: {group.gpus} of {group.accelerator_type}", there)


def group_options(group: NodeGroup) -> list[str]:
    """Options of ``ray start`` for a machine of the group: what Ray hands out of it, and its labels."""
    labels = {GROUP_LABEL: group.name, **group.labels}
    return [
        f"--num-cpus={int(group.cpus)}",
        f"--num-gpus={group.gpus}",
        f"--memory={int(group.memory * RAYS_SHARE)}",
        "--labels=" + ",".join(f"{key}={value}" for key, value in labels.items()),
    ]


def _is_of(group: NodeGroup, card: CardReading) -> bool:
    there, wanted = find(card.product), group.product
    if there is None or wanted is None:
        return card.product == group.accelerator_type
    # Ray's A100 is every A100, with 40 GB or with 80.
    is_any_of_the_word = wanted != group.largest_product
    return there == wanted or (is_any_of_the_word and there.ray == wanted.ray)


def _lacks(group: NodeGroup, promised: str, there: str) -> ConfigError:
    return ConfigError(
        f"node group {group.name!r} promises {promised}, but this machine has {there}. Correct the group in "
        "the cluster spec, or name another one with --group."
    )
