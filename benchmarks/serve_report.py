"""The tables of benchmarks/serve.py."""

import statistics
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """The runs of one server under one load, and those of the server that it is compared with."""

    load: str
    server: str
    runs: list[dict[str, Any]]
    against: list[dict[str, Any]]

    def figures(self, name: str) -> list[float]:
        """One figure of every run."""
        return [run[name] for run in self.runs]

    def ratios(self) -> list[float]:
        """Requests a second, against the other server in the same round."""
        pairs = zip(
            self.figures("requests_per_s"), (run["requests_per_s"] for run in self.against), strict=True
        )
        return [mine / theirs for mine, theirs in pairs]

    def later_ms(self) -> list[float]:
        """How much later the first token comes than from the other server."""
        pairs = zip(self.figures("ttft_p50_ms"), (run["ttft_p50_ms"] for run in self.against), strict=True)
        return [mine - theirs for mine, theirs in pairs]

    def cpu_ms(self) -> dict[str, float]:
        """CPU milliseconds per request of each part, medians of the runs."""
        parts = dict.fromkeys(part for run in self.runs for part in run["cpu_ms"])
        return {part: statistics.median(run["cpu_ms"].get(part, 0.0) for run in self.runs) for part in parts}

    def to_data(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "load": self.load,
            "server": self.server,
            "ratios": self.ratios(),
            "cpu_ms": self.cpu_ms(),
            "runs": self.runs,
        }


_FIGURES = {
    "requests_per_s": "requests/s",
    "tokens_per_s": "tokens/s",
    "ttft_p50_ms": "TTFT p50, ms",
    "ttft_p99_ms": "TTFT p99, ms",
    "itl_p50_ms": "ITL p50, ms",
    "itl_p99_ms": "ITL p99, ms",
}


def show_rows(console: Console, title: str, rows: list[Row]) -> None:
    """Speeds, the ratio of the pairs and how much later the first token comes, with their ranges."""
    if not rows:
        return
    table = Table(
        "load", "server", *_FIGURES.values(), "ratio", "later, ms", title=title, title_justify="left"
    )
    load = None
    for row in rows:
        if row.load != load:
            table.add_section()
        shown = [f"{statistics.median(row.figures(name)):.3g}" for name in _FIGURES]
        ratio, later = ("", "") if row.runs is row.against else (_range(row.ratios()), _range(row.later_ms()))
        table.add_row("" if row.load == load else row.load, row.server, *shown, ratio, later)
        load = row.load
    console.print(table)


def show_parts(console: Console, rows: list[Row]) -> None:
    """CPU milliseconds per request, by process."""
    if not rows:
        return
    used = [(row, row.cpu_ms()) for row in rows]
    client = {
        id(row): statistics.median(run["client_cpu_s"] * 1000 / run["requests"] for run in row.runs)
        for row in rows
    }
    parts = list(dict.fromkeys(part for _, cpu in used for part in cpu))
    table = Table("CPU ms/request", "server", *parts, "all", "(client)", title_justify="left")
    for row, cpu in used:
        shown = [f"{cpu[part]:.2f}" if part in cpu else "" for part in parts]
        table.add_row(row.load, row.server, *shown, f"{sum(cpu.values()):.2f}", f"{client[id(row)]:.2f}")
    console.print(table)


def _range(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"
