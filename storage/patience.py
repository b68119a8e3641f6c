"""Trying again: what may pass is retried with backoff for a while, everything else is raised at once.

All clients are told not to retry by themselves: nested retries turn a minute into an hour.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import tenacity

from runtime.core.errors import ConfigError, Unreachable
from runtime.core.log import get_logger

DEFAULT_PATIENCE_S = 60.0
REQUEST_TIMEOUT_S = 60.0
"""How long one request may go without a byte, at most."""

_log = get_logger(__name__)
T = TypeVar("T")


class Transient(Exception):
    """One attempt failed in a way that may pass: a reset, a time-out, 429, 5xx, a short answer.

    Args:
        reason: What happened, for people; holds no address and no secret.
        retry_after_s: What the server asked for.
    """

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type[Transient], tuple[str, float]]:
        return type(self), (str(self), self.retry_after_s)


_PATIENCE_S: ContextVar[float | None] = ContextVar("patience_s", default=None)


def patience_s() -> float:
    """For how long what may pass is tried again: ``$TANDEM_STORAGE_PATIENCE_S``, else 60 s."""
    chosen = _PATIENCE_S.get()
    if chosen is not None:
        return chosen
    text = os.environ.get("TANDEM_STORAGE_PATIENCE_S")
    try:
        return float(text) if text else DEFAULT_PATIENCE_S
    except ValueError:
        raise ConfigError(
            f"TANDEM_STORAGE_PATIENCE_S is {text!r}, which is no number of seconds. Write one, such as 60."
        ) from None


def request_timeout_s() -> float:
    """How long one request may go without a byte: half of our patience, so that another one is tried."""
    return min(REQUEST_TIMEOUT_S, patience_s() / 2)


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Within the block, try for ``seconds`` at most: there is another way, or somebody waits."""
    token = _PATIENCE_S.set(min(seconds, patience_s()))
    try:
        yield
    finally:
        _PATIENCE_S.reset(token)


def patiently(attempt: Callable[[], T], uri: str) -> T:
    """What ``attempt`` returns, tried again while it raises :class:`Transient`.

    Args:
        attempt: Does one thing once; must be safe to repeat.
        uri: The address, for the message.

    Raises:
        Unreachable: it still failed when patience had run out.
    """
    limit_s = patience_s()
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(Transient),
        wait=lambda state: _wait_s(state, limit_s),
        stop=tenacity.stop_after_delay(limit_s),
        before_sleep=lambda state: _log.info("%s: %s; trying again", uri, _reason(state)),
        retry_error_callback=lambda state: _give_up(state, uri, limit_s),
    )
    return retrying(attempt)


_BACKOFF = tenacity.wait_random_exponential(multiplier=0.2, max=8)


def _wait_s(state: tenacity.RetryCallState, limit_s: float) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked_s = error.retry_after_s if isinstance(error, Transient) else 0.0
    # The last try is at the end of our patience, and not somewhere after it.
    left_s = max(0.0, limit_s - (state.seconds_since_start or 0.0))
    return min(max(_BACKOFF(state), min(asked_s, 30.0)), left_s)


def _reason(state: tenacity.RetryCallState) -> str:
    return str(state.outcome.exception()) if state.outcome else ""


def _give_up(state: tenacity.RetryCallState, uri: str, limit_s: float) -> T:  # type: ignore[type-var]
    tries = "once" if state.attempt_number == 1 else f"{state.attempt_number} times"
    raise Unreachable(
        f"{uri}: {_reason(state)} (tried {tries} in {limit_s:g} s). Check the address and the network, or "
        "give it more time with TANDEM_STORAGE_PATIENCE_S."
    ) from None
