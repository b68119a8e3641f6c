"""The memory of one worker or replica, as a plan says it."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.estimator.advice import Way
from cluster.estimator.device import Device
from cluster.estimator.terms import Estimate
from cluster.estimator.words import gib
from runtime.core.config import ConfigModel


class PlannedMemory(ConfigModel):
    """What each worker is estimated to need, and what it has."""

    needed_bytes: int
    """On its GPU, or without one in the node's memory."""

    least_bytes: int | None = None
    """With which it starts; None: with ``needed_bytes``. An engine's KV cache takes what there is."""

    host_bytes: int = 0
    """In the node's memory, beside what is on the GPU."""

    available_bytes: int | None = None
    """Its share of the card or of the node's memory; None where that is not known."""

    device: str
    """What that is a share of."""

    terms: dict[str, int]
    """Where the needed bytes go, at their peak."""

    @property
    def on_card(self) -> int:
        """What a card must have free for it."""
        return self.needed_bytes if self.least_bytes is None else self.least_bytes


def planned_memory(
    estimate: Estimate, device: Device, *, more: dict[str, int] | None = None
) -> PlannedMemory:
    """As a plan says it.

    Args:
        more: Terms beside those of the estimate, such as the KV cache.
    """
    terms = {term.name: term.size_bytes for term in estimate.at_peak} | (more or {})
    return PlannedMemory(
        needed_bytes=sum(terms.values()),
        host_bytes=estimate.host_bytes,
        available_bytes=device.available_bytes,
        device=device.name,
        terms=terms,
    )


def fault(who: str, needed_bytes: int, device: Device, ways: Sequence[Way]) -> str:
    """Why it is refused, by how much, and what would make it fit."""
    if ways:
        advice = f"It fits with {'; or with '.join(str(way) for way in ways)}."
    elif device.gpu is None:
        advice = (
            "Give it more memory, where its node has more (resources.memory_bytes of an app, "
            "scaling.memory_bytes_per_worker of a training), or choose a smaller model."
        )
    else:
        advice = "No change that was tried makes it fit: choose a larger GPU or a smaller model."
    return (
        f"memory: {who} needs {gib(needed_bytes)} and has {gib(device.available_bytes or 0)} "
        f"({device.name}): it does not fit by {gib(device.short_bytes(needed_bytes))}. {advice} Where the "
        "bytes go: tandem plan. An estimate that you know to be wrong is passed over with memory_check: warn."
    )
