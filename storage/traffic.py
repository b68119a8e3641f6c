"""How many bytes this process has moved between stores: sums since it began, for whoever shows them."""

from __future__ import annotations

import threading
from collections import Counter

_moved: Counter[tuple[str, str]] = Counter()
_lock = threading.Lock()


def add(source: str, target: str, size_bytes: int) -> None:
    """So many bytes went from one scheme (``s3``, ``file``) to another."""
    with _lock:
        _moved[source, target] += size_bytes


def moved() -> dict[tuple[str, str], int]:
    """Bytes by schemes, ``(source, target)``. A hard link moves none."""
    with _lock:
        return dict(_moved)
