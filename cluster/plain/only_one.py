"""One TANDEM_HOME has one Ray: what is asked for runs already, or something else does, or nothing."""

from __future__ import annotations

from typing import Literal

from cluster import local
from cluster.plain import state
from cluster.plain.state import PlainNode
from runtime.core.errors import ClusterError


def refuse_a_second(role: Literal["head", "joined"], address: str | None) -> PlainNode | None:
    """The node that runs here, where it is the one asked for; None where nothing runs.

    Args:
        address: The head's, which a joined one must have; None: any.

    Raises:
        ClusterError: the local cluster runs here, or another node.
    """
    embedded = local.current()
    if embedded:
        raise ClusterError(
            f"this machine's local cluster runs ({embedded.dashboard_url}). End it first: tandem down."
        )
    node = state.current()
    if node is None or (node.role == role and address in (None, node.address)):
        return node
    raise ClusterError(
        f"this machine is a node of the cluster at {node.address} already ({node.role}). Leave it first: "
        "tandem down."
    )
