"""What a process says that it holds: a small file on its node, which lives no longer than the process.

The processes themselves are the truth; whoever adds them up (the ledger) can be lost and made again.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

_FOLDER = "tandem-shares"


@dataclass(frozen=True)
class Holding:
    """One process's share."""

    holder: str
    """A run's id or an app's name."""

    worker: str
    """Which of its processes: ``rank 0``, a replica's id."""

    kind: Literal["train", "serve"]
    node_id: str
    cards: tuple[str, ...]
    """Ray's ids of the cards, as strings; empty for what holds no card."""

    fraction: float
    """Of each card."""

    cpus: float
    memory_bytes: int
    """Of the node's memory, reserved with Ray."""

    promised_bytes: int | None
    """On each card, or without cards in the node's memory; None where nobody reckoned it."""

    on: Literal["card", "host"]
    """Where ``promised_bytes`` and what is used are counted. Logical cards are host memory."""

    pid: int
    create_time: float
    """Of the process, in seconds since 1970: tells it from a later one with its number."""

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        try:
            return abs(psutil.Process(self.pid).create_time() - self.create_time) < 1
        except psutil.Error:
            return False


def folder_of(session_dir: str | Path, node_id: str) -> Path:
    """Where the processes of one node tell their shares: below the folder of Ray's session."""
    return Path(session_dir) / _FOLDER / node_id


@contextmanager
def told(folder: Path, **fields: Any) -> Iterator[Holding]:
    """Say what this process holds, for as long as the context lasts.

    Args:
        folder: Of its node.
        fields: Of :class:`Holding`, less those of the process.
    """
    process = psutil.Process()
    holding = Holding(pid=process.pid, create_time=process.create_time(), **fields)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{process.pid}-{secrets.token_hex(4)}.json"
    new = file.with_suffix(".new")
    new.write_text(json.dumps(asdict(holding)))
    new.replace(file)
    try:
        yield holding
    finally:
        with suppress(OSError):
            file.unlink()


def holdings_in(folder: Path) -> list[Holding]:
    """What living processes of the node hold; what dead ones said is removed."""
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            fields = json.loads(file.read_text())
        except (OSError, ValueError):
            continue  # it has just ended
        holding = Holding(**{**fields, "cards": tuple(fields["cards"])})
        if holding.is_alive:
            found.append(holding)
        else:
            with suppress(OSError):
                file.unlink()
    return found
