"""What ``tandem cluster`` shows: live progress while things start, and tables of what there is."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cluster.kubernetes.apply import Applied
from cluster.kubernetes.readiness import State
from cluster.kubernetes.status import ClusterStatus


class Progress:
    """How far each object is: a picture that is renewed on a terminal, else a line for each news."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = (
            Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        )
        self._told: set[str] = set()

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, states: Sequence[State], troubles: Sequence[str]) -> None:
        """The newest picture."""
        if self._live:
            self._live.update(_picture(states, troubles), refresh=True)
            return
        for line in [f"{one.title}: {one.doing}" for one in states] + list(troubles):
            if line not in self._told:
                self._told.add(line)
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _picture(states: Sequence[State], troubles: Sequence[str]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for one in states:
        mark = Text("ready", "green") if one.is_ready else Text("waits", "yellow")
        table.add_row(mark, one.title, Text(one.doing, overflow="ellipsis", no_wrap=True))
    return Group(table, *(Text(one, "red") for one in troubles))


def print_applied(applied: Applied, console: Console) -> None:
    """What an apply did, in a few lines."""
    counts = (
        f"{len(applied.created)} created, {len(applied.changed)} changed, {len(applied.unchanged)} unchanged"
    )
    _say(console, counts)
    for note in applied.notes:
        _say(console, f"Note: {note}.")
    if applied.pruned:
        _say(console, f"Deleted: {', '.join(applied.pruned)}.")
    if applied.running:
        _say(console, f"Left running, for their specs were not given: {', '.join(applied.running)}.")
    if applied.left:
        _say(console, f"No longer rendered: {', '.join(applied.left)}. Delete them with --prune.")


def print_status(status: ClusterStatus, console: Console) -> None:
    """Objects, pods, address and troubles."""
    if not status.objects:
        _say(console, f"Nothing of {status.name} is in namespace {status.namespace}.")
        return
    objects = _table("", "kind", "name", "state", "conditions")
    for one in status.objects:
        mark = Text("ready", "green") if one.is_ready else Text("waits", "yellow")
        objects.add_row(mark, one.kind, one.name, Text(one.doing), ", ".join(one.conditions))
    console.print(objects)
    pods = _table("part", "group", "running", "ready", "waiting")
    for row in status.pods:
        pods.add_row(row.part, row.group, str(row.running), str(row.ready), str(row.waiting))
    if status.pods:
        console.print(pods)
    _say(console, f"Endpoint   {status.endpoint or 'no address yet'}")
    for trouble in status.troubles:
        console.print(Text(trouble, "red"), soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
