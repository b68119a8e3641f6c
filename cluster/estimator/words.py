"""Bytes as GPUs and engines count them."""

from __future__ import annotations

GIB = 1 << 30


def gib(size_bytes: float) -> str:
    """``12.3 GiB``; below a tenth of one in MiB."""
    if abs(size_bytes) < GIB / 10:
        return f"{size_bytes / (1 << 20):.1f} MiB"
    return f"{size_bytes / GIB:.1f} GiB"
