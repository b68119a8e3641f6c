"""The names and labels of all objects: what they begin with, how long they may be, what selects them."""

from __future__ import annotations

import hashlib
import re
from typing import Literal

from cluster.cluster_spec import ClusterSpec
from runtime.core.errors import ConfigError

Part = Literal["serving", "training", "shared"]
Role = Literal["head", "worker", "submitter"]

CLUSTER_LABEL = "tandem.dev/cluster"
ROLE_LABEL = "tandem.dev/role"
PART_LABEL = "tandem.dev/part"
GROUP_LABEL = "tandem.dev/group"

LONGEST = {"RayCluster": 53, "RayService": 47, "RayJob": 47, "RayCronJob": 36}
"""The operator adds to these names and refuses longer ones, which the API server takes."""
_LONGEST_OF_OTHERS = 63
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_HASH_CHARS = 8


_APP_LABEL = "app.kubernetes.io/name"


def labels(spec: ClusterSpec) -> dict[str, str]:
    """The labels of every object of ours."""
    return {
        _APP_LABEL: "tandem",
        "app.kubernetes.io/managed-by": "tandem",
        CLUSTER_LABEL: spec.name,
    }


def pod_labels(spec: ClusterSpec, *, part: Part, role: Role, group: str | None = None) -> dict[str, str]:
    """The labels of a pod template, by which PDBs, Services, network policies and spreading select.

    The names of Ray clusters change with every upgrade, and pods do not carry those of a RayService or
    RayJob. The application's name is left out: the operator writes ``kuberay`` there, and the head services
    of RayServices and RayJobs select by it.

    Args:
        part: Whose pods: of the RayService's cluster, of a RayJob's own, or of the RayCluster for all.
        group: The node group, of workers.
    """
    ours = {name: value for name, value in labels(spec).items() if name != _APP_LABEL}
    found = ours | {PART_LABEL: part, ROLE_LABEL: role}
    return found | ({GROUP_LABEL: group} if group else {})


def cluster_name(spec: ClusterSpec) -> str:
    """The RayCluster's name."""
    return check_name(spec.name, kind="RayCluster")


def service_name(spec: ClusterSpec) -> str:
    """The RayService's name."""
    return check_name(f"{spec.name}-serve", kind="RayService")


def job_name(spec: ClusterSpec, job_name: str) -> str:
    """The RayJob's name: the cluster's and the job's, in Kubernetes' letters.

    What had to be changed or cut for that ends in a hash of the whole: two jobs never get one name.
    """
    name = f"{spec.name}-{job_name}"
    if _DNS_1035.fullmatch(name) and len(name) <= LONGEST["RayJob"]:
        return name
    mark = hashlib.sha256(name.encode()).hexdigest()[:_HASH_CHARS]
    stem = re.sub("[^a-z0-9]+", "-", name.lower())[: LONGEST["RayJob"] - _HASH_CHARS - 1].strip("-")
    return check_name(f"{stem}-{mark}", kind="RayJob")


def train_spec_name(spec: ClusterSpec, job: str) -> str:
    """The name of the ConfigMap with the train spec of the job ``job``."""
    return f"{job_name(spec, job)}-spec"


def service_account(spec: ClusterSpec, part: Literal["serving", "training", "head"]) -> str:
    """The service account of the workers of a part, or of heads."""
    return f"{spec.name}-{part}"


def token_secret(spec: ClusterSpec) -> str:
    """The Secret with Ray's token, which is under ``auth_token``."""
    return spec.auth.secret or f"{spec.name}-ray-token"


def check_name(name: str, *, kind: str) -> str:
    """``name``, if an object of this kind may have it.

    Raises:
        ConfigError: it is longer than the operator takes, or no name of DNS (RFC 1035).
    """
    longest = LONGEST.get(kind, _LONGEST_OF_OTHERS)
    if not _DNS_1035.fullmatch(name) or len(name) > longest:
        raise ConfigError(
            f"The {kind}'s name would be {name!r} ({len(name)} characters), which Kubernetes refuses: it "
            f"takes 1 to {longest} lower-case letters, digits and hyphens, beginning with a letter and not "
            "ending with a hyphen. Give the cluster or the job another name."
        )
    return name
