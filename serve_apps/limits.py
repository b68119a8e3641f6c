"""Requests and tokens per minute and key, over a sliding window that all replicas share.

Every replica tells a small Ray actor twice a second what its keys used in the last minute and hears what the
others counted. So a request waits for nobody, except where its key was idle here: then until the others have
told of it, half a second at most. What arrives at several replicas within half a second may exceed a limit by
as much.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from runtime.core.log import get_logger
from serve_apps.refusal import Refused
from serve_apps.tally import Tally
from storage.keys import KeyRecord

_log = get_logger(__name__)

WINDOW_S = 60.0
_BUCKET_S = 2.0
"""Uses this close together are one entry, which counts so much longer: a limit is never exceeded by that."""

_ACTOR, _NAMESPACE = "tandem-limits-1", "tandem"
_CALL_TIMEOUT_S = 5.0
_LEARN_TIMEOUT_S = 0.5
"""No request waits longer for what others counted."""

Buckets = list[tuple[float, int, int]]
"""Age in seconds, requests, tokens; oldest first."""


class _Window:
    """Uses of one key in the last minute."""

    def __init__(self) -> None:
        self._uses: deque[list[float]] = deque()

    def add(self, at: float, requests: float, tokens: float) -> None:
        """Count a use."""
        if self._uses and at - self._uses[-1][0] < _BUCKET_S:
            use = self._uses[-1]
            use[1] += requests
            use[2] += tokens
        else:
            self._uses.append([at, requests, tokens])

    def uses(self, now: float) -> Iterable[list[float]]:
        """``[began, requests, tokens]`` of each entry that still counts."""
        while self._uses and now - self._uses[0][0] >= WINDOW_S + _BUCKET_S:
            self._uses.popleft()
        return self._uses

    def buckets(self, now: float) -> Buckets:
        """The same, as ages."""
        return [(now - at, int(requests), int(tokens)) for at, requests, tokens in self.uses(now)]

    @classmethod
    def of(cls, buckets: Buckets, now: float) -> _Window:
        """A window of what somebody else counted."""
        window = cls()
        window._uses.extend([now - age_s, requests, tokens] for age_s, requests, tokens in buckets)
        return window


class _Account:
    """What one key used: here, elsewhere, and in requests that still run."""

    def __init__(self) -> None:
        self.here, self.elsewhere = _Window(), _Window()
        self.tallies: dict[int, Tally] = {}

    def running_tokens(self) -> int:
        return sum(tally.tokens for tally in self.tallies.values())

    def used(self, now: float, field: int) -> float:
        live = self.running_tokens() if field == 2 else 0
        return live + sum(use[field] for window in (self.here, self.elsewhere) for use in window.uses(now))

    def room_in_s(self, now: float, field: int, limit: int) -> float:
        """Seconds until less than ``limit`` is used, if nothing is added."""
        used = self.used(now, field)
        for use in sorted([*self.here.uses(now), *self.elsewhere.uses(now)]):
            used -= use[field]
            if used < limit:
                return use[0] + WINDOW_S + _BUCKET_S - now
        return WINDOW_S


class Limits:
    """The limits of all keys at one replica.

    Args:
        sync_s: How often replicas tell each other.
        clock: Monotonic seconds.
    """

    def __init__(self, *, sync_s: float = 0.5, clock: Callable[[], float] = time.monotonic) -> None:
        self._sync_s, self._clock = sync_s, clock
        self._accounts: dict[str, _Account] = {}
        self._replica = secrets.token_hex(8)
        self._background: asyncio.Task[None] | None = None
        self._actor: Any = None
        self._learning: dict[str, asyncio.Task[None]] = {}

    async def know(self, key: KeyRecord) -> None:
        """Hear what the key used elsewhere, where it was not used here for a while."""
        if self._background is None or _is_unlimited(key):
            return
        if key.id not in self._accounts:
            self._accounts[key.id] = _Account()
            self._learning[key.id] = asyncio.create_task(self._learn(key.id), name="tandem-limits-learn")
        if learning := self._learning.get(key.id):
            await asyncio.wait([learning], timeout=_LEARN_TIMEOUT_S)

    async def _learn(self, key_id: str) -> None:
        try:
            with contextlib.suppress(Exception):  # the background tells it and tries again
                await asyncio.wait_for(self._share(), _CALL_TIMEOUT_S)
        finally:
            self._learning.pop(key_id, None)

    def admit(self, key: KeyRecord, tally: Tally) -> None:
        """Count a request of the key, and its tally's tokens as they come, until :meth:`done`.

        Raises:
            Refused: 429: a limit is reached; says when there is room.
        """
        if _is_unlimited(key):
            return
        now = self._clock()
        account = self._accounts.setdefault(key.id, _Account())
        for field, limit, what in (
            (1, key.requests_per_minute, "requests"),
            (2, key.tokens_per_minute, "tokens"),
        ):
            if limit is not None and (used := account.used(now, field)) >= limit:
                raise _too_many(key, what, int(used), limit, account.room_in_s(now, field, limit))
        account.here.add(now, 1, 0)
        account.tallies[id(tally)] = tally

    def done(self, key: KeyRecord, tally: Tally) -> None:
        """The request has ended: its tokens count from now for a minute."""
        account = self._accounts.get(key.id)
        if account is not None and account.tallies.pop(id(tally), None) is not None:
            account.here.add(self._clock(), 0, tally.tokens)

    async def start(self) -> None:
        """Share with other replicas from now on, where there is Ray."""
        if "ray" in sys.modules and sys.modules["ray"].is_initialized():
            self._background = asyncio.create_task(self._share_for_ever(), name="tandem-limits")

    async def stop(self) -> None:
        """End the background work."""
        tasks = [*([self._background] if self._background else []), *self._learning.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _share_for_ever(self) -> None:
        fails = 0
        while True:
            await asyncio.sleep(self._sync_s * min(2**fails, 20))
            self._forget_the_idle()
            if not self._accounts:
                continue
            try:
                await asyncio.wait_for(self._share(), _CALL_TIMEOUT_S)
                fails = 0
            except Exception as error:
                if not fails:
                    _log.warning("limits are this replica's own for now: %s: %s", type(error).__name__, error)
                fails += 1
                self._actor = None

    def _forget_the_idle(self) -> None:
        """Keys that nobody used for a window's length are not talked about."""
        now = self._clock()
        for key_id, account in list(self._accounts.items()):
            is_idle = not account.tallies and not account.used(now, 1) and not account.used(now, 2)
            if is_idle and key_id not in self._learning:
                del self._accounts[key_id]

    async def _share(self) -> None:
        if self._actor is None:
            self._actor = await asyncio.to_thread(_shared_actor)
        now = self._clock()
        report = {
            key_id: [*account.here.buckets(now), (0.0, 0, account.running_tokens())]
            for key_id, account in self._accounts.items()
        }
        others = await self._actor.exchange.remote(self._replica, report)
        now = self._clock()
        for key_id, buckets in others.items():
            if key_id in self._accounts:
                self._accounts[key_id].elsewhere = _Window.of(buckets, now)


