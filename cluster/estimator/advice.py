"""What to change so that it fits: the cheapest changes first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

S = TypeVar("S")
_MOST_WAYS = 4


@dataclass(frozen=True)
class Change(Generic[S]):
    """One thing that a user may write otherwise."""

    words: str
    """In the spec's own fields: ``deepspeed: zero3``."""

    apply: Callable[[S], S | None]
    """The spec with it; None where it changes nothing, or cannot be."""

    words_of: Callable[[S], str] | None = None
    """The words, where they depend on what came out."""

    kind: str = ""
    """Of several of one kind (2, 4 and 8 GPUs) only the first that is enough is named."""

    def described(self, changed: S) -> str:
        """The words for what came out."""
        return self.words_of(changed) if self.words_of else self.words


@dataclass(frozen=True)
class Way:
    """Changes that together make it fit."""

    changes: tuple[str, ...]
    needed_bytes: int

    def __str__(self) -> str:
        return " and ".join(self.changes)


def ways_to_fit(
    start: S,
    changes: Sequence[Change[S]],
    needed_bytes: Callable[[S], int],
    short_bytes: Callable[[S], int],
) -> list[Way]:
    """Ways in which ``start`` would fit, the cheapest first; none where even all changes together do not do.

    Each change that is enough by itself is a way. Where none is, they are taken together in their order until
    they are enough, and those that were not needed are left out again.

    Args:
        changes: The cheapest first.
        needed_bytes: Of a spec, for the ways.
        short_bytes: What it lacks, wherever that is, on its GPU or in its node's memory; 0 where it fits.
    """
    single = []
    named: set[str] = set()
    for change in changes:
        if change.kind in named:
            continue
        changed = change.apply(start)
        if changed is not None and not short_bytes(changed):
            single.append(Way((change.described(changed),), needed_bytes(changed)))
            named |= {change.kind} - {""}
    return single[:_MOST_WAYS] or _together(start, changes, needed_bytes, short_bytes)


def _together(
    start: S,
    changes: Sequence[Change[S]],
    needed_bytes: Callable[[S], int],
    short_bytes: Callable[[S], int],
) -> list[Way]:
    taken = _until_enough(start, list(changes), short_bytes)
    if taken is None:
        return []
    # The most expensive ones are kept last: one that the later ones make needless goes again.
    for change in list(taken):
        fewer = [one for one in taken if one is not change]
        if (made := _applied(start, fewer)) and not short_bytes(made[0]):
            taken = fewer
    made = _applied(start, taken)
    if made is None:
        return []
    result, words = made
    return [Way(tuple(words), needed_bytes(result))]


def _until_enough(
    start: S, changes: list[Change[S]], short_bytes: Callable[[S], int]
) -> list[Change[S]] | None:
    taken: list[Change[S]] = []
    now = start
    while short_bytes(now):
        for change in changes:
            changed = None if change in taken else change.apply(now)
            if changed is not None and short_bytes(changed) < short_bytes(now):
                break
        else:
            return None
        # One that was of no use before may be now: what it makes smaller has become the largest.
        taken.append(change)
        now = changed
    return taken


def _applied(start: S, changes: Sequence[Change[S]]) -> tuple[S, list[str]] | None:
    now, words = start, []
    for change in changes:
        changed = change.apply(now)
        if changed is None:
            return None
        now = changed
        words.append(change.described(now))
    return now, words
