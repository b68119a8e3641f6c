"""How things look: tables and loss curves, in a terminal and in a notebook."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Rows = Sequence[Mapping[str, Any]]


def print_table(rows: Rows, columns: Sequence[str], *, title: str = "") -> None:
    """Print ``rows`` as a table of ``columns``; a missing value is an empty cell."""
    console, made = Console(), table(rows, columns, title=title)
    # Wider than the terminal rather than cut: the lines then wrap, and a pipe gets all.
    console.print(made, width=max(console.width, console.measure(made).minimum), crop=False)


def table(rows: Rows, columns: Sequence[str], *, title: str = "") -> Table:
    """``rows`` as a table of ``columns`` for a terminal; a missing value is an empty cell."""
    first, *others = columns
    # People copy the first cell into the next command: it is never cut or folded.
    longest = max((len(cell(row.get(first))) for row in rows), default=0)
    folded = (Column(name, overflow="fold") for name in others)
    made = Table(Column(first, min_width=longest), *folded, title=title or None, title_justify="left")
    for row in rows:
        # As text: brackets in an engine's message are no markup.
        made.add_row(*(Text(cell(row.get(column))) for column in columns))
    return made


def loss_curve(metrics: Iterable[Mapping[str, Any]], *, width: int = 78, height: int = 14) -> str:
    """The training loss over steps, drawn with characters; empty when nothing was logged.

    Evaluations are drawn as ``e``.
    """
    rows = list(metrics)
    loss, eval_loss = _points(rows, "loss"), _points(rows, "eval_loss")
    if not loss:
        return ""
    plot = _fresh_plot(width, height)
    plot.plot(*zip(*loss, strict=True), marker="braille")
    if eval_loss:
        plot.scatter(*zip(*eval_loss, strict=True), marker="e")
    plot.title("loss (e: eval_loss)" if eval_loss else "loss")
    return str(plot.uncolorize(plot.build()))


def loss_curves(runs: Mapping[str, Rows], *, width: int = 78, height: int = 18) -> str:
    """The training losses of several runs over steps, each drawn with its one-letter name."""
    plot = _fresh_plot(width, height)
    found = {letter: points for letter, rows in runs.items() if (points := _points(rows, "loss"))}
    if not found:
        return ""
    for letter, points in found.items():
        plot.plot(*zip(*points, strict=True), marker=letter)
    plot.title(f"loss of {', '.join(found)}")
    return str(plot.uncolorize(plot.build()))


def loss_figure(runs: Mapping[str, Rows], *, title: str = "") -> Figure:
    """Loss and evaluation loss over steps of the runs, by their names, in one figure."""
    # Not pyplot: that keeps every figure of a process.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for number, (name, rows) in enumerate(runs.items()):
        for metric, line in (("loss", "-"), ("eval_loss", "o--")):
            if points := _points(rows, metric):
                axes.plot(
                    *zip(*points, strict=True), line, color=f"C{number}", ms=4, label=f"{name} {metric}"
                )
    axes.set(xlabel="step", ylabel="loss", title=title)
    if axes.lines:
        axes.legend(fontsize="small")
    return figure


def figure_html(figure: Figure) -> str:
    """The figure as an HTML image."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=100)
    return f'<img alt="loss curve" src="data:image/png;base64,{base64.b64encode(image.getvalue()).decode()}">'


def table_html(rows: Sequence[Mapping[str, Any]]) -> str:
    """``rows`` as an HTML table with the first row's keys as columns; empty for no rows."""
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(str(key))}</th>" for key in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell(value))}</td>" for value in row.values()) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _points(rows: Iterable[Mapping[str, Any]], metric: str) -> list[tuple[int, float]]:
    return [(int(row["step"]), float(row[metric])) for row in rows if row.get(metric) is not None]


def _fresh_plot(width: int, height: int) -> Any:
    import plotext

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(width, height)
    plotext.xlabel("step")
    return plotext
