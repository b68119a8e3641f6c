"""Waiting until what was applied is ready: by conditions, never by all pods."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.owned import live, title
from cluster.kubernetes.readiness import WAITED_FOR, State, state_of
from cluster.kubernetes.refusals import Unanswered
from cluster.kubernetes.trouble import troubles
from cluster.kubernetes.workloads import Manifest
from runtime.core.errors import ClusterError, WaitTimeout

_POLL_S = 1.0
_PATIENCE_S = 120.0
T = TypeVar("T")
Picture = Callable[[Sequence[State], Sequence[str]], None]
"""Hears how far each object is, and what keeps pods and apps."""


def wait(
    kubernetes: Kubernetes,
    spec: ClusterSpec,
    manifests: Sequence[Manifest],
    *,
    timeout_s: float,
    show: Picture = lambda _states, _troubles: None,
) -> None:
    """Until every claim is bound, every cluster provisioned, every service ready, every job running.

    Args:
        manifests: What was applied.
        show: Called about once a second.

    Raises:
        ClusterError: a job or claim has failed, or the API server refuses.
        WaitTimeout: it took too long; everything goes on. Says what is not ready and what it waits for.
    """
    deadline = time.monotonic() + timeout_s
    awaited = [one for one in manifests if one["kind"] in WAITED_FOR]
    while True:
        states, reasons = _patiently(lambda: _look(kubernetes, spec, awaited))
        missing = [one for one in states if not one.is_ready]
        show(states, reasons)
        if not missing:
            return
        _raise_if_failed(states, reasons)
        if time.monotonic() > deadline:
            raise WaitTimeout(
                f"not ready after {timeout_s:.0f} s:{_told(missing, reasons)}\nEverything stays as it is and "
                "goes on starting. Look again with: tandem cluster status CLUSTER.yaml"
            )
        time.sleep(_POLL_S)


def _look(
    kubernetes: Kubernetes, spec: ClusterSpec, awaited: Sequence[Manifest]
) -> tuple[list[State], list[str]]:
    """How far each is, and what keeps those that are not ready."""
    states = [state_of(live(kubernetes, one), title(one)) for one in awaited]
    missing = [one.title for one in states if not one.is_ready]
    return states, troubles(kubernetes, spec, missing) if missing else []


def _patiently(look: Callable[[], T]) -> T:
    """A cloud's API server is away for a minute while it is upgraded: no reason to give up."""
    tries = Retrying(
        retry=retry_if_exception_type(Unanswered),
        stop=stop_after_delay(_PATIENCE_S),
        wait=wait_fixed(_POLL_S),
        reraise=True,
    )
    return tries(look)


def _raise_if_failed(states: Sequence[State], reasons: Sequence[str]) -> None:
    failed = [one for one in states if one.has_failed]
    if failed:
        raise ClusterError(f"what was applied does not run:{_told(failed, reasons)}")


def _told(states: Sequence[State], reasons: Sequence[str]) -> str:
    lines = [f"{one.title}: {one.doing}" for one in states] + list(reasons)
    return "".join(f"\n- {line}" for line in lines)
