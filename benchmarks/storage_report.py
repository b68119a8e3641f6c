"""The storage benchmark's figures: medians over runs, ratios over pairs, and how they are shown."""

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.storage_child import MIB

Runs = Sequence[Mapping[str, float]]
"""What each counted run took, as ``storage_child.measured`` says it."""

_GIB = 1 << 30


@dataclass(frozen=True)
class Result:
    """One operation: every client's runs, in the order of the rounds."""

    name: str
    total_bytes: int
    tandem: Runs
    raw: Mapping[str, Runs]
    """By client; empty where none is installed that can do it."""

    @property
    def best_raw(self) -> str | None:
        """The raw client with the highest median speed."""
        return max(self.raw, key=lambda client: self.speed(self.raw[client]), default=None)

    def speed(self, runs: Runs) -> float:
        """MiB/s, median."""
        return statistics.median(self._speeds(runs))

    def _speeds(self, runs: Runs) -> list[float]:
        return [self.total_bytes / MIB / run["seconds"] for run in runs]

    def cpu_s_per_gib(self, runs: Runs) -> float:
        """Seconds of processor time, median."""
        return statistics.median(run["cpu_s"] for run in runs) * _GIB / self.total_bytes

    def peak_mib(self, runs: Runs) -> float:
        """Memory above idle, the largest of the runs."""
        return max(run["peak_bytes"] for run in runs) / MIB

    def ratios(self, client: str) -> list[float]:
        """Tandem's speed over the client's, round by round."""
        pairs = zip(self._speeds(self.tandem), self._speeds(self.raw[client]), strict=True)
        return [ours / theirs for ours, theirs in pairs]

    def spread(self, client: str) -> float:
        """How far the client's own runs lie apart: (fastest - slowest) / median. The machine's noise."""
        speeds = self._speeds(self.raw[client])
        return (max(speeds) - min(speeds)) / statistics.median(speeds)

    def to_data(self) -> dict[str, Any]:
        """Everything, for ``--json``."""
        return {
            "operation": self.name,
            "total_bytes": self.total_bytes,
            "best_raw": self.best_raw,
            "tandem": list(self.tandem),
            "raw": {client: list(runs) for client, runs in self.raw.items()},
        }


def show(console: Console, results: Sequence[Result]) -> None:
    """The table of pairs, the table of every raw client, and the noise."""
    main = Table(title="Tandem and the best raw client of each operation")
    for heading in ("operation", "Tandem\nMiB/s", "best raw client", "its\nMiB/s", "ratio (min to max)"):
        main.add_column(heading, justify="left" if heading in ("operation", "best raw client") else "right")
    for heading in ("CPU s/GiB\nTandem, raw", "peak MiB\nTandem, raw"):
        main.add_column(heading, justify="right")
    for result in results:
        main.add_row(*_row(result))
    console.print(main)
    every = Table(title="Every client, MiB/s, CPU s/GiB, peak MiB")
    for heading in ("operation", "clients, the fastest first"):
        every.add_column(heading)
    for result in results:
        every.add_row(result.name, "\n".join(_clients(result)))
    console.print(every)


def _row(result: Result) -> list[str]:
    ours, best = result.tandem, result.best_raw
    speed, cpu, peak = (f(ours) for f in (result.speed, result.cpu_s_per_gib, result.peak_mib))
    if best is None:
        return [result.name, f"{speed:,.0f}", "none installed", "", "", f"{cpu:.2f}", f"{peak:.0f}"]
    theirs, ratios = result.raw[best], result.ratios(best)
    return [
        result.name,
        f"{speed:,.0f}",
        best,
        f"{result.speed(theirs):,.0f}",
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        f"{cpu:.2f}, {result.cpu_s_per_gib(theirs):.2f}",
        f"{peak:.0f}, {_peak(result, best)}",
    ]


def _clients(result: Result) -> list[str]:
    every = {"Tandem": result.tandem, **result.raw}
    ordered = sorted(every, key=lambda client: -result.speed(every[client]))
    return [
        f"{client}: {result.speed(every[client]):,.0f}, {result.cpu_s_per_gib(every[client]):.2f}, "
        f"{_peak(result, client)}"
        for client in ordered
    ]


def _peak(result: Result, client: str) -> str:
    # cp is another process, whose memory we do not see.
    if client == "cp":
        return "-"
    return f"{result.peak_mib(result.tandem if client == 'Tandem' else result.raw[client]):.0f}"


def show_noise(console: Console, results: Sequence[Result], loads: Mapping[str, float]) -> None:
    """The machine, how busy it was, and how far the best raw client's own runs lie apart."""
    spreads = sorted(result.spread(result.best_raw) for result in results if result.best_raw)
    text = f"Machine: {len(os.sched_getaffinity(0))} cores; load average (1 min) " + ", ".join(
        f"{load:.1f} {when}" for when, load in loads.items()
    )
    if spreads:
        text += (
            f". The best raw clients' own runs: fastest minus slowest is {statistics.median(spreads):.0%} of "
            f"the median for the middle operation, {spreads[-1]:.0%} for the worst"
        )
    console.print(f"{text}.")


def show_cache(console: Console, total_bytes: int, openings: Sequence[Mapping[str, Any]]) -> None:
    """The first opening of a model, and those that find it cached."""
    firsts = [one["first"]["seconds"] for one in openings]
    console.print(
        f"Cache, {total_bytes // MIB:,} MiB model: first opening from a store on the same disk "
        f"{statistics.median(firsts):.2f} s ({min(firsts):.2f} to {max(firsts):.2f}); cached: "
        f"{_ms(openings, 'fetch_ms')}; cached, found by name: {_ms(openings, 'find_and_fetch_ms')}."
    )


def _ms(openings: Sequence[Mapping[str, Any]], name: str) -> str:
    taken = [ms for one in openings for ms in one[name]]
    return f"{statistics.median(taken):.2f} ms, at most {max(taken):.2f} ms of {len(taken)}"
