"""Ray's job API: submit, look, read the log, stop.

Source: https://docs.ray.io/en/latest/cluster/running-applications/job-submission/api.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from cluster.auth import auth_headers, token_refused
from cluster.rest import call, is_remote
from runtime.core.errors import ClusterError

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_SILENCE_S = 60.0


def submit(
    dashboard_url: str,
    entrypoint: str,
    *,
    submission_id: str,
    env_vars: Mapping[str, str],
    metadata: Mapping[str, str],
) -> None:
    """Start ``entrypoint`` (a shell line) on the cluster's head; returns at once.

    Raises:
        ClusterError: the dashboard cannot be reached, or the id is taken.
    """
    body = {
        "entrypoint": entrypoint,
        "submission_id": submission_id,
        "runtime_env": {"env_vars": dict(env_vars)},
        "metadata": dict(metadata),
    }
    call("POST", dashboard_url, "/api/jobs/", body=body)


def details(dashboard_url: str, submission_id: str) -> dict[str, Any] | None:
    """Ray's record of the job (``status``, ``message``, ``start_time``, ...), or None when unknown."""
    try:
        return dict(call("GET", dashboard_url, f"/api/jobs/{submission_id}"))
    except ClusterError as error:
        if "(404)" in str(error):
            return None
        raise


def logs(dashboard_url: str, submission_id: str) -> str:
    """Everything that the job's driver has printed."""
    return str(call("GET", dashboard_url, f"/api/jobs/{submission_id}/logs")["logs"])


def tail(dashboard_url: str, submission_id: str) -> Iterator[str]:
    """What the job's driver prints, piece by piece from the beginning, until the job has ended.

    It also ends, without an error, after a minute of silence, in which a connection may have been lost, and
    when a node on the way is gone: look at the job, and ask again.

    Raises:
        ClusterError: the dashboard cannot be reached, knows no such job, or the connection was cut.
    """
    # The route of Ray's own JobSubmissionClient.tail_job_logs. That client would go to RAY_ADDRESS instead of
    # the cluster that it is told, and is asynchronous: a notebook's loop is running already.
    from websockets.exceptions import ConnectionClosedOK, InvalidStatus, WebSocketException
    from websockets.sync.client import connect

    address = f"ws{dashboard_url.removeprefix('http')}/api/jobs/{submission_id}/logs/tail"
    proxy: Literal[True] | None = True if is_remote(dashboard_url) else None
    try:
        # Ray's side only writes: it answers no ping, closing would wait for its word, and compression, once
        # offered, ends the connection there without a piece (Ray 2.60, from one aiohttp to the next).
        with connect(
            address,
            additional_headers=auth_headers(),
            proxy=proxy,
            compression=None,
            max_size=None,
            ping_interval=None,
            close_timeout=0.5,
        ) as connection:
            while True:
                yield str(connection.recv(timeout=_SILENCE_S))
    except (ConnectionClosedOK, TimeoutError):
        return
    except (OSError, WebSocketException) as error:
        status = error.response.status_code if isinstance(error, InvalidStatus) else None
        if status in (401, 403):
            raise token_refused(dashboard_url, status) from None
        raise ClusterError(
            f"the log of job {submission_id} cannot be followed at {dashboard_url} "
            f"({type(error).__name__}: {error})."
        ) from None


def stop(dashboard_url: str, submission_id: str) -> bool:
    """Ask the job to end; whether it was running.

    It gets SIGTERM, and SIGKILL when it is still there after ``RAY_JOB_STOP_WAIT_TIME_S`` of its environment.
    """
    return bool(call("POST", dashboard_url, f"/api/jobs/{submission_id}/stop")["stopped"])
