"""Usage per day, key and model: each replica keeps one small file in the store, a reader sums them."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from runtime.core.errors import TandemError
from runtime.core.log import get_logger
from storage.location import Location, side_by_side
from storage.patience import patience

_log = get_logger(__name__)
_PATIENCE_S = 5.0

OPEN = "open"
"""Stands for the key id where an app asks for no key."""

_FIELDS = ("requests", "prompt_tokens", "completion_tokens")


@dataclass(frozen=True)
class UsageRow:
    """What one key used of one model on one day."""

    date: str
    """``2026-11-25``, in UTC."""

    key_id: str
    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int


class Usage:
    """Counts of one replica, written below ``place`` as ``<date>/<app>-<replica>.json``.

    Args:
        place: ``usage/`` of a store.
        app: Name of the app.
        replica: Never used twice, or a file would be overwritten. Unset: drawn by chance.
        write_s: How often counts that changed are written. A killed replica loses as much.
        today: The date in UTC.
    """

    def __init__(
        self,
        place: Location,
        *,
        app: str,
        replica: str | None = None,
        write_s: float = 10.0,
        today: Callable[[], str] = lambda: datetime.now(UTC).date().isoformat(),
    ) -> None:
        self._place, self._write_s, self._today = place, write_s, today
        self._file = f"{app}-{replica or secrets.token_hex(6)}.json"
        self._counts: dict[str, dict[tuple[str, str], list[int]]] = {}
        self._changed: set[str] = set()
        self._background: asyncio.Task[None] | None = None
        self._one_at_a_time = threading.Lock()

    def add(self, key_id: str | None, model: str, *, prompt_tokens: int, completion_tokens: int) -> None:
        """Count one request."""
        date = self._today()
        counts = self._counts.setdefault(date, {}).setdefault((key_id or OPEN, model), [0, 0, 0])
        for index, more in enumerate((1, prompt_tokens, completion_tokens)):
            counts[index] += more
        self._changed.add(date)

    async def start(self) -> None:
        """Write in the background of this event loop from now on."""
        self._background = asyncio.create_task(self._write_for_ever(), name="tandem-usage")

    async def stop(self) -> None:
        """End the background work and write what is left."""
        if self._background is not None:
            self._background.cancel()
            await asyncio.wait([self._background])
        await self._write_in_thread()

    def write(self) -> None:
        """Write what changed since the last time. A store that is silent gets it the next time."""
        self._put(self._taken())

    def _put(self, days: list[tuple[str, list[dict[str, Any]]]]) -> None:
        # One after the other: one that still waits for the store must not come after the last one.
        with self._one_at_a_time:
            for date, rows in days:
                try:
                    with patience(_PATIENCE_S):
                        (self._place / date / self._file).write_json(rows)
                except TandemError as error:
                    self._changed.add(date)
                    _log.warning("usage could not be written; trying again later: %s", error)

    async def _write_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._write_s)
            try:
                await self._write_in_thread()
            except Exception:
                _log.exception("writing usage failed; trying again")

    async def _write_in_thread(self) -> None:
        if self._changed:
            # The counts change in this loop only, so they are taken here and only written elsewhere.
            await asyncio.to_thread(self._put, self._taken())

    def _taken(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """The changed days as plain rows, and days that are over and written forgotten."""
        changed, self._changed = self._changed, set()
        for date in set(self._counts) - changed - {self._today()}:
            del self._counts[date]
        return [(date, _rows(dict(self._counts[date]))) for date in sorted(changed)]


def _rows(counts: dict[tuple[str, str], list[int]]) -> list[dict[str, Any]]:
    return [
        {"key_id": key_id, "model": model, **dict(zip(_FIELDS, numbers, strict=True))}
        for (key_id, model), numbers in counts.items()
    ]


def read_usage(place: Location, *, since: str | None = None) -> list[UsageRow]:
    """Usage over all apps and replicas, summed, by date, key and model.

    Args:
        place: ``usage/`` of a store.
        since: First date, such as ``2026-11-01``. Unset: all there is.

    Raises:
        StorageError: the store cannot be read.
    """
    dates = [date for date in place.folders() if since is None or date >= since]
    files = [(date, place.at(entry)) for date in dates for entry in (place / date).names()[1]]
    pages = side_by_side(lambda pair: (pair[0], pair[1].read_json() or []), files)
    return _summed((date, row) for date, page in pages for row in page)


def _summed(rows: Iterable[tuple[str, dict[str, Any]]]) -> list[UsageRow]:
    sums: dict[tuple[str, str, str], list[int]] = {}
    for date, row in rows:
        numbers = sums.setdefault((date, row["key_id"], row["model"]), [0, 0, 0])
        for index, name in enumerate(_FIELDS):
            numbers[index] += row[name]
    return [UsageRow(*key, *numbers) for key, numbers in sorted(sums.items())]
