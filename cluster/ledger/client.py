"""Asking the ledger for a place, from a process that is connected to Ray."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from cluster.inventory import Inventory
from cluster.ledger import picture
from cluster.ledger.actor import ledger
from cluster.placement import Request
from runtime.core.errors import ClusterError, WaitTimeout
from runtime.core.log import get_logger

_log = get_logger(__name__)
_POLL_S = 1.0
_RENEW_S = 5.0
_CALL_TIMEOUT_S = 30.0


class NeverFits(ClusterError):
    """The cluster, even empty, cannot hold it; or there is no room now and it was told not to wait."""


class Stopped(Exception):
    """Somebody asked to wait no more."""


@dataclass(frozen=True)
class Room:
    """A place that was granted; it is kept while the context lasts."""

    choice: int
    """Which of the sizes asked for."""

    nodes: tuple[str, ...]
    """Ids of the workers' nodes; empty where the ledger was not there to say."""

    accelerator_type: str | None


def as_read(living: Inventory) -> Inventory:
    """The living nodes with what the ledger has read of their cards, as far as it answers."""
    return picture.as_read(living, _call("picture") or {})


class Place:
    """A place asked for and kept, until it is closed.

    Args:
        sizes: What would do, the most wanted first.
        since_s: Since when it is wanted, in seconds since 1970: its age in the queue. Default: now.
    """

    def __init__(self, sizes: Sequence[Request], *, priority: str, since_s: float | None = None) -> None:
        self._sizes, self._priority = list(sizes), priority
        self._since_s = time.time() if since_s is None else since_s
        self._token = secrets.token_hex(8)
        self._name = sizes[-1].name
        self._ending = threading.Event()
        self._renewing: threading.Thread | None = None

    def wait(
        self,
        *,
        timeout_s: float,
        tell: Callable[[str], None],
        should_stop: Callable[[], bool] = lambda: False,
        may_wait: bool = True,
    ) -> Room:
        """Return when there is room.

        Args:
            tell: Is told the position and the reason whenever they change.
            should_stop: Whether to wait no more.
            may_wait: Otherwise only now counts.

        Raises:
            NeverFits: waiting does not help, or is not wanted.
            WaitTimeout: there was no room in time.
            Stopped: ``should_stop`` said so.
        """
        deadline, told = time.monotonic() + timeout_s, ""
        while True:
            answer = self._ask(may_wait)
            if answer is None:
                return Room(len(self._sizes) - 1, (), None)
            if answer["state"] == "granted":
                self._renewing = threading.Thread(target=self._renew, name="renew", daemon=True)
                self._renewing.start()
                return Room(answer["choice"], tuple(answer["nodes"]), answer["accelerator_type"])
            if answer["state"] == "refused":
                raise NeverFits(answer["reason"])
            said = f"number {answer['position']} in the queue: {answer['reason']}"
            if said != told:
                tell(said)
                told = said
            if should_stop():
                raise Stopped
            if time.monotonic() > deadline:
                raise WaitTimeout(f"no room within {timeout_s:.0f} s; {said}")
            time.sleep(_POLL_S)

    def is_held_already(self) -> bool:
        """Whether processes of the same holder run."""
        return bool(_call("holds_already", self._name))

    def close(self) -> None:
        """Give the place back, or leave the queue."""
        self._ending.set()
        if self._renewing is not None:
            self._renewing.join()
        _call("leave", self._name, self._token)

    def starts(self) -> None:
        """End here without giving it back: others tell their shares of it from now on, an app's replicas."""
        self._ending.set()
        if self._renewing is not None:
            self._renewing.join()
        _call("starts", self._name)

    def _ask(self, may_wait: bool) -> dict[str, Any] | None:
        return _call(
            "ask",
            self._sizes,
            priority=self._priority,
            since_s=self._since_s,
            wait=may_wait,
            token=self._token,
        )

    def _renew(self) -> None:
        while not self._ending.wait(_RENEW_S):
            is_new = _call("renew", self._name) is False
            # What has begun tells its shares itself.
            if is_new and _call("holds_already", self._name) is False:
                self._ask(True)


def _call(method: str, *args: Any, **kwargs: Any) -> Any:
    """What the ledger answers; None where it cannot: Ray alone then decides who starts."""
    try:
        return ray.get(getattr(ledger(), method).remote(*args, **kwargs), timeout=_CALL_TIMEOUT_S)
    except Exception as error:  # of any kind: a run must not end for the ledger's sake
        _log.warning("the ledger does not answer: %r", error)
        return None
