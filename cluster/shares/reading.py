"""One node as it is now: its cards as NVML reads them, and what its processes hold and use."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.nvml import CardReading, read_cards
from cluster.shares.holding import Holding, holdings_in


@dataclass(frozen=True)
class Held:
    """A share, and what is used of it."""

    holding: Holding
    used_bytes: int | None
    """On its cards together, or of the node's memory; None where NVML does not tell the process's part."""


@dataclass(frozen=True)
class NodeReading:
    """One look at a node."""

    node_id: str
    cards: tuple[CardReading, ...]
    held: tuple[Held, ...]


def read_node(folder: Path, node_id: str) -> NodeReading:
    """Look at this node.

    Args:
        folder: Where its processes tell their shares.
    """
    cards = tuple(read_cards())
    held = tuple(Held(holding, _used_bytes(holding, cards)) for holding in holdings_in(folder))
    return NodeReading(node_id, cards, held)


def _used_bytes(holding: Holding, cards: Iterable[CardReading]) -> int | None:
    processes = _family(holding.pid)
    if holding.on == "host":
        return sum(_own_bytes(process) for process in processes)
    pids = {process.pid for process in processes}
    found = [size for card in cards for pid, size in card.used_by.items() if pid in pids]
    # In a container NVML may tell the host's numbers of processes, which are none of ours.
    return sum(found) if found else None


def _family(pid: int) -> list[psutil.Process]:
    """The process and all that it started: an engine's workers are children of its replica."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _own_bytes(process: psutil.Process) -> int:
    """Its own memory: what it shares with others (files, Ray's object store) is not counted."""
    with suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0
