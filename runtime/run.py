"""One training run, as its owner sees it: how it stands, its log, its metrics, its model."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cluster import jobs, local
from runtime import run_logs
from runtime.core.errors import ClusterError, Conflict, RunFailed, RunStopped, WaitTimeout
from runtime.show import figure_html, loss_figure, table_html
from storage.runs import Checkpoint, RunFolder

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_POLL_S = 0.5
_UNKNOWN_S = 120.0
_GONE = "the cluster that ran it is gone"
STOP_REASON = "stopped on request"


class Run:
    """A run in the store. Get one from ``Tandem.train``, ``Tandem.run`` or ``Tandem.runs``."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._unknown_since_s: float | None = None

    @property
    def run_id(self) -> str:
        """``<name>-<date>-<time>-<4 hex digits>``; also the Ray job's submission id."""
        return self.folder.run_id

    @property
    def uri(self) -> str:
        """The run's folder in the store."""
        return self.folder.uri

    @property
    def status(self) -> str:
        """``PENDING``, ``RUNNING``, ``SUCCEEDED``, ``FAILED`` or ``STOPPED``, in Ray's words.

        ``UNKNOWN`` where the cluster that runs it does not answer.
        """
        return self._state()[0]

    @property
    def model(self) -> str | None:
        """The model version that the run published, ``name/v1``; None before it has."""
        return (self.folder.result() or {}).get("model")

    @property
    def error(self) -> str | None:
        """Why it failed or stopped, in one line; None while there is no fault."""
        return self._state()[1]

    def wait(self, timeout_s: float | None = None) -> Run:
        """Return when the run has succeeded.

        Raises:
            RunFailed: it failed or was stopped; holds the worker's last error line and the log's place.
            WaitTimeout: it still goes on after ``timeout_s``; the run is left alone.
            ClusterError: the cluster has not answered for two minutes; the run may go on.
        """
        self.wait_until_ended(timeout_s)
        self.raise_if_failed()
        return self

    def wait_until_ended(self, timeout_s: float | None = None) -> str:
        """Return the status when the run has ended, however it did.

        Raises:
            WaitTimeout: it still goes on after ``timeout_s``; the run is left alone.
            ClusterError: the cluster has not answered for two minutes; the run may go on.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (status := self.poll()) not in ENDED:
            if deadline is not None and time.monotonic() > deadline:
                raise WaitTimeout(f"run {self.run_id} still goes on after {timeout_s:.0f} s")
            time.sleep(_POLL_S)
        return status

    def poll(self) -> str:
        """``status`` for a loop that waits.

        Raises:
            ClusterError: it has been ``UNKNOWN`` for two minutes. A network may fail for a moment.
        """
        status, error = self._state()
        if status != "UNKNOWN":
            self._unknown_since_s = None
            return status
        now = time.monotonic()
        if self._unknown_since_s is None:
            self._unknown_since_s = now
        if now - self._unknown_since_s > _UNKNOWN_S:
            raise ClusterError(f"run {self.run_id} cannot be watched any longer: {error}")
        return status

    def raise_if_failed(self) -> None:
        """Raise when the run has ended without success.

        Raises:
            RunFailed: it failed.
            RunStopped: a kind of it: somebody stopped the run, or its cluster is gone.
        """
        status, error = self._state()
        log = f"tandem logs {self.run_id}"
        if status == "STOPPED":
            raise RunStopped(self.run_id, f"{error}. Go on with: tandem train --resume {self.run_id}", log)
        if status == "FAILED":
            raise RunFailed(self.run_id, error or status, log)

    def logs(self, rank: int | None = None) -> str:
        """What the job has printed, its workers' lines included; of a run that kept its log, also later.

        Args:
            rank: Only what this worker printed, from 0 on. None: everything.

        Raises:
            ClusterError: the cluster that ran it is gone, and with it the log.
            ConfigError: there is no such rank.
        """
        text = run_logs.whole(self)
        return text if rank is None else "\n".join(run_logs.OfRank(rank).lines(text.splitlines()))

    def follow_logs(self, rank: int | None = None) -> Iterator[str]:
        """The same, line by line as they come, until the run has ended.

        Raises:
            ClusterError: as ``logs``, or the cluster has not answered for two minutes.
            ConfigError: the run has ended, and there was no such rank.
        """
        lines = run_logs.follow(self)
        return lines if rank is None else run_logs.OfRank(rank).lines(lines)

    def metrics(self) -> pandas.DataFrame:
        """One row a logged step: ``step``, ``loss``, ``learning_rate``, ``grad_norm``, ``epoch``, ..."""
        import pandas

        return pandas.DataFrame(self.folder.metrics())

    def checkpoints(self) -> list[Checkpoint]:
        """Committed checkpoints, by step: ``place``, and ``manifest`` with step, metrics, sizes."""
        return self.folder.checkpoints()

    def attempts(self) -> list[dict[str, Any]]:
        """Every time that the run was taken up: when, with how many workers, from which step, its end."""
        return self.folder.attempts()

    def plot(self) -> Figure:
        """Loss and evaluation loss over steps; a notebook shows it."""
        return loss_figure({self.run_id: self.folder.metrics()})

    def is_training(self) -> bool:
        """Whether workers are at it and have done a step: there is something to save."""
        attempts = self.folder.attempts()
        if not attempts:
            return bool(self.folder.metrics())
        return "first_step_at" in attempts[-1] and "ended" not in attempts[-1]

    def stop(self, *, now: bool = False) -> bool:
        """Ask the run to end, and return at once; whether it was running.

        Its workers save a checkpoint at the end of their step and leave. A run that has done no step since it
        was taken up has nothing to save and ends at once. Committed checkpoints stay either way:
        ``tandem train --resume`` goes on from the last one.

        Args:
            now: End it at once, without a checkpoint.

        Raises:
            ClusterError: the cluster that runs it does not answer.
        """
        status, error = self._state()
        if status in ENDED:
            return False
        if status == "UNKNOWN":
            raise ClusterError(f"run {self.run_id} cannot be stopped: {error}")
        if now or not self.is_training():
            self._end_now()
        else:
            self.folder.request_stop(STOP_REASON)
        return True

    def describe(self) -> dict[str, Any]:
        """The run as plain data, for tables and ``--json``."""
        rows = self.folder.metrics()
        last = (rows or [{}])[-1]
        losses = [row["loss"] for row in rows if row.get("loss") is not None]
        status, error = self._state()
        return {
            "run_id": self.run_id,
            "status": status,
            "step": last.get("step"),
            "max_steps": last.get("max_steps"),
            "loss": losses[-1] if losses else None,
            "model": self.model,
            "created_at": self.folder.created_at,
            "uri": self.uri,
            "error": error,
        }

    @property
    def submission_id(self) -> str:
        """The Ray job that runs it now: the run's id, or another one after it was taken up again."""
        return str(self.folder.record().get("submission_id") or self.run_id)

    def dashboard_url(self) -> str:
        """The dashboard of the cluster that runs it.

        Raises:
            ClusterError: it is not known here.
        """
        record = self.folder.record()
        if url := record.get("dashboard_url"):
            return str(url)
        # Submitted with plain Ray tools: the job knew Ray's own address only.
        cluster = local.current()
        if cluster and record.get("address") == cluster.address:
            return cluster.dashboard_url
        raise ClusterError(
            f"run {self.run_id} was submitted to {record.get('address') or 'an unknown cluster'}, which "
            f"is not the local cluster. Ask Ray there: ray job status {self.submission_id}."
        )

    def __repr__(self) -> str:
        return f"Run({self.run_id!r}, status={self.status!r}, model={self.model!r})"

    def _repr_html_(self) -> str:
        rows = self.folder.metrics()
        return table_html([self.describe()]) + (figure_html(loss_figure({self.run_id: rows})) if rows else "")

    def _end_now(self) -> None:
        saved = [checkpoint.manifest.step for checkpoint in self.folder.checkpoints()]
        what = f"its last checkpoint is of step {saved[-1]}" if saved else "it has no checkpoint yet"
        result = json.dumps({"status": "stopped", "error": f"{STOP_REASON}; {what}"})
        # Before the job is told: a driver that finds its run ended leaves at once, and saves nothing first.
        try:
            (self.folder.place / "result.json").write_bytes(result.encode(), create_only=True)
        except Conflict:
            return  # it has ended meanwhile, in its own way, and that result is not ours to take back
        try:
            jobs.stop(self.dashboard_url(), self.submission_id)
        except ClusterError:
            self.folder.begin_again()
            raise

    def _state(self) -> tuple[str, str | None]:
        """Status and reason. The run's own result counts most; Ray's word fills in where there is none."""
        result = self.folder.result()
        if result:
            return str(result["status"]).upper(), result.get("error")
        try:
            job = jobs.details(self.dashboard_url(), self.submission_id)
        except ClusterError as error:
            # Not to be told from a network that fails for a moment, but for a cluster of this machine.
            return ("STOPPED", _GONE) if self._was_local_and_ended() else ("UNKNOWN", str(error))
        if job is None:
            return "STOPPED", _GONE
        status = str(job["status"])
        if status not in jobs.ENDED:
            return status, None
        # Between the look at the result and Ray's answer the run may have written it.
        late = self.folder.result()
        if late:
            return str(late["status"]).upper(), late.get("error")
        if status == "STOPPED":
            return "STOPPED", STOP_REASON
        return "FAILED", _last_line(job.get("message")) or "the job ended without a result"

    def _was_local_and_ended(self) -> bool:
        url, cluster = str(self.folder.record().get("dashboard_url", "")), local.current()
        return url.startswith("http://127.0.0.1:") and (cluster is None or cluster.dashboard_url != url)


def _last_line(text: Any) -> str | None:
    lines = [line.strip() for line in str(text or "").splitlines() if line.strip()]
    return lines[-1] if lines else None
