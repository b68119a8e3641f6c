"""Metrics that stay while a process lives: Ray drops a gauge that nobody has set again for 20 s or so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PERIOD_S = 5.0
"""A worker hands its gauges on every 10 s."""


@contextmanager
def telling(tell: Callable[[], None], *, period_s: float = _PERIOD_S) -> Iterator[None]:
    """Call ``tell`` every few seconds, from a thread of its own, until the context ends.

    A step or an evaluation may take minutes, and one that hangs is what an alert is for.
    """
    ending = threading.Event()

    def tell_on() -> None:
        while not ending.wait(period_s):
            tell()

    thread = threading.Thread(target=tell_on, name="telling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
