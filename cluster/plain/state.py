"""The node of a plain cluster that runs on this machine, if one does: its state file, and its end."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

from cluster import supervised
from cluster.lock import locked
from cluster.plain.store import storage_settings
from cluster.processes import is_alive
from runtime.core.config import ConfigModel, load_spec
from runtime.core.errors import ConfigError, TandemError
from runtime.core.log import get_logger
from runtime.core.places import home
from storage.local_files import write_json
from storage.patience import patience
from storage.store import open_store

_log = get_logger(__name__)
DRAIN_S = 30
"""A node that leaves has so long to finish its requests and to let training save a checkpoint."""
_END_TIMEOUT_S = DRAIN_S + 60.0
_MARK_PATIENCE_S = 5.0


class PlainNode(ConfigModel):
    """This machine's part in a plain cluster, as its state file tells."""

    role: Literal["head", "joined"]
    pid: int
    """The supervisor, of which every process of the node is a descendant."""

    create_time: float
    """When the supervisor began, in seconds since 1970."""

    address: str
    """The head's, ``ip:port``, as ``tandem up --join`` takes it."""

    node_ip: str
    """This machine's own address in the cluster."""

    dashboard_url: str
    """The head's dashboard: ``--address`` of every command."""

    http_url: str
    """Where this machine answers for the cluster's serve apps: the head always, a joined one while it has a
    replica."""

    token_file: str | None
    """The file with the token; None where the cluster is open to all who reach it."""

    store: str
    """Root address of the cluster's store."""

    store_options: dict[str, dict[str, Any]] = {}
    """How it is reached, where the cluster spec says so (``store.options``)."""

    mark: str | None = None
    """The head's file in the store, by which the others know that they see the same one."""

    temp_dir: str
    """Ray's folder on this machine: sessions and logs."""

    prometheus_url: str | None = None
    """Where Prometheus answers, on the head, if it was asked for."""

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return is_alive(self.pid, self.create_time)


def current() -> PlainNode | None:
    """The node that runs here, or None. A state file left by a crash counts for nothing."""
    try:
        node = load_spec(PlainNode, node_file())
    except ConfigError:
        return None
    return node if node.alive else None


def keep(node: PlainNode) -> PlainNode:
    """Write the state file."""
    write_json(node_file(), node.model_dump())
    return node


def down() -> PlainNode | None:
    """End the node that runs here, every process of it; the node, or None where there was none.

    A joined one is drained first: its training saves a checkpoint, its replicas finish their requests. With
    the head the whole cluster ends; the joined machines notice and leave.

    Raises:
        ClusterError: it did not end in time.
    """
    with one_at_a_time():
        node = current()
        if node:
            supervised.end(timeout_s=_END_TIMEOUT_S)
            _remove_mark(node)
        node_file().unlink(missing_ok=True)
        return node


def _remove_mark(node: PlainNode) -> None:
    if node.mark is None:
        return
    try:
        with storage_settings(node.store_options), patience(_MARK_PATIENCE_S):
            (open_store(node.store).root / node.mark).delete()
    except TandemError as error:
        # The cluster has ended all the same, and the next one has a file of its own.
        _log.warning("%s stays in the store; it may be deleted: %s", node.mark, error)


def one_at_a_time() -> AbstractContextManager[int]:
    """One ``up`` or ``down`` at a time. The kernel drops it when the holder dies."""
    return locked(home() / "cluster.lock", waiting_for="it starts or ends the cluster")


def node_file() -> Path:
    """Where the state is kept."""
    return home() / "node.json"
