"""Why a worker gave up: each kind of fault is a class, and says whether another attempt could do better.

Ray Train hands an exception to the driver as text. The class's name in it is what the driver decides by.
"""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from runtime.core.errors import ConfigError, Conflict, Denied, NoSpace, StorageError, Unreachable


class Fault(Exception):
    """Base of all. ``retry``: whether the run goes on by itself from its last checkpoint."""

    retry = False


class RecipeFault(Fault):
    """An error of LLaMA-Factory, DeepSpeed or the recipe: it would come again."""


class OutOfMemory(Fault):
    """The recipe needs more memory than the worker has."""


class NanLoss(Fault):
    """The loss is no number any more."""


class BadData(Fault):
    """A row or file of a dataset cannot be read as the recipe wants it."""


class DiskFull(Fault):
    """No room for a checkpoint or the model, on this node or in the store."""


class Superseded(Fault):
    """Another driver has taken up this run."""


class PeerLost(Fault):
    """Another worker is gone, and this one noticed in the middle of a collective."""

    retry = True


class Unavailable(Fault):
    """The store did not answer, or the hardware failed."""

    retry = True


KINDS: dict[str, type[Fault]] = {
    kind.__name__: kind
    for kind in (
        RecipeFault, OutOfMemory, NanLoss, BadData, DiskFull, Superseded, PeerLost, Unavailable
    )
}  # fmt: skip

# torch and its allocators tell these apart by text only.
_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|bad_alloc|_ALLOC_FAILED|MemoryAllocation",
    re.I,
)
_NO_ROOM = re.compile(r"no space left|disk quota exceeded|StorageFull|file write failed|unexpected pos", re.I)
_PEER = re.compile(
    r"connection (closed|reset) by peer|connection refused|\bgloo\b|\[c10d\]|ProcessGroup|socket timeout"
    r"|timed out waiting",
    re.I,
)
_HARDWARE = re.compile(r"\bNCCL\b|CUDA error|uncorrectable ECC|cudaError", re.I)
# Faults of the recipe that look like hardware: a token beyond the vocabulary, two workers on one GPU.
_ASKED_FOR = re.compile(r"device-side assert|Duplicate GPU|invalid usage", re.I)
# What the datasets library raises around the error that says something.
_WRAPPERS = ("DatasetGenerationError", "RemoteError", "DatasetGenerationCastError")
_ROW_CHARACTERS = 300
_READS_DATA = ("/llamafactory/data/", "/datasets/")


def classified(error: BaseException) -> Fault:
    """The kind of fault that ``error`` is, with a message that says why in one line."""
    if isinstance(error, Fault):
        return error
    found = _classified(error)
    # The driver sees the last line of a traceback.
    return type(found)(" ".join(line.strip() for line in str(found).splitlines() if line.strip()))


def _classified(error: BaseException) -> Fault:
    chain = list(_chain(error))
    told = next((one for one in chain if type(one).__name__ not in _WRAPPERS), error)
    text = f"{type(told).__name__}: {_first_line(told)}"
    whole = "\n".join(f"{type(one).__name__}: {one}" for one in chain)
    if any(isinstance(one, MemoryError) for one in chain) or _NO_MEMORY.search(whole):
        return OutOfMemory(
            f"out of memory: {_first_line(told).rstrip('.')}. Lower per_device_train_batch_size (and "
            "raise gradient_accumulation_steps), cutoff_len or lora_rank, or shard more: deepspeed "
            "zero2, zero3 or their -offload. Or give it a larger share (scaling.gpus_per_worker, "
            "scaling.memory_bytes_per_worker); what fits is told by: tandem plan."
        )
    if any(_no_room(one) for one in chain) or _NO_ROOM.search(whole):
        return DiskFull(
            f"disk full: {_first_line(told).rstrip('.')}. The last checkpoint stands; make room "
            "and resume the run."
        )
    if isinstance(told, Unreachable):
        return Unavailable(str(told))
    if isinstance(told, StorageError | ConfigError):
        return RecipeFault(_first_line(told) if isinstance(told, Denied | Conflict) else str(told))
    if _ASKED_FOR.search(whole):
        return RecipeFault(text)
    # Before hardware: a peer that went away is seen through NCCL, too.
    if _PEER.search(whole):
        return PeerLost(text)
    if _HARDWARE.search(whole):
        return Unavailable(text)
    if _while_reading_data(chain):
        return BadData(f"bad data: {text}{_row(chain)}")
    return RecipeFault(text)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, outermost first."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def _no_room(error: BaseException) -> bool:
    return isinstance(error, NoSpace) or (
        isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    )


def _while_reading_data(chain: list[BaseException]) -> bool:
    frames = [frame.filename for one in chain for frame in traceback.extract_tb(one.__traceback__)]
    return any(part in name for name in frames for part in _READS_DATA)


def _row(chain: list[BaseException]) -> str:
    """Which row it was: LLaMA-Factory's functions over rows were at it, and their variables still hold it."""
    for one in chain:
        for frame, _ in traceback.walk_tb(one.__traceback__):
            if "/llamafactory/data/" not in frame.f_code.co_filename:
                continue
            found = frame.f_locals
            if isinstance(found.get("examples"), Mapping) and isinstance(found.get("i"), int):
                row = {name: column[found["i"]] for name, column in found["examples"].items() if column}
                return f" The row: {_shown(row)}"
            if isinstance(found.get("example"), Mapping):
                return f" The row: {_shown(found['example'])}"
    return ""


def _shown(row: Mapping[str, Any]) -> str:
    """The row's beginning, without what is empty."""
    text = str({name.removeprefix("_"): value for name, value in row.items() if value})
    return text if len(text) <= _ROW_CHARACTERS else f"{text[:_ROW_CHARACTERS]}..."


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "(no message)"
