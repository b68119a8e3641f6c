"""How an estimate looks: a bar of where the bytes go, what would make it fit, and on what it would."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.estimator.terms import Term
from cluster.estimator.words import gib
from runtime.estimate import Overview, Report
from runtime.show import table, table_html

_COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red", "white", "bright_cyan", "bright_magenta")
_WIDTH = 64
_HARDWARE_SHOWN = 8


def print_report(report: Report) -> None:
    """Print it."""
    console = Console()
    for part in _parts(report):
        console.print(part, soft_wrap=isinstance(part, Text))


def _parts(report: Report) -> list[RenderableType]:
    colour = {True: "green", False: "red", None: "default"}[report.fits]
    each = "each of its " + f"{report.workers} workers" if report.workers > 1 else "it"
    shown: list[RenderableType] = [
        Text(f"{report.name} ({report.kind}, {report.model}): {each} {report.verdict}", style=colour),
        _bar(report),
        _terms(report),
    ]
    if report.host_bytes:
        shown.append(Text(f"Beside it {gib(report.host_bytes)} of its node's memory for each worker."))
    shown += [Text(line) for line in _figures(report)]
    if report.fits is False:
        shown.append(Text("It fits with:" if report.ways else "No change that is tried here makes it fit."))
        shown += [Text(f"  {way}") for way in report.ways]
    if report.hardware:
        rows = [_hardware_row(row) for row in report.hardware[:_HARDWARE_SHOWN]]
        shown.append(table(rows, ["GPUs", "memory each", "needed each", "filled"], title="fits on"))
    return shown


def _bar(report: Report) -> RenderableType:
    """A character is so many bytes; what is free is dotted, and what is too much stands beyond a mark."""
    on_device = [term for term in report.terms if term.on == "device"]
    whole = max(report.available_bytes or 0, sum(term.size_bytes for term in on_device), 1)
    bar = Text()
    drawn = 0
    end = 0.0
    for term, colour in zip(on_device, _colours(on_device), strict=True):
        end += term.size_bytes / whole * _WIDTH
        bar.append("█" * (round(end) - drawn), style=colour)
        drawn = round(end)
    bar.append("·" * (_WIDTH - drawn))
    if report.available_bytes and report.available_bytes < whole:
        at = round(report.available_bytes / whole * _WIDTH)
        mark = Text(" " * at + f"▲ {gib(report.available_bytes)} is what it has")
        return Group(bar, mark)
    return bar


def _colours(terms: Sequence[Term]) -> list[str]:
    return [_COLOURS[number % len(_COLOURS)] for number in range(len(terms))]


def _terms(report: Report) -> Table:
    made = Table(box=None, pad_edge=False)
    made.add_column("")
    made.add_column("")
    made.add_column("bytes", justify="right")
    made.add_column("made of", overflow="fold")
    made.add_column("source", overflow="fold", style="dim")
    for term, colour in zip(report.terms, _colours(report.terms), strict=True):
        mark = Text("█", style=colour) if term.on == "device" else Text(term.on)
        made.add_row(mark, term.name, gib(term.size_bytes), term.formula, term.source)
    return made


def _figures(report: Report) -> list[str]:
    found = report.figures
    if report.kind == "serve":
        if found["kv_cache_tokens"] is None:
            return []
        return [
            f"KV cache: {found['kv_cache_tokens']:,} tokens at once, {found['sequences']:.1f} sequences of "
            f"max_model_len {found['max_model_len']:,}. The longest max_model_len that fits: "
            f"{found['largest_max_model_len']:,}."
        ]
    lines = [f"{found['tokens_per_step']:,} tokens a step at most (rows of cutoff_len)."]
    if "tokens_per_s" in found:
        least, most = found["tokens_per_s"]
        lines.append(f"{least:,.0f} to {most:,.0f} tokens/s: 20% to 50% of the GPUs' FLOPs.")
    if "training_s" in found:
        least, most = found["training_s"]
        lines.append(f"Training would take {_time(least)} to {_time(most)}.")
    return lines


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _hardware_row(row: dict[str, Any]) -> dict[str, str]:
    return {
        "GPUs": f"{row['count']} x {row['gpu']}",
        "memory each": gib(row["memory_bytes"]),
        "needed each": gib(row["needed_bytes"]),
        "filled": f"{row['filled']:.0%}",
    }


def print_overview(found: Overview) -> None:
    """Print it."""
    console = Console()
    console.print(table(_overview_rows(found), _overview_columns(found), title=_overview_title(found)))
    console.print(
        f"The least number of GPUs: serve with a context of {found.context:,} tokens (tensor parallel); "
        "QLoRA, LoRA and full with a row of 2,048 tokens at a time (ZeRO-3 over several). A dash: eight are "
        "too few.",
        soft_wrap=True,
    )


def _overview_title(found: Overview) -> str:
    return f"{found.model}: {found.parameters / 1e9:.3g} billion parameters"


def _overview_columns(found: Overview) -> list[str]:
    return ["GPU", "memory", *(name for name in found.rows[0] if name not in ("gpu", "memory_bytes"))]


def _overview_rows(found: Overview) -> list[dict[str, Any]]:
    shown = []
    for row in found.rows:
        counts = {name: value for name, value in row.items() if name not in ("gpu", "memory_bytes")}
        shown.append(
            {"GPU": row["gpu"], "memory": gib(row["memory_bytes"])}
            | {name: "-" if count is None else str(count) for name, count in counts.items()}
        )
    return shown


def overview_html(found: Overview) -> str:
    """As a table of a notebook."""
    return f"<p>{html.escape(_overview_title(found))}</p>{table_html(_overview_rows(found))}"


def report_html(report: Report) -> str:
    """As a bar and tables of a notebook."""
    terms = [
        {"term": term.name, "on": term.on, "bytes": gib(term.size_bytes), "made of": term.formula}
        for term in report.terms
    ]
    ways = "".join(f"<li>{html.escape(way)}</li>" for way in report.ways)
    return (
        f"<p><b>{html.escape(report.name)}</b>: {html.escape(report.verdict)}</p>{_figure(report)}"
        f"{table_html(terms)}" + (f"<p>It fits with</p><ul>{ways}</ul>" if ways else "")
    )


def _figure(report: Report) -> str:
    # Not pyplot: that keeps every figure of a process.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.3))
    axes = figure.subplots()
    left = 0.0
    for term in (term for term in report.terms if term.on == "device"):
        size = term.size_bytes / (1 << 30)
        axes.barh([0], [size], left=[left], label=term.name)
        left += size
    if report.available_bytes is not None:
        axes.axvline(report.available_bytes / (1 << 30), color="black", linestyle="--")
    axes.set(yticks=[], xlabel="GiB")
    axes.legend(fontsize="x-small", ncols=5, loc="upper center", bbox_to_anchor=(0.5, 1.9))
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=100, bbox_inches="tight")
    return f'<img alt="bytes" src="data:image/png;base64,{base64.b64encode(image.getvalue()).decode()}">'
