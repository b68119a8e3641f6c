"""The environment of Ray's containers, and how long a pod may take to end."""

from __future__ import annotations

import math
from collections.abc import Iterable

from cluster.cluster_spec import ClusterSpec
from cluster.haproxy import pod_haproxy_env
from cluster.kubernetes.names import Part, Role
from cluster.kubernetes.volumes import pod_storage
from cluster.kubernetes.workloads import Manifest
from cluster.priority import priorities_env
from cluster.ray_settings import JOB_STOP_S, RAY_SETTINGS

CACHE_FOLDER = "/var/cache/tandem"
"""Where each pod's emptyDir for its node cache is mounted."""

_HEAD_DRAIN_S = 30
"""Ray's own default. The head has no replica and no worker that could finish something."""

_LEAVING_S = 30
"""Until every proxy has heard that a node leaves, its replicas get new requests."""

_SPARE_S = 15
"""After Ray has let go, before Kubernetes kills what is left."""


def ray_env(spec: ClusterSpec, part: Part, role: Role) -> list[Manifest]:
    """The environment of the Ray container of such a pod, by name once each.

    PYTHONPATH and the interpreters of the three environments are the image's.
    """
    ours = {
        "TANDEM_HOME": f"{CACHE_FOLDER}/home",
        "TANDEM_CACHE": CACHE_FOLDER,
        **RAY_SETTINGS,
        # vLLM's own executor over Ray's compiled graphs, where a replica's workers are on several nodes.
        "VLLM_USE_RAY_V2_EXECUTOR_BACKEND": "1",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(drain_s(spec, part, role)),
        **_auth_mode(spec),
        **pod_haproxy_env(),
        # The ledger is there.
        **(priorities_env(spec.priorities) if role == "head" else {}),
    }
    listed: list[Manifest] = [{"name": name, "value": value} for name, value in ours.items()]
    return _once([*listed, *pod_storage(spec).env])


def drain_s(spec: ClusterSpec, part: Part, role: Role) -> int:
    """How long ``ray start`` holds a node that ends, at most; it lets go as soon as nothing runs there.

    Replicas stay until others have taken over and their streams have ended: Ray's 30 s would cut longer ones,
    however long Kubernetes waits. Training leaves at the end of a step, with a checkpoint.
    """
    if role == "head":
        return _HEAD_DRAIN_S
    answers_s = 0 if part == "training" else spec.serving.longest_request_s + _LEAVING_S
    trains = part != "serving" or spec.training.cluster == "serving"
    return max(answers_s, JOB_STOP_S if trains else 0)


def termination_grace_s(spec: ClusterSpec, part: Part, role: Role) -> int:
    """Kubernetes' patience with a pod that ends. Its default, 30 s, is Ray's drain to the second: the kill
    would race it."""
    answer_s = 0 if part == "training" else spec.serving.longest_request_s
    return drain_s(spec, part, role) + answer_s + _SPARE_S


def deletion_delay_s(spec: ClusterSpec, longest_shutdown_s: float) -> int:
    """How long a RayService keeps the old cluster after an upgrade: longer than its longest stream."""
    longest_s = max(spec.serving.longest_request_s, math.ceil(longest_shutdown_s))
    return longest_s + _LEAVING_S + _SPARE_S


def _auth_mode(spec: ClusterSpec) -> dict[str, str]:
    """With a token the operator sets the mode and the token itself, in every container that needs them."""
    return {"RAY_AUTH_MODE": "disabled"} if spec.auth.mode == "none" else {}


def _once(env: Iterable[Manifest]) -> list[Manifest]:
    """Each name once, the last one counts."""
    return list({variable["name"]: variable for variable in env}.values())
