"""A hard limit on what a process may take of its node's memory, kept by the kernel."""

from __future__ import annotations

import resource
from pathlib import Path

_LEAST_BYTES = 64 << 20
"""Room that a process needs to fail in good order. With less, its next thread may not come up, and Python
waits for it for ever (seen: a training worker that hung instead of failing)."""


def cap_memory(share_bytes: int) -> int:
    """Let this process grow to ``share_bytes`` of memory of its own, and no further.

    Beyond it, allocations fail: torch and Python say that they cannot allocate memory. What it shares with
    others (files, Ray's object store) does not count.

    Returns:
        The limit that was set, of the kernel's ``RLIMIT_DATA``: it counts what is mapped, which is more than
        what is used, so that it is set as far above what is mapped now as there are bytes left.

    Raises:
        MemoryError: the process takes as much already.

    Source: setrlimit(2).
    """
    mapped_bytes, used_bytes = _status("VmData"), _status("RssAnon")
    if share_bytes < used_bytes + _LEAST_BYTES:
        raise MemoryError(
            f"the process takes {used_bytes} bytes before its work begins, and its share is {share_bytes}"
        )
    limit = mapped_bytes + share_bytes - used_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    return limit


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
