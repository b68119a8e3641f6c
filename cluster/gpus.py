"""The GPUs that exist: memory, bandwidth and FLOPs by product, whoever spells its name. Data: gpus.json."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

_GIB = 2**30

# What may stand beside a product's name without making it another product: the brand, the form, and
# Kubernetes' -SHARED of a GPU shared by time. ``Laptop``, ``Ti`` or ``SUPER`` do make it another.
_HARMLESS = re.compile(r"nvidia|tesla|geforce|blackwell|sxm\d?|pcie|hbm\d?e?|shared")
_SIZE = re.compile(r"(\d+)gb?")

_MIG_PROFILE = re.compile(r"(\d)g\.(\d+)gb([.+][a-z.+]+)?")
_MIG_MEMORY_SLICES: dict[int, dict[int, tuple[int, ...]]] = {
    # By the card's slices: slices of a profile to slices of the card's memory, of 8 and of 4.
    # Source: https://docs.nvidia.com/datacenter/tesla/mig-user-guide/supported-mig-profiles.html
    7: {1: (1, 2), 2: (2,), 3: (4,), 4: (4,), 7: (8,)},
    4: {1: (1,), 2: (2,), 4: (4,)},
}


@dataclass(frozen=True)
class Gpu:
    """What one GPU, or one MIG slice, has at best. FLOPs are dense: those with sparsity are twice these.

    Of a product that is not in the catalogue bandwidth and FLOPs are None: nobody knows.
    """

    name: str
    """Short: ``A100-SXM4-80GB``."""

    architecture: str
    nvml: str
    """As NVML, nvidia-smi and torch spell it: ``NVIDIA A100-SXM4-80GB``."""

    kubernetes: str
    """As the node's label ``nvidia.com/gpu.product`` has it: ``NVIDIA-A100-SXM4-80GB``."""

    ray: str
    """Ray's ``accelerator_type``: ``A100``. Several products may share it."""

    memory_bytes: int
    """The least, where products of one name in NVML differ; with ECC as the card is delivered."""

    memory_as: Literal["nvml", "nominal"]
    """Whether that is NVML's total, or what is printed on the box, of which the driver keeps some."""

    memory_bandwidth_bytes_per_s: float | None
    bf16_flops: float | None
    """Of the tensor cores; None before Ampere, which has no bfloat16."""

    fp16_flops: float | None
    """Of the tensor cores, summed in float32."""

    fp8_flops: float | None
    """Of the tensor cores, summed in float32; None before Ada and Hopper."""

    mig_slices: int
    """Into how many MIG cuts it: 7 or 4; 0 where it cannot, and of a slice."""

    source: str
    """Where the vendor says so."""

    note: str = ""
    """What the source does not say in so many words."""


@cache
def catalogue() -> tuple[Gpu, ...]:
    """Every product of gpus.json, one for each name in NVML; MIG slices are derived by ``find``."""
    return tuple(Gpu(**entry) for entry in json.loads(Path(__file__).with_name("gpus.json").read_text()))


def find(name: str, *, largest: bool = False) -> Gpu | None:
    """The GPU of this name, as NVML, Kubernetes or Ray spells it, or the short name; None where unknown.

    Capitals do not count, and spaces, hyphens and underscores are one. The longest name that stands in
    ``name`` counts (``NVIDIA H100 PCIe`` is no ``H100`` with SXM), and nothing beside it may speak of another
    product (``RTX 4090 Laptop GPU`` is no RTX 4090).

    Where several products answer, as to Ray's ``A100``, it is the one with the least memory, of those the one
    with the least bandwidth and FLOPs: what is promised of memory holds on all of them. With ``largest`` it
    is the one with the most. A size beside the name narrows that: ``A100 80GB``, or Ray's ``A100-80G``.

    With a MIG profile (``NVIDIA A100-SXM4-80GB MIG 3g.40gb``, in Kubernetes ``-MIG-3g.40gb``) it is the
    slice: 3/7 of the card's FLOPs, and of its bandwidth four slices of the memory's eight. The memory is the
    profile's in GB of 10^9 bytes, since the name is rounded up and the driver keeps some: an H200's 1g.18gb
    has 16 GiB in NVML, a twentieth less; others have more. None where the card has no such profile.
    """
    words = _words(name)
    if "mig" in words:
        at = words.index("mig")
        card = _find(words[:at], largest)
        return _slice(card, words[at + 1]) if card and at + 1 < len(words) else None
    return _find(words, largest)


