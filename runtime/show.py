"""How things look: tables and loss curves, in a terminal and in a notebook."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, title: str = "") -> None:
    """Print ``rows`` as a table of ``columns``; a missing value is an empty cell."""
    first, *others = columns
    # People copy the first cell into the next command: it is never cut or folded.
    longest = max((len(_cell(row.get(first))) for row in rows), default=0)
    table = Table(Column(first, min_width=longest), *others, title=title or None, title_justify="left")
    for row in rows:
        # As text: brackets in an engine's message are no markup.
        table.add_row(*(Text(_cell(row.get(column))) for column in columns))
    console = Console()
    # Wider than the terminal rather than cut: the lines then wrap, and a pipe gets all.
    console.print(table, width=max(console.width, console.measure(table).minimum), crop=False)


def loss_curve(metrics: Iterable[Mapping[str, Any]], *, width: int = 78, height: int = 14) -> str:
    """The training loss over steps, drawn with characters; empty when nothing was logged."""
    import plotext

    points = _loss_points(metrics)
    if not points:
        return ""
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(width, height)
    plotext.plot([step for step, _ in points], [loss for _, loss in points], marker="braille")
    plotext.title("loss")
    plotext.xlabel("step")
    return str(plotext.uncolorize(plotext.build()))


def loss_figure_html(metrics: Iterable[Mapping[str, Any]], title: str) -> str:
    """The training loss over steps as an HTML image; empty when nothing was logged."""
    points = _loss_points(metrics)
    if not points:
        return ""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([step for step, _ in points], [loss for _, loss in points])
    axes.set(xlabel="step", ylabel="loss", title=title)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=100)
    return f'<img alt="loss curve" src="data:image/png;base64,{base64.b64encode(image.getvalue()).decode()}">'


def table_html(rows: Sequence[Mapping[str, Any]]) -> str:
    """``rows`` as an HTML table with the first row's keys as columns; empty for no rows."""
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(str(key))}</th>" for key in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_cell(value))}</td>" for value in row.values()) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _loss_points(metrics: Iterable[Mapping[str, Any]]) -> list[tuple[int, float]]:
    return [(int(row["step"]), float(row["loss"])) for row in metrics if row.get("loss") is not None]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
