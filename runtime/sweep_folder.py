"""A sweep in the store: what it runs, which run each trial is, and the result, the best trial first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runtime.core.config import ConfigModel, load_spec
from storage.location import Location, side_by_side
from train_jobs.sweep import SweepPlan


class TrialRow(ConfigModel):
    """One trial, as far as it has come."""

    trial: int
    """Its number, from 1 on, in the order of their start."""

    params: dict[str, Any]
    """The searched fields and their values."""

    run_id: str | None = None
    """Its run; None before it was submitted."""

    status: str = "PENDING"
    """The run's status."""

    step: int | None = None
    """The last logged step."""

    metric: float | None = None
    """The last value of the sweep's metric; None where there is none yet, or it is no number."""

    error: str | None = None
    """Why it failed or was stopped."""

    best: bool = False
    """Whether it is the best of those that trained to their end."""


class SweepResult(ConfigModel):
    """How a sweep ended: also ``result.json`` in its folder."""

    sweep_id: str
    """The sweep."""

    status: str
    """``SUCCEEDED`` when at least one trial trained to its end, else ``FAILED``."""

    metric: str
    """What the trials are sorted by."""

    trials: list[TrialRow]
    """The best first; those that were stopped or failed come after those that trained to their end."""

    error: str | None = None
    """Why it failed."""

    @property
    def best(self) -> TrialRow | None:
        """The best trial, or None where none trained to its end."""
        return next((row for row in self.trials if row.best), None)


@dataclass(frozen=True)
class SweepFolder:
    """One sweep in the store, ``sweeps/<name>/<sweep-id>/``: ``sweep.json``, ``job.json``, ``trials/``,
    ``result.json``. Its runs are where all runs are."""

    place: Location
    """The folder."""

    @property
    def sweep_id(self) -> str:
        """``<name>-sweep-<UTC date>-<time>-<4 hex digits>``; also the Ray job's submission id."""
        return self.place.name

    def plan(self) -> SweepPlan:
        """What the sweep runs."""
        return load_spec(SweepPlan, (self.place / "sweep.json").read_json())

    def job(self) -> dict[str, Any]:
        """Where its job runs: ``dashboard_url``."""
        return dict((self.place / "job.json").read_json())

    def write_trial(self, number: int, **fields: Any) -> None:
        """Say which run a trial is (``run_id``), or why it is none (``error``). Each trial has one writer."""
        (self.place / "trials" / f"{number:05d}.json").write_json(fields)

    def started(self) -> dict[int, dict[str, Any]]:
        """What was said of each trial that has begun."""
        places = [self.place.at(entry) for entry in (self.place / "trials").find()]
        found = side_by_side(lambda place: place.read_json(), places)
        return {
            int(place.name.removesuffix(".json")): said or {}
            for place, said in zip(places, found, strict=True)
        }

    def result(self) -> SweepResult | None:
        """How it ended, or None yet."""
        found = (self.place / "result.json").read_json()
        return None if found is None else load_spec(SweepResult, found)

    def write_result(self, result: SweepResult) -> None:
        """Say how it ended, in one step."""
        (self.place / "result.json").write_bytes(result.to_json().encode())


def ranked(rows: list[TrialRow], *, mode: str) -> list[TrialRow]:
    """``rows`` with the best first and marked: those that trained to their end first, then by metric."""
    sign = 1.0 if mode == "min" else -1.0

    def key(row: TrialRow) -> tuple[bool, bool, float, int]:
        return row.status != "SUCCEEDED", row.metric is None, sign * (row.metric or 0.0), row.trial

    ordered = sorted(rows, key=key)
    if ordered and ordered[0].status == "SUCCEEDED" and ordered[0].metric is not None:
        ordered[0] = ordered[0].model_copy(update={"best": True})
    return ordered
