"""All lints, of one object: what its schema cannot say."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cluster.kubernetes.faults import Fault
from cluster.kubernetes.lints import (
    around,
    doors,
    names,
    pods,
    queues,
    ray_pods,
    rayclusters,
    rayjobs,
    rayservices,
    resources,
)
from cluster.kubernetes.workloads import Manifest

_LINTS: tuple[Callable[[Manifest], Iterator[Fault]], ...] = (
    names.lint,
    rayclusters.lint,
    rayjobs.lint,
    rayservices.lint,
    queues.lint,
    pods.lint,
    resources.lint,
    ray_pods.lint,
    around.lint,
    doors.lint,
)


def lint(manifest: Manifest) -> list[Fault]:
    """What only the operator or the creation of pods would refuse, and advice.

    A manifest of any shape will do: what is of a wrong type counts as not there.
    """
    return [fault for look in _LINTS for fault in look(manifest)]
