"""Ray's job API: submit, look, read the log, stop.

Source: https://docs.ray.io/en/latest/cluster/running-applications/job-submission/api.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.rest import call
from runtime.core.errors import ClusterError

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


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


def stop(dashboard_url: str, submission_id: str) -> bool:
    """Ask the job to end (SIGTERM, then SIGKILL after some seconds); whether it was running."""
    return bool(call("POST", dashboard_url, f"/api/jobs/{submission_id}/stop")["stopped"])