class SharedWindows:
    """What every replica said last; the Ray actor. It may die and come back empty: all is said again."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[float, dict[str, Buckets]]] = {}

    def exchange(self, replica: str, report: dict[str, Buckets]) -> dict[str, Buckets]:
        """Keep a replica's report; what the others said about the same keys."""
        now = time.monotonic()
        self._said[replica] = (now, report)
        self._said = {name: said for name, said in self._said.items() if now - said[0] < WINDOW_S}
        return {key_id: self._others(replica, key_id, now) for key_id in report}

    def _others(self, replica: str, key_id: str, now: float) -> Buckets:
        found = [
            (age_s + now - at, requests, tokens)
            for name, (at, report) in self._said.items()
            if name != replica
            for age_s, requests, tokens in report.get(key_id, ())
            if requests or tokens
        ]
        return sorted(found, reverse=True)


def _shared_actor() -> Any:
    import ray

    # Not in the replica's placement group, and longer lived than the app that happens to make it.
    options = {"name": _ACTOR, "namespace": _NAMESPACE, "lifetime": "detached", "get_if_exists": True}
    actor = ray.remote(SharedWindows)
    return actor.options(
        **options, num_cpus=0, max_restarts=-1, max_concurrency=1, scheduling_strategy="DEFAULT"
    ).remote()


def _is_unlimited(key: KeyRecord) -> bool:
    return key.requests_per_minute is None and key.tokens_per_minute is None


def _too_many(key: KeyRecord, what: str, used: int, limit: int, room_in_s: float) -> Refused:
    return Refused(
        429,
        f"Rate limit of the API key {key.id}: {used} of {limit} {what} in the last minute. Try again in "
        f"{room_in_s:.0f} s.",
        type=what,
        code="rate_limit_exceeded",
        retry_after_s=room_in_s,
    )
