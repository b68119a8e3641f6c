"""A replica's copy of the keys: a request is checked in memory, the folder is looked at in the background."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from runtime.core.config import load_spec
from runtime.core.errors import TandemError
from runtime.core.log import get_logger
from serve_apps.refusal import Refused
from storage import last_known
from storage.keys import KeyRecord, Keys, StoredKey, split_key
from storage.patience import patience

_log = get_logger(__name__)
_PATIENCE_S = 3.0
"""How long a silent store is waited for: the last known keys go on meanwhile."""


class Keyring:
    """Finds the key of a request.

    Args:
        keys: Where the records are.
        refresh_s: A revoked key opens nothing more after so many seconds.
        ask_again_s: An unknown key makes the folder be looked at at once, but not sooner than so many
            seconds after the last look: wrong keys must not become requests to the store.
    """

    def __init__(self, keys: Keys, *, refresh_s: float = 5.0, ask_again_s: float = 1.0) -> None:
        self._keys = keys
        self._refresh_s, self._ask_again_s = refresh_s, ask_again_s
        self._known: dict[str, StoredKey] = {}
        self._has_looked = False
        self._looked_at = float("-inf")
        self._look: asyncio.Task[None] | None = None
        self._background: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the keys, and go on looking in the background of this event loop."""
        await self._look_now()
        self._background = asyncio.create_task(self._look_for_ever(), name="tandem-keyring")

    async def stop(self) -> None:
        """End the background work."""
        for task in (self._background, self._look):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])

    async def key_of(self, headers: Iterable[tuple[bytes, bytes]]) -> KeyRecord:
        """The key that a request's headers carry, ``Authorization: Bearer`` or ``x-api-key``.

        Raises:
            Refused: 401: there is none, it is unknown or revoked; 503: the keys could never be read.
        """
        text = _key_in(headers)
        if text is None:
            raise _unauthorized(
                "This endpoint wants an API key. Send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'; "
                "whoever runs the cluster makes one: tandem keys create NAME"
            )
        parts = split_key(text)
        record = self._find(parts)
        if record is None and parts is not None:
            await self._look_again()
            record = self._find(parts)
        if record is None and not self._has_looked:
            raise Refused(
                503,
                "The API keys cannot be read at the moment. Try again soon.",
                type="server_error",
                code="keys_unavailable",
                retry_after_s=self._refresh_s,
            )
        if record is None:
            raise _unauthorized("The API key is not known here. Check it, or ask for a new one.")
        if record.revoked_at is not None:
            raise _unauthorized(f"The API key {record.id} was revoked. Ask for a new one.")
        return record

    def _find(self, parts: tuple[str, str] | None) -> KeyRecord | None:
        stored = self._known.get(parts[0]) if parts else None
        # A rotated key has a known id and another secret: unknown too, until the folder was looked at.
        return stored.record if parts and stored and stored.record.opens(parts[1]) else None

    async def _look_again(self) -> None:
        if self._look is None and time.monotonic() - self._looked_at < self._ask_again_s:
            return
        await self._look_now()

    async def _look_now(self) -> None:
        """Look at the folder; whoever comes meanwhile waits for the same look."""
        if self._look is None:
            self._look = asyncio.create_task(self._read(), name="tandem-keyring-look")
        # Shielded: a client that leaves must not end it for the others.
        await asyncio.shield(self._look)

    async def _read(self) -> None:
        try:
            with patience(_PATIENCE_S):
                self._known = await asyncio.to_thread(self._ask)
            self._has_looked = True
        except TandemError as error:
            _log.warning("the keys in %s cannot be read; the last known ones hold: %s", self._keys.uri, error)
        finally:
            self._looked_at = time.monotonic()
            self._look = None

    def _ask(self) -> dict[str, StoredKey]:
        """The keys; while the store is silent those that it had last, also when another replica asked."""
        found: dict[str, StoredKey] = {}

        def ask() -> dict[str, Any]:
            found.update(self._keys.read(self._known))
            return {key_id: stored.record.model_dump(mode="json") for key_id, stored in found.items()}

        said = last_known.answer(self._keys.uri, ask)
        return found or {
            key_id: StoredKey(load_spec(KeyRecord, record), None) for key_id, record in said.items()
        }

    async def _look_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._refresh_s)
            try:
                await self._look_now()
            except Exception:
                _log.exception("looking at the keys failed; trying again")


def _key_in(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    other = None
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.decode("latin-1").partition(" ")
            if scheme.lower() == "bearer":
                return key.strip()
        elif name == b"x-api-key":
            other = value.decode("latin-1").strip()
    return other


def _unauthorized(message: str) -> Refused:
    return Refused(401, message, code="invalid_api_key")