def _find(words: Sequence[str], largest: bool) -> Gpu | None:
    fits = [
        (len(" ".join(spelling)), gpu, beside)
        for spelling, gpu in _spellings()
        if (beside := _beside(spelling, words)) is not None
    ]
    longest = max((length for length, _, _ in fits), default=0)
    gpus = [gpu for length, gpu, _ in fits if length == longest]
    sizes = {
        int(size[1])
        for length, _, beside in fits
        for word in beside
        if length == longest and (size := _SIZE.fullmatch(word))
    }
    if sizes:
        gpus = [gpu for gpu in gpus if gpu.memory_bytes <= min(sizes) * _GIB]
        most = max((gpu.memory_bytes for gpu in gpus), default=0)
        gpus = [gpu for gpu in gpus if gpu.memory_bytes == most]
    return (max if largest else min)(
        gpus,
        key=lambda gpu: (gpu.memory_bytes, gpu.memory_bandwidth_bytes_per_s or 0, gpu.fp16_flops or 0),
        default=None,
    )


def _beside(spelling: Sequence[str], words: Sequence[str]) -> tuple[str, ...] | None:
    """The words around a spelling; None where it does not stand in them, or they are of another product."""
    for at in range(len(words) - len(spelling) + 1):
        if tuple(words[at : at + len(spelling)]) == tuple(spelling):
            beside = (*words[:at], *words[at + len(spelling) :])
            if all(_HARMLESS.fullmatch(word) or _SIZE.fullmatch(word) for word in beside):
                return beside
    return None


@cache
def _spellings() -> tuple[tuple[tuple[str, ...], Gpu], ...]:
    """Every name of every product, in words; Kubernetes' has the same words as NVML's."""
    return tuple(
        (words, gpu)
        for gpu in catalogue()
        for words in {
            _words(gpu.nvml), _words(gpu.nvml.removeprefix("NVIDIA ")), _words(gpu.name), _words(gpu.ray),
        }
    )  # fmt: skip


def _words(name: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[^\s_-]+", name.lower()))


def _slice(card: Gpu, profile: str) -> Gpu | None:
    """The MIG slice of a card; None where the card has no such profile."""
    found = _MIG_PROFILE.fullmatch(profile)
    if not found or not card.mig_slices:
        return None
    slices, size = int(found[1]), int(found[2])
    memory_slices = _MIG_MEMORY_SLICES[card.mig_slices]
    of = max(max(counts) for counts in memory_slices.values())
    # Profiles are named by the card's GiB: an eighth of an H200's 140.4 is 1g.18gb.
    held = round(size / (card.memory_bytes / _GIB) * of)
    if held not in memory_slices.get(slices, ()):
        return None
    share = slices / card.mig_slices
    return replace(
        card,
        name=f"{card.name}-MIG-{profile}",
        nvml=f"{card.nvml} MIG {profile}",
        kubernetes=f"{card.kubernetes}-MIG-{profile}",
        memory_bytes=size * 10**9,
        memory_as="nominal",
        memory_bandwidth_bytes_per_s=_part(card.memory_bandwidth_bytes_per_s, held / of),
        bf16_flops=_part(card.bf16_flops, share),
        fp16_flops=_part(card.fp16_flops, share),
        fp8_flops=_part(card.fp8_flops, share),
        mig_slices=0,
    )


def _part(of: float | None, share: float) -> float | None:
    return None if of is None else of * share
