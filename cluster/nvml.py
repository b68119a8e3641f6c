"""The GPUs of this machine, read through NVML: the one place that does."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.core.log import get_logger

_log = get_logger(__name__)
_RECORDED = "TANDEM_NVML_READING"


@dataclass(frozen=True)
class CardReading:
    """What NVML says of one GPU or MIG device now."""

    uuid: str
    product: str
    memory_bytes: int
    used_bytes: int
    used_by: dict[int, int]
    """Bytes by process id, as this machine numbers processes; only of those whose bytes NVML tells."""


def read_cards() -> list[CardReading]:
    """The GPUs that this process may see, in the order in which CUDA numbers them; none without a driver.

    A GPU in MIG mode is not a card, its devices are. With ``$TANDEM_NVML_READING`` that file, a reading
    recorded on another machine, stands in for NVML: how what follows from it is tested where there is no GPU.
    """
    recorded = os.environ.get(_RECORDED)
    if recorded:
        return _visible([_recorded(entry) for entry in json.loads(Path(recorded).read_text())])
    with _nvml() as nvml:
        if nvml is None:
            return []
        try:
            found = [card for index in range(nvml.nvmlDeviceGetCount()) for card in _cards_of(nvml, index)]
        except nvml.NVMLError as error:
            # All or none: the others' numbers would not be theirs without the one that is lost.
            _log.warning("NVML does not tell of this machine's GPUs: %s", error)
            return []
    return _visible(found)


def _recorded(entry: dict[str, object]) -> CardReading:
    used_by = entry["used_by"]
    assert isinstance(used_by, dict)
    return CardReading(**{**entry, "used_by": {int(pid): size for pid, size in used_by.items()}})  # type: ignore[arg-type]


@contextmanager
def _nvml() -> Iterator[Any]:
    """NVML's library; None where there is no driver."""
    # Here: the environments for engines on CPUs do not hold it, and import this file's data.
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _cards_of(nvml: Any, index: int) -> list[CardReading]:
    """The GPU, or where it is in MIG mode its devices."""
    gpu = nvml.nvmlDeviceGetHandleByIndex(index)
    try:
        is_mig = nvml.nvmlDeviceGetMigMode(gpu)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError:
        is_mig = False  # older than MIG
    if not is_mig:
        return [_reading(nvml, gpu)]
    found = []
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            found.append(_reading(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, number)))
        except nvml.NVMLError:
            continue  # fewer devices than there could be
    return found


def _reading(nvml: Any, handle: Any) -> CardReading:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return CardReading(
        uuid=nvml.nvmlDeviceGetUUID(handle),
        product=nvml.nvmlDeviceGetName(handle),
        memory_bytes=int(memory.total),
        used_bytes=int(memory.used),
        used_by=_used_by(nvml, handle),
    )


def _used_by(nvml: Any, handle: Any) -> dict[int, int]:
    try:
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:
        return {}  # not permitted, or not on this product
    return {one.pid: int(one.usedGpuMemory) for one in processes if one.usedGpuMemory is not None}


def _visible(cards: list[CardReading]) -> list[CardReading]:
    """Those of ``$CUDA_VISIBLE_DEVICES``, in its order: numbers or (beginnings of) UUIDs."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return cards
    found = []
    for word in (part.strip() for part in wanted.split(",")):
        if word.isdigit() and int(word) < len(cards):
            found.append(cards[int(word)])
        elif word:
            found += [card for card in cards if card.uuid.startswith(word)][:1]
    return found
