"""One node as it is now: its cards as NVML reads them, what its processes hold and use, its cache's disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.nvml import CardReading, read_cards
from cluster.shares.holding import Holding, holdings_in
from runtime.core.places import file_cache


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
    cache_disk: tuple[int, int] | None = None
    """Bytes of the disk that the node cache lies on, and free bytes of it."""


def read_node(folder: Path, node_id: str) -> NodeReading:
    """Look at this node.

    Args:
        folder: Where its processes tell their shares.
    """
    cards = tuple(read_cards())
    holdings = holdings_in(folder)
    children = _children() if holdings else {}
    held = tuple(Held(one, _used_bytes(one, _family(one.pid, children), cards)) for one in holdings)
    return NodeReading(node_id, cards, held, _disk(file_cache()))


def _disk(folder: Path) -> tuple[int, int] | None:
    """Of the disk that ``folder`` lies on, or will lie on once it is made."""
    with suppress(OSError):
        there = next(one for one in (folder, *folder.parents) if one.exists())
        found = shutil.disk_usage(there)
        return found.total, found.free
    return None


def _used_bytes(holding: Holding, pids: Sequence[int], cards: Iterable[CardReading]) -> int | None:
    if holding.on == "host":
        return sum(_own_bytes(pid) for pid in pids)
    found = [size for card in cards for pid, size in card.used_by.items() if pid in pids]
    # In a container NVML may tell the host's numbers of processes, which are none of ours.
    return sum(found) if found else None


def _children() -> dict[int, list[int]]:
    """Every process's children: looked up once for all shares, it is the dear part of a look."""
    found: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):
                stat = Path(entry.path, "stat").read_bytes()
                # Its name, in parentheses, may hold anything; then its state and its parent.
                found.setdefault(int(stat.rpartition(b")")[2].split()[1]), []).append(int(entry.name))
    return found


def _family(pid: int, children: Mapping[int, list[int]]) -> list[int]:
    """The process and all that it started: an engine's workers are children of its replica."""
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def _own_bytes(pid: int) -> int:
    """Its own memory: what it shares with others (files, Ray's object store) is not counted."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0
