"""One measurement in a process of its own: the job it is given, and what it says about itself.

Standard library only: raw clients run in an interpreter that has nothing of ours.
"""

import gc
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

MIB = 1 << 20
BLOCK_BYTES = 8 * MIB
"""Clients that can be told how much to move at a time are told this: it is what costs them least."""

STREAMS = 8
"""And so many at a time."""


@dataclass(frozen=True)
class Job:
    """Files to be moved between a folder of this machine and a store."""

    store: str
    """``local``, ``gs`` or ``s3``."""

    direction: str
    """``up``: from the folder to the store; ``down``: the other way."""

    is_folder: bool
    """Whether a folder is asked for; else its only file."""

    sizes_bytes: dict[str, int]
    """Length of each file by its name."""

    folder: str
    """On this machine."""

    bucket: str
    """Empty for ``local``."""

    prefix: str
    """The store's folder: below the bucket, or a path."""

    @property
    def names(self) -> list[str]:
        """The files."""
        return list(self.sizes_bytes)

    @property
    def total_bytes(self) -> int:
        """Of all files together."""
        return sum(self.sizes_bytes.values())

    def path(self, name: str) -> str:
        """The file on this machine."""
        return f"{self.folder}/{name}"

    def key(self, name: str) -> str:
        """The object in the bucket, or the file of a local store."""
        return f"{self.prefix}/{name}"

    def to_json(self) -> str:
        """For a child's command line."""
        return json.dumps(asdict(self))


Client = Callable[[Job], Callable[[], object]]
"""Imports and connects, and returns what is to be measured."""


def main(clients: Mapping[str, Client]) -> None:
    """``CLIENT JOB`` on the command line: prints what the job took as a line of JSON."""
    action = clients[sys.argv[1]](Job(**json.loads(sys.argv[2])))
    print(json.dumps(measured(action)))


def measured(action: Callable[[], object]) -> dict[str, float]:
    """Run ``action`` and say what it took.

    Returns:
        ``seconds``; ``cpu_s``, user and system, of all threads and of child processes; ``peak_bytes``, the
        highest memory of this process above what it held before.
    """
    gc.collect()
    idle_bytes = _memory_bytes("VmRSS")
    # Forget the peak so far, which importing made.
    Path("/proc/self/clear_refs").write_text("5")
    cpu_s, started_s = _cpu_s(), time.perf_counter()
    action()
    return {
        "seconds": time.perf_counter() - started_s,
        "cpu_s": _cpu_s() - cpu_s,
        "peak_bytes": max(0, _memory_bytes("VmHWM") - idle_bytes),
    }


def _cpu_s() -> float:
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _memory_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))
