"""The memory that one worker has: a share of a GPU, or of a machine's own memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cluster.estimator.advice import Way
from cluster.estimator.calibration import Calibration, calibration
from cluster.estimator.hardware import usable_bytes
from cluster.estimator.words import gib
from cluster.gpus import Gpu, find
from cluster.inventory import Card, Inventory, Node


@dataclass(frozen=True)
class Device:
    """What one worker computes on."""

    gpu: Gpu | None
    """None: no GPU."""

    share: float
    """Of the GPU; 1 without one."""

    available_bytes: int | None
    """What the worker may take; None where the machine is not known."""

    @property
    def name(self) -> str:
        """For people: ``0.5 of NVIDIA L4``, ``CPU``."""
        if self.gpu is None:
            return "CPU"
        return self.gpu.nvml if self.share == 1 else f"{self.share:g} of {self.gpu.nvml}"

    @property
    def calibration(self) -> Calibration:
        """What was measured on it."""
        return calibration(self.gpu.nvml if self.gpu else None)

    def short_bytes(self, needed_bytes: int) -> int:
        """How much is missing; 0 where it fits or the machine is not known."""
        return 0 if self.available_bytes is None else max(0, needed_bytes - self.available_bytes)

    def verdict(self, needed_bytes: int) -> str:
        """In words: whether so many bytes fit."""
        if self.available_bytes is None:
            return f"needs {gib(needed_bytes)}"
        short = self.short_bytes(needed_bytes)
        of = f"{gib(needed_bytes)} of {gib(self.available_bytes)} ({self.name})"
        return f"does not fit by {gib(short)}: {of}" if short else f"fits: {of}"


def share_of(gpu: Gpu, share: float = 1.0) -> Device:
    """A share of one GPU."""
    return Device(gpu, share, int(share * usable_bytes(gpu)))


def card_share(
    inventory: Inventory, accelerator_type: str | None, share: float, *, cards: int | None = None
) -> Device | None:
    """A share of one card of a cluster, of the smallest that it may be.

    Where NVML was read the card is known. Else several products may answer to Ray's word for it, and the
    largest of them counts: the ledger reads NVML, and decides; to be refused before is only what none holds.

    Args:
        accelerator_type: Ray's word for the product; None: any that the cluster has.
        cards: So many are wanted, and only cards that are large enough will be taken: the smallest of the so
            many largest counts. None: whoever takes them looks at their number only.

    Returns:
        None where nobody knows a card's memory: of a product that is not in the catalogue, before NVML was
        read. Nothing can be said then.
    """
    wanted = [
        node
        for node in inventory.nodes
        if node.cards and node.accelerator_type and accelerator_type in (None, node.accelerator_type)
    ]
    known = [_card_of(node, card) for node in wanted for card in node.cards]
    found = sorted((gpu for gpu in known if gpu), key=lambda gpu: -gpu.memory_bytes)
    if not found or None in known:
        return None
    return share_of(found[-1 if cards is None else min(cards, len(found)) - 1], share)


def _card_of(node: Node, card: Card) -> Gpu | None:
    name = card.product or str(node.accelerator_type)
    gpu = find(name, largest=True)
    if gpu is not None:
        # A cluster file may say another size than the catalogue, and so may NVML.
        return replace(gpu, memory_bytes=card.memory_bytes or gpu.memory_bytes)
    if card.memory_bytes is None:
        return None
    return Gpu(
        name=name,
        architecture="",
        nvml=name,
        kubernetes="",
        ray=str(node.accelerator_type),
        memory_bytes=card.memory_bytes,
        memory_as="nvml",
        memory_bandwidth_bytes_per_s=None,
        bf16_flops=None,
        fp16_flops=None,
        fp8_flops=None,
        mig_slices=0,
        source="",
    )


def host_memory(available_bytes: int | None) -> Device:
    """A machine's own memory, as much as one worker may take of it; None where that is not known."""
    return Device(None, 1.0, available_bytes)


def larger_share(device: Device, needed_bytes: int, words: str, usable: float = 1.0) -> list[Way]:
    """The whole card, where a fraction is too little and all of it enough; the cheapest change of all.

    Args:
        words: In the spec's own field.
        usable: Of a whole card.
    """
    if device.gpu is None or device.share == 1 or needed_bytes > usable * usable_bytes(device.gpu):
        return []
    return [Way((words,), needed_bytes)]
