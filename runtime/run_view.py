"""How one run looks in a terminal: its report as tables and a loss curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from runtime.cli_options import in_words
from runtime.run import ENDED
from runtime.show import cell, loss_curve, table

_STYLES = {"SUCCEEDED": "green", "RUNNING": "cyan", "FAILED": "red", "STOPPED": "yellow"}
_WHEN = ("at", "time_s", "remaining_s", "max_steps", "runtime", "per_second")


def view(report: Mapping[str, Any], *, most_rows: int | None = None) -> RenderableType:
    """The report of ``run_report.report`` for a terminal.

    Args:
        most_rows: Tables are cut to so many of their newest rows, for a picture that fits the screen.
    """
    parts: list[RenderableType] = [_facts(report)]
    if curve := loss_curve(report["metrics"]):
        parts.append(Text(curve, no_wrap=True, overflow="crop"))
    newest = slice(-most_rows if most_rows else None, None)
    if rows := _evaluations(report["evaluations"]):
        parts.append(table(rows[newest], list(rows[-1]), title="evaluations"))
    if rows := _checkpoints(report["checkpoints"]):
        parts.append(table(rows[newest], list(rows[0]), title="committed checkpoints"))
    if rows := attempt_rows(report["attempts"], goes_on=report["status"] not in ENDED):
        parts.append(table(rows[newest], list(rows[0]), title="attempts"))
    return Group(*parts)


def duration(seconds: float | None) -> str:
    """A length of time for people; empty for None."""
    if seconds is None:
        return ""
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def attempt_rows(attempts: Sequence[Mapping[str, Any]], *, goes_on: bool) -> list[dict[str, Any]]:
    """Attempts for a table, in order. One that never said how it ended was cut off with its driver, but for
    the last one of a run that goes on.
    """
    return [
        {
            "attempt": number,
            "workers": attempt.get("num_workers"),
            "from step": attempt.get("from_step"),
            "ended": attempt.get("ended", "goes on" if goes_on and number == len(attempts) else "cut off"),
            "kept step": attempt.get("step"),
            "took": duration(_took_s(attempt)),
            "recovery": duration(attempt.get("recovery_s")),
            "reason": attempt.get("reason"),
        }
        for number, attempt in enumerate(attempts, start=1)
    ]


def _took_s(attempt: Mapping[str, Any]) -> float | None:
    began, ended = attempt.get("began_at"), attempt.get("ended_at")
    return ended - began if began and ended else None


def _facts(report: Mapping[str, Any]) -> Table:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    status = report["status"]
    head = Text.assemble(report["run_id"], "  ", (status, _STYLES.get(status, "")))
    spec = "  ".join(f"{name}={_worded(value)}" for name, value in report["spec"].items())
    lines: dict[str, str | Text | None] = {
        "run": head,
        "error" if status == "FAILED" else "why": report["error"],
        "waiting for": report["waiting"],
        "spec": spec,
        **_standing(report["standing"]),
        "model": report["model"],
        "folder": report["uri"],
    }
    for name, value in lines.items():
        if value:
            facts.add_row(name, value if isinstance(value, Text) else Text(value))
    return facts


def _standing(now: Mapping[str, Any]) -> dict[str, str]:
    """Lines of a few figures each; a figure that was never logged is left out."""

    def said(name: str, form: str, label: str = "") -> str:
        return f"{label}{format(now[name], form)}" if name in now else ""

    memory = f"memory peak {in_words(now['memory_peak_bytes'])}" if "memory_peak_bytes" in now else ""
    stall = (
        f"saves blocked training for {now['checkpoint_stall_s']:.1f} s" if "checkpoint_stall_s" in now else ""
    )
    step = f"{now['step']}/{now.get('max_steps', '?')}" if "step" in now else ""
    left = f"left {duration(now['remaining_s'])}" if now.get("remaining_s") else ""
    lines = {
        "step": [step, said("epoch", ".2f", "epoch "), left],
        "loss": [
            said("loss", ".4f"),
            said("eval_loss", ".4f", "eval_loss "),
            said("learning_rate", ".3g", "learning rate "),
            said("grad_norm", ".3g", "grad norm "),
        ],
        "speed": [
            f"{now['tokens_per_s']:,.0f} tokens/s" if "tokens_per_s" in now else "",
            f"{now['samples_per_s']:,.1f} samples/s" if "samples_per_s" in now else "",
            f"{now['step_time_s']:.3g} s a step" if "step_time_s" in now else "",
            said("mfu", ".1%", "MFU "),
        ],
        "machine": [memory, stall],
    }
    return {name: "   ".join(filter(None, parts)) for name, parts in lines.items()}


def _checkpoints(checkpoints: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "step": one["step"],
            "size": one["size"],
            "workers": one["num_workers"],
            "metrics": _short(one["metrics"]),
            "created at": str(one["created_at"])[:19],
        }
        for one in checkpoints
    ]


def _evaluations(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"step": row.get("step"), "metrics": _short(row)} for row in rows]


def _short(metrics: Mapping[str, Any]) -> str:
    """What was measured, without what says when."""
    kept = {name: value for name, value in metrics.items() if name != "step" and not name.endswith(_WHEN)}
    return "  ".join(f"{name} {cell(value)}" for name, value in kept.items())


def _worded(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list) else cell(value)
