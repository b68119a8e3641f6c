"""The cards of a cluster and who holds which part of them, as it is shown."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from cluster.estimator.words import gib
from runtime.show import table, table_html

_COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "bright_red", "bright_cyan", "bright_magenta")
_WIDTH = 24


@dataclass(frozen=True)
class Gpus:
    """One look at the ledger. In a notebook it shows itself."""

    picture: Mapping[str, Any]
    """Plain data: ``nodes`` with ``cards`` and ``shares``, ``waiting``, ``over``; see
    ``cluster.ledger.picture.draw``."""

    @property
    def cards(self) -> list[dict[str, Any]]:
        """A row for each card: node, index, product, memory, used as NVML says, free fraction, shares."""
        return [
            {"node": node["address"] or node["node_id"][:8], **card}
            for node in self.picture["nodes"]
            for card in node["cards"]
        ]

    @property
    def shares(self) -> list[dict[str, Any]]:
        """A row for each share: of a card, or of a node where there is none."""
        return [
            {"node": node["address"] or node["node_id"][:8], "card": card, **share}
            for node in self.picture["nodes"]
            for card, shares in _places(node)
            for share in shares
        ]

    @property
    def waiting(self) -> list[dict[str, Any]]:
        """Who waits for room: position, name, priority, reason."""
        return list(self.picture["waiting"])

    @property
    def over(self) -> list[str]:
        """Holders that use more than they promised."""
        return list(self.picture["over"])

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = []
        colours = _Colours()
        if self.cards:
            parts.append(Group(*(_line(card, colours) for card in self.cards)))
        else:
            parts.append(Text("No node of this cluster has a GPU. Shares are of the nodes' memory."))
        if self.shares:
            parts.append(table([share_row(one) for one in self.shares], _SHARE_COLUMNS, title="shares"))
        if self.waiting:
            parts.append(waiting_table(self.waiting))
        parts += [Text(f"{holder} uses more than it promised.", style="red") for holder in self.over]
        if self.picture["at"] is None:
            parts.append(Text("The ledger begins with the first training or app; nothing is held so far."))
        return Group(*parts)

    def _repr_html_(self) -> str:
        colours = _Colours()
        cards = "".join(_html_line(card, colours) for card in self.cards)
        rows = table_html([share_row(one) for one in self.shares])
        return f"{cards}{rows}{table_html([waiting_row(one) for one in self.waiting])}"


_SHARE_COLUMNS = ["holder", "worker", "node", "card", "share", "promised", "used", "over"]


def share_row(share: Mapping[str, Any]) -> dict[str, Any]:
    """A share for people."""
    part = f"{share['fraction']:g} GPU" if share["fraction"] else f"{share['cpus']:g} CPU"
    return {
        "holder": share["holder"],
        "worker": share["worker"] or "(not begun)",
        "node": share["node"],
        "card": "" if share["card"] is None else str(share["card"]),
        "share": part,
        "promised": _bytes(share["promised_bytes"]),
        "used": _bytes(share["used_bytes"]),
        "over": _bytes(share["over_bytes"] or None),
    }


def waiting_row(one: Mapping[str, Any]) -> dict[str, Any]:
    """One who waits, for people."""
    return {
        "position": one["position"],
        "name": one["name"],
        "priority": one["priority"],
        "waits": f"{one['waiting_s']:.0f} s",
        "reason": one["reason"],
    }


def waiting_table(waiting: list[dict[str, Any]]) -> RenderableType:
    """The queue."""
    rows = [waiting_row(one) for one in waiting]
    return table(rows, ["position", "name", "priority", "waits", "reason"], title="waiting for room")


def _places(node: Mapping[str, Any]) -> Iterator[tuple[int | None, list[dict[str, Any]]]]:
    for card in node["cards"]:
        yield card["index"], card["shares"]
    yield None, node["shares"]


def _bytes(size_bytes: int | None) -> str:
    return "" if size_bytes is None else gib(size_bytes)


class _Colours:
    """A colour for each holder, the same everywhere."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}

    def __getitem__(self, holder: str) -> str:
        return self._of.setdefault(holder, _COLOURS[len(self._of) % len(_COLOURS)])


def _line(card: Mapping[str, Any], colours: _Colours) -> Text:
    """One card: a bar of who holds how much, then its product and memory."""
    line = Text(f"{card['node']}  {card['index']}  ")
    drawn = 0
    end = 0.0
    for share in card["shares"]:
        end += share["fraction"] * _WIDTH
        line.append("█" * (round(end) - drawn), style=colours[share["holder"]])
        drawn = max(drawn, round(end))
    line.append("·" * (_WIDTH - drawn))
    # Several replicas of one app may be on a card: it is named once, with all that it holds.
    holders: dict[str, float] = {}
    for share in card["shares"]:
        holders[share["holder"]] = holders.get(share["holder"], 0.0) + share["fraction"]
    for holder, fraction in holders.items():
        line.append(f"  {fraction:g} {holder}", style=colours[holder])
    line.append(f"  {card['product'] or 'logical card'}")
    if card["memory_bytes"]:
        used = f"{gib(card['used_bytes'])} of " if card["used_bytes"] is not None else ""
        line.append(f", {used}{gib(card['memory_bytes'])}")
    return line


def _html_line(card: Mapping[str, Any], colours: _Colours) -> str:
    parts = "".join(
        f'<span title="{html.escape(share["holder"])}" style="display:inline-block;height:1em;'
        f"width:{share['fraction'] * 240:.0f}px;"
        f'background:{colours[share["holder"]].removeprefix("bright_")}"></span>'
        for share in card["shares"]
    )
    label = html.escape(f"{card['node']} {card['index']} {card['product'] or 'logical card'}")
    return (
        f'<div>{label} <span style="display:inline-block;width:240px;border:1px solid">{parts}</span> '
        f"{card['free']:g} free</div>"
    )
