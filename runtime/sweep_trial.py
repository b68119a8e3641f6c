"""One trial of a sweep, as Ray Tune sees it: it submits a run, repeats its metrics, and ends with it."""

from __future__ import annotations

import time
from typing import Any

from ray import tune

from runtime.core.errors import ConfigError
from runtime.run import ENDED, Run
from runtime.sdk import Tandem
from runtime.sweep_folder import SweepFolder
from storage.location import locate

_POLL_S = 0.5
_REMOTE_POLL_S = 2.0
"""An object store is asked less often: every look is a request."""


class RunTrial(tune.Trainable):
    """A class, not a function: Tune tells a class when it stops a trial, and so its run can be stopped.

    Its ``config``: ``sweep`` (the folder's address), ``trial`` (from 1 on), ``address`` (the dashboard, or
    None for the local cluster).
    """

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """No CPU, for it only waits; on the head, where the dashboard is."""
        return tune.PlacementGroupFactory([{"CPU": 0, "node:__internal_head__": 0.001}])

    def setup(self, config: dict[str, Any]) -> None:
        """Submit the run."""
        folder, number = SweepFolder(locate(config["sweep"])), int(config["trial"])
        plan = folder.plan()
        self._metric = plan.metric
        self._run: Run | None = None
        self._last: dict[str, Any] = {}
        try:
            tandem = Tandem(config["address"], store=plan.store_uri)
            self._run = tandem.train(plan.trials[number - 1].spec)
        except Exception as error:
            folder.write_trial(number, error=str(error) or type(error).__name__)
            raise
        folder.write_trial(number, run_id=self._run.run_id)
        self._pause_s = _POLL_S if self._run.folder.place.backend.is_local else _REMOTE_POLL_S

    def step(self) -> dict[str, Any]:
        """The next line of the run's metrics that has the sweep's metric; at its end the last one again.

        Raises:
            RunFailed: it failed or was stopped.
            ConfigError: it succeeded and never logged the metric.
        """
        run = self._started()
        while True:
            # Before the look at the metrics: a run that has ended writes no more of them.
            status = run.poll()
            if line := self._next_line(run):
                self._last = {"step": line["step"], self._metric: line[self._metric]}
                return dict(self._last)
            if status in ENDED:
                run.raise_if_failed()
                return self._last_again(run)
            time.sleep(self._pause_s)

    def cleanup(self) -> None:
        """Tune has done with this trial; where that was before its end, its run stops."""
        if self._run is not None and self._run.status not in ENDED:
            self._run.stop()

    def _started(self) -> Run:
        if self._run is None:
            raise RuntimeError("Tune called step() before setup()")
        return self._run

    def _next_line(self, run: Run) -> dict[str, Any] | None:
        """By step and not by place: a run that goes on from a checkpoint writes some lines again."""
        after = self._last.get("step", -1)
        lines = run.folder.metrics()
        return next(
            (line for line in lines if line["step"] > after and line.get(self._metric) is not None), None
        )

    def _last_again(self, run: Run) -> dict[str, Any]:
        if not self._last:
            logged = sorted({name for line in run.folder.metrics() for name in line})
            raise ConfigError(
                f"metric is {self._metric!r}, which run {run.run_id} never logged. It logged: "
                f"{', '.join(logged) or 'nothing'}. Name one of them, or let the recipe evaluate."
            )
        return self._last | {"done": True}
