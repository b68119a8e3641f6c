"""A sweep, as its owner sees it: started, watched, its trials sorted by their metric, stopped.

from runtime import Tandem
from runtime.sweep import sweep

result = sweep(Tandem(), "sweep.yaml")      # waits; start_sweep returns at once
print(result.best.params, result.best.run_id)
"""

from __future__ import annotations

import math
import re
import secrets
import shlex
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster import jobs, local
from cluster.code import code_snapshot
from cluster.environments import check_pair
from cluster.inventory import Inventory
from runtime.core.config import blamed_on, load_spec, origin_of
from runtime.core.errors import ClusterError, ConfigError, TandemError, WaitTimeout
from runtime.core.lookup import did_you_mean
from runtime.run import ENDED, Run
from runtime.sdk import Tandem
from runtime.sweep_folder import SweepFolder, SweepResult, TrialRow, ranked
from storage.location import side_by_side
from storage.store import Store, open_store
from storage.workspace import storage_env
from train_jobs.sweep import SweepPlan, plan_sweep
from train_jobs.sweep_spec import SweepSpec

SweepSource = SweepSpec | Mapping[str, Any] | str | Path

_SWEEP_ID = re.compile(r"(?P<name>.+)-sweep-\d{8}-\d{6}-[0-9a-f]{4}")
_POLL_S = 1.0
_UNKNOWN_S = 120.0
_STOP_TIMEOUT_S = 60.0


