"""Two or more runs side by side: what they were told differently, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from runtime.core.errors import ConfigError
from runtime.run import Run
from runtime.run_report import last, wall_time_s
from runtime.show import Rows, figure_html, loss_figure, table_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def compare(*runs: Run) -> Comparison:
    """Look at the runs as they stand now.

    Raises:
        ConfigError: they are not at least two, or one is named twice.
    """
    run_ids = [run.run_id for run in runs]
    if len(run_ids) < 2 or len(set(run_ids)) < len(run_ids):
        raise ConfigError(
            f"runs to compare are {', '.join(run_ids) or 'none'}. Name two or more that differ; a name alone "
            "means its newest run. See: tandem runs."
        )
    specs = {run.run_id: _flat(json.loads(run.folder.spec_json())) for run in runs}
    metrics = {run.run_id: run.folder.metrics() for run in runs}
    return Comparison(
        statuses={run.run_id: run.status for run in runs},
        spec=_differing(specs),
        outcome=_outcome(runs, metrics),
        metrics=metrics,
    )


@dataclass(frozen=True)
class Comparison:
    """Runs side by side. A notebook shows the tables and the loss curves in one figure."""

    statuses: dict[str, str]
    """Each run's status, by its id."""

    spec: list[dict[str, Any]]
    """A row for each field in which the specs differ: ``name`` (dotted) and a column for each run."""

    outcome: list[dict[str, Any]]
    """A row for each figure: ``name`` and a column for each run. ``loss`` and ``eval_loss`` are the last
    ones, ``best_...`` the lowest, speeds the median over all lines."""

    metrics: Mapping[str, Rows]
    """All lines of each run's metrics, by its id."""

    def table(self) -> list[dict[str, Any]]:
        """All rows in one list, as ``pandas.DataFrame`` takes it; ``what`` is status, spec or metric."""
        return [
            {"what": "status", "name": "status"} | self.statuses,
            *({"what": "spec"} | row for row in self.spec),
            *({"what": "metric"} | row for row in self.outcome),
        ]

    def plot(self) -> Figure:
        """The runs' losses and evaluation losses in one figure."""
        return loss_figure(self.metrics)

    def _repr_html_(self) -> str:
        return table_html(self.table()) + figure_html(self.plot())


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    inner = (_flat(item, f"{prefix}.{name}" if prefix else str(name)) for name, item in value.items())
    return {name: item for part in inner for name, item in part.items()}


def _differing(specs: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    names = dict.fromkeys(name for spec in specs.values() for name in spec)
    rows = [{"name": name} | {run_id: spec.get(name) for run_id, spec in specs.items()} for name in names]
    return [row for row in rows if any(row[run_id] != row[next(iter(specs))] for run_id in specs)]


def _outcome(runs: tuple[Run, ...], metrics: Mapping[str, Rows]) -> list[dict[str, Any]]:
    evaluated = all(last(rows, "eval_loss") is not None for rows in metrics.values())
    rated = "eval_loss" if evaluated else "loss"
    columns = {
        run.run_id: {
            "step": last(rows, "step"),
            "loss": last(rows, "loss"),
            "eval_loss": last(rows, "eval_loss"),
            f"best_{rated}": min(_all(rows, rated), default=None),
            "tokens_per_s": _median(rows, "tokens_per_s"),
            "samples_per_s": _median(rows, "samples_per_s"),
            "step_time_s": _median(rows, "step_time_s"),
            "mfu": _median(rows, "mfu"),
            "wall_time_s": wall_time_s(run, rows),
        }
        for run, rows in zip(runs, metrics.values(), strict=True)
    }
    names = next(iter(columns.values()))
    rows = [{"name": name} | {run_id: found[name] for run_id, found in columns.items()} for name in names]
    return [row for row in rows if any(row[run_id] is not None for run_id in columns)]


def _all(rows: Rows, name: str) -> list[float]:
    return [row[name] for row in rows if row.get(name) is not None]


def _median(rows: Rows, name: str) -> float | None:
    """The first line holds the warm-up: a mean would tell of that."""
    values = _all(rows, name)
    return median(values) if values else None
