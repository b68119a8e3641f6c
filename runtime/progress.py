"""Watching a run: a live bar with step, loss, speed and time left, or its whole report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from runtime.run import ENDED, Run
from runtime.run_report import last, report
from runtime.run_view import view

_POLL_S = 0.3
_REMOTE_POLL_S = 1.0
"""An object store is asked less often: every look is a request."""
_MOST_ROWS = 4
"""Of each table in a live report: more would not fit a screen."""


def follow(run: Run, console: Console) -> None:
    """Show the run until it ends.

    Raises:
        RunFailed: it failed or was stopped.
        ClusterError: the cluster has not answered for two minutes; the run may go on.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("step {task.completed:.0f}/{task.fields[steps]}  loss {task.fields[loss]}"),
        TextColumn("{task.fields[speed]}"),
        TextColumn("left {task.fields[left]}"),
        TimeElapsedColumn(),
    )
    pause_s = _pause_s(run)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=None, steps="?", loss="?", speed="", left="?")
        news = _News(run, console)
        next_status_s = 0.0
        status = "PENDING"
        while status not in ENDED:
            _update(bar, task, run)
            if time.monotonic() >= next_status_s:
                bar.update(task, description=news.look())
                status = run.poll()
                next_status_s = time.monotonic() + 3 * pause_s
            time.sleep(pause_s)
        _update(bar, task, run)
        bar.update(task, description=status.lower(), left="0:00:00")
    run.raise_if_failed()


def watch(run: Run, console: Console) -> None:
    """Show the run's whole report, always up to date, until it has ended.

    Raises:
        ClusterError: the cluster has not answered for two minutes; the run may go on.
    """
    # The last picture is the caller's: the whole report, however long it is.
    with Live(console=console, transient=True, auto_refresh=False) as live:
        while run.poll() not in ENDED:
            live.update(view(report(run), most_rows=_MOST_ROWS), refresh=True)
            time.sleep(3 * _pause_s(run))


class _News:
    """What becomes of a run besides its steps: a word for the bar, a line above it when something happens."""

    def __init__(self, run: Run, console: Console) -> None:
        self._run, self._console = run, console
        self._waiting: str | None = None
        begun = [n for n, attempt in enumerate(run.attempts(), start=1) if "first_step_at" in attempt]
        self._told = begun[-1] if begun else 0

    def look(self) -> str:
        """What the run does now, in a word or two."""
        waiting = self._run.folder.waiting()
        if waiting and waiting != self._waiting:
            self._say(f"waiting for {waiting}")
        self._waiting = waiting
        attempts = self._run.attempts()
        for number in range(self._told, len(attempts)):
            if "first_step_at" in attempts[number]:
                self._tell_how_it_went_on(attempts, number)
                self._told = number + 1
        if waiting:
            return "waiting for room"
        if attempts:
            if "first_step_at" in attempts[-1] and "ended" not in attempts[-1]:
                return "training"
            return "recovering" if "ended" in attempts[0] else "starting"
        return "training" if self._run.folder.metrics() else "starting"

    def _tell_how_it_went_on(self, attempts: Sequence[dict[str, Any]], number: int) -> None:
        if number == 0:
            return
        attempt, reason = attempts[number], attempts[number - 1].get("reason")
        took = f" in {attempt['recovery_s']:.0f} s" if attempt.get("recovery_s") is not None else ""
        self._say(
            f"recovered from step {attempt.get('from_step', 0)}{took}" + (f" ({reason})" if reason else "")
        )

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)


def _pause_s(run: Run) -> float:
    return _POLL_S if run.folder.place.backend.is_local else _REMOTE_POLL_S


def _update(bar: Progress, task: Any, run: Run) -> None:
    rows = [row for row in run.folder.metrics() if row.get("loss") is not None]
    if not rows:
        return
    line, tokens_per_s = rows[-1], last(rows, "tokens_per_s")
    bar.update(
        task,
        completed=line["step"],
        total=line["max_steps"],
        steps=line["max_steps"],
        loss=f"{line['loss']:.4f}",
        speed="" if tokens_per_s is None else f"{tokens_per_s:,.0f} tokens/s",
        left=str(timedelta(seconds=round(line.get("remaining_s") or 0))),
    )
