"""Watching a run: a live bar with step, loss and time left."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from runtime.run import ENDED, Run

_POLL_S = 0.3
_REMOTE_POLL_S = 1.0
"""An object store is asked less often: every look is a request."""


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
        TextColumn("left {task.fields[left]}"),
        TimeElapsedColumn(),
    )
    pause_s = _POLL_S if run.folder.place.backend.is_local else _REMOTE_POLL_S
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=None, steps="?", loss="?", left="?")
        next_status_s = 0.0
        status = "PENDING"
        while status not in ENDED:
            _update(bar, task, run)
            if time.monotonic() >= next_status_s:
                status = run.poll()
                next_status_s = time.monotonic() + 3 * pause_s
            time.sleep(pause_s)
        _update(bar, task, run)
        bar.update(task, description=status.lower(), left="0:00:00")
    run.raise_if_failed()


def _update(bar: Progress, task: Any, run: Run) -> None:
    rows = [row for row in run.folder.metrics() if row.get("loss") is not None]
    if not rows:
        return
    last = rows[-1]
    left = timedelta(seconds=round(last.get("remaining_s") or 0))
    bar.update(
        task,
        description="training",
        completed=last["step"],
        total=last["max_steps"],
        steps=last["max_steps"],
        loss=f"{last['loss']:.4f}",
        left=str(left),
    )
