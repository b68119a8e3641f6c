"""Where the bytes of a process go: terms that add up, each with what it is made of and its source."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

On = Literal["device", "host", "disk"]
Phase = Literal["loading", "forward", "backward", "step", "evaluation"]
PHASES: tuple[Phase, ...] = ("loading", "forward", "backward", "step", "evaluation")
"""Loading the model; of a training step the end of the forward pass, where all activations are there, the end
of the backward pass, where all gradients are, and the optimizer's step; and a batch of an evaluation."""
TRAINING: tuple[Phase, ...] = ("forward", "backward", "step")
ONCE_TRAINING: tuple[Phase, ...] = (*TRAINING, "evaluation")
IN_PASSES: tuple[Phase, ...] = ("forward", "backward")
FROM_BACKWARD: tuple[Phase, ...] = ("backward", "step")


@dataclass(frozen=True)
class Term:
    """One kind of bytes."""

    name: str
    size_bytes: int
    formula: str
    """In words and figures: ``8 B x 1,000 trained / 2 workers``."""

    source: str = ""
    """Where the formula comes from: a paper, a function of the engine, a measurement."""

    on: On = "device"
    """The GPU, which on a machine without one is the machine's memory; its host's memory; or its host's
    disk."""

    phases: tuple[Phase, ...] = PHASES
    """When it is there."""


@dataclass(frozen=True)
class Estimate:
    """What one process needs at its peak."""

    terms: tuple[Term, ...]

    @classmethod
    def of(cls, terms: Iterable[Term]) -> Estimate:
        """The terms that are not nothing."""
        return cls(tuple(term for term in terms if term.size_bytes > 0))

    @property
    def peak(self) -> Phase:
        """The phase in which the device holds most."""
        return max(PHASES, key=lambda phase: self._bytes_in(phase, "device"))

    @property
    def device_bytes(self) -> int:
        """On one GPU, at the peak."""
        return self._bytes_in(self.peak, "device")

    @property
    def host_bytes(self) -> int:
        """In the memory of the host at its own peak, for this one process, beside what is on a GPU."""
        return max(self._bytes_in(phase, "host") for phase in PHASES)

    @property
    def at_peak(self) -> list[Term]:
        """The device's terms at the peak, largest first."""
        there = (term for term in self.terms if term.on == "device" and self.peak in term.phases)
        return sorted(there, key=lambda term: -term.size_bytes)

    @property
    def on_host(self) -> list[Term]:
        """The host's terms, largest first."""
        return sorted((term for term in self.terms if term.on == "host"), key=lambda term: -term.size_bytes)

    @property
    def on_disk(self) -> list[Term]:
        """What is offloaded to the host's disk, largest first."""
        return sorted((term for term in self.terms if term.on == "disk"), key=lambda term: -term.size_bytes)

    def on_one_memory(self) -> Estimate:
        """The same where device and host are one memory: a machine without GPUs."""
        moved = (replace(term, on="device") if term.on == "host" else term for term in self.terms)
        return Estimate(tuple(moved))

    def _bytes_in(self, phase: Phase, on: On) -> int:
        return sum(term.size_bytes for term in self.terms if term.on == on and phase in term.phases)
