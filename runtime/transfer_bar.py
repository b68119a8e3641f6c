"""A bar for a transfer: bytes, rate and time left."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class TransferBar:
    """Shows a transfer on standard error, so that what a command prints can be piped on.

    Use it as a context manager, and give it to a transfer as ``progress``.
    """

    def __init__(self, title: str) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task(title, total=0)
        self._total_bytes = 0

    def total(self, size_bytes: int) -> None:
        """So many bytes more will be moved."""
        self._total_bytes += size_bytes
        self._bar.update(self._task, total=self._total_bytes)

    def advance(self, size_bytes: int) -> None:
        """So many bytes have been moved."""
        self._bar.advance(self._task, size_bytes)

    def __enter__(self) -> TransferBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
