"""The cards of a simulated cluster drawn with letters, and their use over time with bars."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from string import ascii_lowercase, ascii_uppercase

from rich.text import Text

from cluster.inventory import Node
from cluster.placement import Slot
from cluster.simulation import Moment, Outcome, Simulated

_LETTERS = ascii_uppercase + ascii_lowercase
_OTHERS = "#"
_FREE = "·"
_COLOURS = (
    "cyan", "green", "yellow", "magenta", "blue", "red",
    "bright_cyan", "bright_green", "bright_yellow", "bright_magenta", "bright_blue", "bright_red",
)  # fmt: skip
_CELL = 4
"""Characters of a card: quarters."""
_MOST_LINES = 24
"""Of nodes: a terminal's height. Where there are more, equal nodes share a line."""
_BARS = " ▁▂▃▄▅▆▇█"
_HIGHEST = len(_BARS) - 1
_COLUMNS = 60

Holders = Mapping[tuple[str, int | None], Mapping[str, float]]
"""By node and card: the fraction that each letter holds."""


def letters(result: Simulated) -> dict[str, str]:
    """A letter for each entry of the workload; those beyond the alphabets share ``#``."""
    names = dict.fromkeys(outcome.arrival for outcome in result.outcomes)
    return {name: _LETTERS[at] if at < len(_LETTERS) else _OTHERS for at, name in enumerate(names)}


def node_lines(result: Simulated, at_s: float) -> list[Text]:
    """One line a node, or one for all equal nodes where there are many: a cell a card, as full as it is."""
    holders = _holders(result, at_s)
    nodes = [(node.node_id, _node(node, holders)) for node in result.inventory.nodes]
    lines = nodes if len(nodes) <= _MOST_LINES else _collapsed(nodes)
    shown, others = lines[:_MOST_LINES], lines[_MOST_LINES:]
    width = max(len(label) for label, _ in shown)
    drawn = [_coloured(f"{label:{width}}  ", picture or "no GPUs") for label, picture in shown]
    if others:
        drawn.append(Text(f"and {len(others)} more kinds of nodes; --json has all"))
    return drawn


def legend(result: Simulated, at_s: float) -> Text:
    """Whose the letters are, of those that run at ``at_s``."""
    running = Counter(outcome.arrival for outcome in result.outcomes if outcome.runs_at(at_s))
    line, by_name = Text(), letters(result)
    for name, count in running.items():
        line.append(by_name[name], style=_style(by_name[name]))
        line.append(f" {name}{f' x {count}' if count > 1 else ''}   ")
    return line.append(f"{_FREE} free")


def over_time(result: Simulated) -> str:
    """Used cards over time, as bars that are each the mean of a part of it; empty where no time passes."""
    cards, start_s = result.inventory.cards, result.timeline[0].at_s
    span = result.end_s - start_s
    if not cards or not span:
        return ""
    means = _means(result.timeline, start_s, span / _COLUMNS)
    # Rounded up: a little is not nothing.
    bars = "".join(_BARS[min(_HIGHEST, math.ceil(mean / cards * _HIGHEST))] for mean in means)
    most = max(moment.used for moment in result.timeline)
    return (
        f"Used cards from {start_s:g} to {result.end_s:g} s: at most {most:g} of {cards}, "
        f"{result.utilization:.0%} on average\n|{bars}|"
    )


def _means(timeline: Sequence[Moment], start_s: float, step_s: float) -> list[float]:
    """Used cards on average in each column."""
    areas = [0.0] * _COLUMNS
    for one, following in pairwise(timeline):
        begin, end = (one.at_s - start_s) / step_s, (following.at_s - start_s) / step_s
        for column in range(int(begin), min(_COLUMNS, int(end) + 1)):
            areas[column] += one.used * max(0.0, min(end, column + 1) - max(begin, column))
    return areas


def _holders(result: Simulated, at_s: float) -> Holders:
    by_name = letters(result)
    found: dict[tuple[str, int | None], dict[str, float]] = defaultdict(dict)
    for slot, outcome in _slots(result.outcomes, at_s):
        letter, card = by_name[outcome.arrival], found[slot.node_id, slot.card]
        card[letter] = card.get(letter, 0.0) + slot.fraction
    return found


def _slots(outcomes: Iterable[Outcome], at_s: float) -> Iterable[tuple[Slot, Outcome]]:
    for outcome in outcomes:
        if outcome.placement and outcome.runs_at(at_s):
            yield from ((slot, outcome) for slot in outcome.placement.slots if slot.card is not None)


def _node(node: Node, holders: Holders) -> str:
    return " ".join(cell(holders.get((node.node_id, card.index), {})) for card in node.cards)


def cell(held: Mapping[str, float]) -> str:
    """One card: ``AAB·`` is half A's, a quarter B's, a quarter free.

    Whoever holds something has a letter, up to four of them; a card that is full shows nothing free.
    """
    used = min(_CELL, max(len(held), round(sum(held.values()) * _CELL)))
    largest = sorted(held, key=lambda letter: (-held[letter], letter))
    drawn = dict.fromkeys(largest[:used], 1)
    for _ in range(used - len(drawn)):
        drawn[max(drawn, key=lambda letter: held[letter] - drawn[letter] / _CELL)] += 1
    return "".join(letter * count for letter, count in sorted(drawn.items())).ljust(_CELL, _FREE)


def _collapsed(nodes: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Nodes that look alike together, whatever the order of their cards, the most nodes first."""
    alike: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, picture in nodes:
        alike[" ".join(sorted(picture.split(" ")))].append((name, picture))
    groups = sorted(alike.values(), key=len, reverse=True)
    labels = (f"{len(group)} x {group[0][0]}" if len(group) > 1 else group[0][0] for group in groups)
    return [(label, group[0][1]) for label, group in zip(labels, groups, strict=True)]


def _coloured(label: str, picture: str) -> Text:
    line = Text(label)
    for character in picture:
        line.append(character, style=_style(character))
    return line


def _style(letter: str) -> str:
    return _COLOURS[_LETTERS.index(letter) % len(_COLOURS)] if letter in _LETTERS else "dim"