class Sweep:
    """A sweep in the store. Get one from ``start_sweep`` or ``find_sweep``."""

    def __init__(self, folder: SweepFolder) -> None:
        self.folder = folder
        self.plan = folder.plan()
        self._store = open_store(self.plan.store_uri)

    @property
    def sweep_id(self) -> str:
        """The id, which ``tandem sweep`` takes too."""
        return self.folder.sweep_id

    @property
    def uri(self) -> str:
        """The sweep's folder in the store."""
        return self.folder.place.uri

    @property
    def status(self) -> str:
        """``PENDING``, ``RUNNING``, ``SUCCEEDED``, ``FAILED`` or ``STOPPED``.

        Raises:
            ClusterError: it has not ended, and its cluster does not answer.
        """
        return self._state()[0]

    def trials(self) -> list[TrialRow]:
        """Every trial, the best first: live while the sweep runs, as it was left afterwards."""
        if result := self.folder.result():
            return result.trials
        started = self.folder.started()
        numbers = range(1, len(self.plan.trials) + 1)
        rows = side_by_side(lambda number: self._row(number, started.get(number, {})), numbers)
        return ranked(rows, mode=self.plan.mode)

    def wait(self, timeout_s: float | None = None) -> SweepResult:
        """Return when every trial has ended.

        Raises:
            TandemError: the sweep was stopped, or its job ended before its trials did.
            WaitTimeout: it still goes on after ``timeout_s``; it is left alone.
            ClusterError: the cluster has not answered for two minutes; the sweep may go on.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for _ in self.watch():
            if deadline is not None and time.monotonic() > deadline:
                raise WaitTimeout(f"sweep {self.sweep_id} still goes on after {timeout_s:.0f} s")
        return self.ended()

    def watch(self) -> Iterator[str]:
        """The status about once a second, until the sweep has ended.

        Raises:
            ClusterError: the cluster has not answered for two minutes; the sweep may go on.
        """
        heard_s = time.monotonic()
        status = "PENDING"
        while status not in ENDED:
            try:
                status = self.status
                heard_s = time.monotonic()
            except ClusterError:
                # A network may fail for a moment.
                if time.monotonic() - heard_s > _UNKNOWN_S:
                    raise
            yield status
            if status not in ENDED:
                time.sleep(_POLL_S)

    def ended(self) -> SweepResult:
        """The result of a sweep that has ended.

        Raises:
            TandemError: it has none, for it was stopped or its job broke.
        """
        if result := self.folder.result():
            return result
        status, reason = self._state()
        raise TandemError(
            f"sweep {self.sweep_id} has no result: {status}, {reason}\n"
            f"Its runs: tandem runs {self.plan.name}; "
            f"end those that still go on: tandem sweep {self.sweep_id} --stop."
        )

    def outcome(self, error: str | None = None) -> SweepResult:
        """What its trials come to now; for the sweep's job, which writes it down at the end.

        Args:
            error: Why the sweep itself failed, where it did.
        """
        rows = self.trials()
        if error is None and not any(row.status == "SUCCEEDED" for row in rows):
            first = next((row.error for row in rows if row.error), "unknown")
            error = f"no trial trained to its end. The first: {first}"
        return SweepResult(
            sweep_id=self.sweep_id,
            status="FAILED" if error else "SUCCEEDED",
            metric=self.plan.metric,
            trials=rows,
            error=error,
        )

    def stop(self) -> list[str]:
        """End the sweep and its runs, which save a checkpoint first; the ids of those that were still going.

        Raises:
            ClusterError: the cluster does not answer.
            WaitTimeout: the sweep's job does not end.
        """
        if self.status not in ENDED:
            jobs.stop(self._dashboard_url(), self.sweep_id)
            # Ray lets it go on for some seconds, in which it could start another trial.
            self._wait_for_its_job()
        runs = [
            Run(self._store.run(said["run_id"]))
            for said in self.folder.started().values()
            if "run_id" in said
        ]
        going = [run for run in runs if run.status not in ENDED]
        faults = []
        for run in going:
            try:
                run.stop()
            except ClusterError as error:  # the others are stopped all the same
                faults.append(error)
        if faults:
            raise faults[0]
        return [run.run_id for run in going]

    def logs(self) -> str:
        """What the sweep's own job has printed; its trials' are those of their runs."""
        return jobs.logs(self._dashboard_url(), self.sweep_id)

    def __repr__(self) -> str:
        return f"Sweep({self.sweep_id!r}, trials={len(self.plan.trials)})"

    def _row(self, number: int, said: dict[str, Any]) -> TrialRow:
        params = self.plan.trials[number - 1].params
        if "run_id" not in said:
            status = "FAILED" if "error" in said else "PENDING"
            return TrialRow(trial=number, params=params, status=status, error=said.get("error"))
        run = Run(self._store.run(said["run_id"]))
        status, error = run.status, run.error
        lines = run.folder.metrics()
        values = [line[self.plan.metric] for line in lines if line.get(self.plan.metric) is not None]
        return TrialRow(
            trial=number,
            params=params,
            run_id=run.run_id,
            status=status,
            step=lines[-1]["step"] if lines else None,
            metric=values[-1] if values and math.isfinite(values[-1]) else None,
            error=error or said.get("error"),
        )

    def _dashboard_url(self) -> str:
        return str(self.folder.job()["dashboard_url"])

    def _wait_for_its_job(self) -> None:
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while self.status not in ENDED:
            if time.monotonic() > deadline:
                raise WaitTimeout(
                    f"the job of sweep {self.sweep_id} does not end; its runs were left alone. See its log: "
                    f"ray job logs {self.sweep_id}."
                )
            time.sleep(0.2)

    def _state(self) -> tuple[str, str | None]:
        if result := self.folder.result():
            return result.status, result.error
        job = jobs.details(self._dashboard_url(), self.sweep_id)
        if job is None:
            return "STOPPED", "the cluster that ran it is gone"
        # Between the look at the result and Ray's answer the job may have written it.
        if job["status"] in ENDED and (result := self.folder.result()):
            return result.status, result.error
        if job["status"] == "SUCCEEDED":
            return "FAILED", "its job ended without a result"
        return str(job["status"]), job.get("message")


def plan(tandem: Tandem, source: SweepSource) -> SweepPlan:
    """What ``start_sweep`` would run, checked against store and cluster; nothing is submitted."""
    return plan_of(source, store=tandem.store, inventory=tandem.inventory())


def plan_of(source: SweepSource, *, store: Store, inventory: Inventory) -> SweepPlan:
    """The plan of a sweep spec on a store and a cluster of these nodes.

    Raises:
        ConfigError: the spec or one of its trials cannot work.
    """
    folder = Path(source).parent if isinstance(source, str | Path) else Path()
    with blamed_on(source):
        return plan_sweep(
            load_spec(SweepSpec, source),
            store=store,
            inventory=inventory,
            folder=folder,
            origin=origin_of(source),
        )


def start_sweep(tandem: Tandem, source: SweepSource) -> Sweep:
    """Submit a sweep as a job of its own, which outlives this process, and return at once.

    Raises:
        ConfigError: the spec or one of its trials cannot work. Nothing was submitted.
    """
    is_local = _is_local(tandem.dashboard_url)
    if is_local:
        check_pair()
    planned = plan(tandem, source)
    folder = _new_folder(tandem.store, planned, tandem.dashboard_url)
    # Of a remote cluster the job learns the address; the local one it finds as everybody here does.
    address = [] if is_local else ["--address", tandem.dashboard_url]
    # A remote cluster's image has its own code.
    code = {"PYTHONPATH": str(code_snapshot())} if is_local else {}
    started = Sweep(folder)
    try:
        jobs.submit(
            tandem.dashboard_url,
            f"python -m runtime.sweep_job {shlex.join([folder.place.uri, *address])}",
            submission_id=folder.sweep_id,
            env_vars=code | storage_env(),
            metadata={"sweep": folder.sweep_id, "store": tandem.store.uri},
        )
    except BaseException as error:
        folder.write_result(started.outcome(f"not submitted: {error or type(error).__name__}"))
        raise
    return started


def sweep(tandem: Tandem, source: SweepSource) -> SweepResult:
    """Run a sweep and wait for its end. An interrupt leaves it running.

    Raises:
        ConfigError: the spec or one of its trials cannot work. Nothing was submitted.
    """
    return start_sweep(tandem, source).wait()


def is_sweep_id(text: str) -> bool:
    """Whether ``text`` is spelled like the id of a sweep."""
    return _SWEEP_ID.fullmatch(text) is not None


def find_sweep(store: Store, sweep_id: str) -> Sweep:
    """The sweep of this id.

    Raises:
        ConfigError: there is none; names what exists.
    """
    spelled = _SWEEP_ID.fullmatch(sweep_id)
    if spelled:
        place = store.root / "sweeps" / spelled["name"] / sweep_id
        if (place / "sweep.json").stat():
            return Sweep(SweepFolder(place))
    root = store.root / "sweeps"
    known = [found for name in root.folders() for found in (root / name).folders()]
    raise ConfigError(f"sweep {sweep_id!r} is not in {store.uri}. {did_you_mean(sweep_id, known)}")


def _is_local(dashboard_url: str) -> bool:
    running = local.current()
    return running is not None and running.dashboard_url == dashboard_url


def _new_folder(store: Store, planned: SweepPlan, dashboard_url: str) -> SweepFolder:
    sweep_id = f"{planned.name}-sweep-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    place = store.root / "sweeps" / planned.name / sweep_id
    (place / "job.json").write_json({"dashboard_url": dashboard_url})
    (place / "sweep.json").write_bytes(planned.to_json().encode())
    return SweepFolder(place)
