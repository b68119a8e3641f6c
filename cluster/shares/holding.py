"""What a process says that it holds: a small file on its node, which lives no longer than the process.

The processes themselves are the truth; whoever adds them up (the ledger) can be lost and made again.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from runtime.core.log import get_logger

_log = get_logger(__name__)
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
    """Its cards: their numbers on the node, from 0 on, or their UUIDs; empty for what holds no card."""

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
    start_ticks: int
    """When the process began, in the kernel's ticks since boot: tells it from a later one with its number.
    Setting the clock does not change it."""

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return _start_ticks(self.pid) == self.start_ticks


def folder_of(session_dir: str | Path, node_id: str) -> Path:
    """Where the processes of one node tell their shares: below the folder of Ray's session."""
    return Path(session_dir) / _FOLDER / node_id


@contextmanager
def told(folder: Path, **fields: Any) -> Iterator[Holding]:
    """Say what this process holds, for as long as the context lasts.

    Where it cannot be said, on a full disk, the process goes on: Ray still knows what it holds.

    Args:
        folder: Of its node.
        fields: Of :class:`Holding`, less those of the process.
    """
    pid = os.getpid()
    holding = Holding(pid=pid, start_ticks=_start_ticks(pid) or 0, **fields)
    file = folder / f"{pid}-{secrets.token_hex(4)}.json"
    new = file.with_suffix(".new")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        new.write_text(json.dumps(asdict(holding)))
        new.replace(file)
    except OSError as error:
        _log.warning("the share of %s is not told: %s", holding.holder, error)
    try:
        yield holding
    finally:
        # A child that was forked meanwhile leaves the context, too, and holds nothing.
        if os.getpid() == pid:
            for written in (file, new):
                with suppress(OSError):
                    written.unlink()


def holdings_in(folder: Path) -> list[Holding]:
    """What living processes of the node hold; what dead ones said is removed."""
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            fields = json.loads(file.read_text())
            holding = Holding(**{**fields, "cards": tuple(fields["cards"])})
        except (OSError, ValueError, TypeError, KeyError):
            continue  # it has just ended, or says something else
        if holding.is_alive:
            found.append(holding)
        else:
            with suppress(OSError):
                file.unlink()
    return found


def _start_ticks(pid: int) -> int | None:
    """When the process began; None where there is none, or only what its parent has not looked at.

    Source: proc_pid_stat(5).
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # Its name, in parentheses, may hold anything.
    fields = stat.rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
