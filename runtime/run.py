"""One training run, as its owner sees it: how it stands, its log, its metrics, its model."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from cluster import jobs, local
from runtime.core.errors import ClusterError, RunFailed, WaitTimeout
from runtime.show import loss_figure_html, table_html
from storage.runs import RunFolder

if TYPE_CHECKING:
    import pandas

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_POLL_S = 0.5
_UNKNOWN_S = 120.0
_GONE = "the cluster that ran it is gone"


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
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self.poll() not in ENDED:
            if deadline is not None and time.monotonic() > deadline:
                raise WaitTimeout(f"run {self.run_id} still goes on after {timeout_s:.0f} s")
            time.sleep(_POLL_S)
        self.raise_if_failed()
        return self

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
        """Raise RunFailed when the run has ended without success."""
        status, error = self._state()
        if status in ("FAILED", "STOPPED"):
            raise RunFailed(self.run_id, error or status, f"tandem logs {self.run_id}")

    def logs(self) -> str:
        """What the job has printed, its workers' lines included.

        Raises:
            ClusterError: the cluster that ran it is gone, and with it the log.
        """
        return jobs.logs(self._dashboard_url(), self._submission_id())

    def metrics(self) -> pandas.DataFrame:
        """One row a logged step: ``step``, ``loss``, ``learning_rate``, ``grad_norm``, ``epoch``, ..."""
        import pandas

        return pandas.DataFrame(self.folder.metrics())

    def stop(self) -> bool:
        """Ask the run to end; whether it was running. Its committed checkpoints stay."""
        return jobs.stop(self._dashboard_url(), self._submission_id())

    def describe(self) -> dict[str, Any]:
        """The run as plain data, for tables and ``--json``."""
        last = (self.folder.metrics() or [{}])[-1]
        status, error = self._state()
        return {
            "run_id": self.run_id,
            "status": status,
            "step": last.get("step"),
            "max_steps": last.get("max_steps"),
            "loss": last.get("loss"),
            "model": self.model,
            "created_at": self.folder.created_at,
            "uri": self.uri,
            "error": error,
        }

    def __repr__(self) -> str:
        return f"Run({self.run_id!r}, status={self.status!r}, model={self.model!r})"

    def _repr_html_(self) -> str:
        return table_html([self.describe()]) + loss_figure_html(self.folder.metrics(), self.run_id)

    def _state(self) -> tuple[str, str | None]:
        """Status and reason. The run's own result counts most; Ray's word fills in where there is none."""
        result = self.folder.result()
        if result:
            return str(result["status"]).upper(), result.get("error")
        try:
            job = jobs.details(self._dashboard_url(), self._submission_id())
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
            return "STOPPED", "stopped on request"
        return "FAILED", _last_line(job.get("message")) or "the job ended without a result"

    def _dashboard_url(self) -> str:
        record = self.folder.record()
        if url := record.get("dashboard_url"):
            return str(url)
        # Submitted with plain Ray tools: the job knew Ray's own address only.
        cluster = local.current()
        if cluster and record.get("address") == cluster.address:
            return cluster.dashboard_url
        raise ClusterError(
            f"run {self.run_id} was submitted to {record.get('address') or 'an unknown cluster'}, which "
            f"is not the local cluster. Ask Ray there: ray job status {self._submission_id()}."
        )

    def _was_local_and_ended(self) -> bool:
        url, cluster = str(self.folder.record().get("dashboard_url", "")), local.current()
        return url.startswith("http://127.0.0.1:") and (cluster is None or cluster.dashboard_url != url)

    def _submission_id(self) -> str:
        return str(self.folder.record().get("submission_id") or self.run_id)


def _last_line(text: Any) -> str | None:
    lines = [line.strip() for line in str(text or "").splitlines() if line.strip()]
    return lines[-1] if lines else None
