"""The ledger as one actor of the cluster, on the head, which looks at everything once a second.

It holds nothing that cannot be had again: shares are told by the processes that hold them, a request is asked
for again until it is granted. So it may be killed at any time, and the head with it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import ray
from ray._private.state import available_resources_per_node, state
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.environments import interpreter, process_env
from cluster.haproxy_rules import BY_PREFIX
from cluster.inventory import Inventory
from cluster.ledger.core import Core
from cluster.ledger.metrics import LedgerMetrics
from cluster.ledger.picture import FILE
from cluster.nodes import node_of
from cluster.nodes_to_come import groups_to_come
from cluster.placement import Request
from cluster.priority import priorities_here
from cluster.shares.holding import folder_of
from cluster.shares.reading import NodeReading, read_node
from runtime.core.log import get_logger

_log = get_logger(__name__)
_PERIOD_S = 1.0
_READ_TIMEOUT_S = 2.0
"""So long all nodes together may take to answer; of one that takes longer, its last reading counts."""
_NAME, _NAMESPACE = "ledger", "tandem"
_HEAD = "node:__internal_head__"


def ledger() -> Any:
    """The cluster's ledger, started when there is none. Call it in a process that is connected to Ray."""
    # A runtime_env replaces PYTHONPATH; the cluster's own, where this code lies, must stay on it.
    env_vars = process_env("core") | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    actor: Any = ray.remote(Ledger)
    return actor.options(
        name=_NAME,
        namespace=_NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_task_retries=-1,
        num_cpus=0,
        max_concurrency=64,
        resources={_HEAD: 0.001},
        runtime_env={"py_executable": str(interpreter("core")), "env_vars": env_vars},
    ).remote()


class Ledger:
    """Looks, and answers."""

    def __init__(self) -> None:
        node = ray._private.worker._global_node
        self._session = Path(node.get_session_dir_path())
        self._file = Path(node.get_logs_dir_path()) / FILE
        self._node_id = ray.get_runtime_context().get_node_id()
        self._readers: dict[str, Any] = {}
        self._asked: dict[str, Any] = {}
        """What readers have not answered yet."""
        self._last: dict[str, NodeReading] = {}
        self._core = Core(groups_to_come(), priorities_here())
        # None: what a ledger before this one has asked for stands until it is told otherwise.
        self._bundles: list[dict[str, float]] | None = None
        self._lock = threading.Lock()
        self._metrics = LedgerMetrics()
        self._look()
        threading.Thread(target=self._look_for_ever, name="look", daemon=True).start()

    def ask(
        self, sizes: list[Request], *, priority: str, since_s: float, wait: bool = True, token: str = ""
    ) -> dict[str, Any]:
        """See :meth:`Core.ask`; ``since_s`` in seconds since 1970."""
        # Leases and ages run on a clock that nobody sets.
        now_s = time.monotonic()
        since_s = now_s - max(0.0, time.time() - since_s)
        with self._lock:
            return self._core.ask(
                sizes, priority=priority, since_s=since_s, now_s=now_s, wait=wait, token=token
            )

    def renew(self, name: str) -> bool:
        """See :meth:`Core.renew`."""
        with self._lock:
            return self._core.renew(name, time.monotonic())

    def leave(self, name: str, token: str | None = None) -> None:
        """See :meth:`Core.leave`."""
        with self._lock:
            self._core.leave(name, token)

    def starts(self, name: str) -> None:
        """See :meth:`Core.starts`."""
        with self._lock:
            self._core.starts(name, time.monotonic())

    def holds_already(self, holder: str) -> bool:
        """See :meth:`Core.holds_already`."""
        with self._lock:
            return self._core.holds_already(holder)

    def picture(self) -> dict[str, Any]:
        """See :meth:`Core.picture`; ``at`` in seconds since 1970."""
        with self._lock:
            return self._core.picture(time.monotonic()) | {"at": time.time()}

    def pid(self) -> int:
        """Of its process."""
        return os.getpid()

    def _look_for_ever(self) -> None:
        was_told = False
        while True:
            time.sleep(_PERIOD_S)
            try:
                self._look()
                was_told = False
            except Exception as error:  # of any kind: the next look may go better
                if not was_told:
                    _log.warning("the ledger could not look: %r", error)
                was_told = True

    def _look(self) -> None:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        draining = set(state.get_draining_nodes())
        inventory = Inventory.of(
            node_of(node["NodeID"], node["Resources"], address=node["NodeManagerAddress"])
            for node in nodes
            # One that is taken back takes nobody new.
            if node["NodeID"] not in draining
        )
        free = {node: dict(amounts) for node, amounts in available_resources_per_node().items()}
        readings = self._read([node.node_id for node in inventory.nodes])
        with self._lock:
            self._core.look(inventory, free, readings, time.monotonic())
        if self._core.has_lost:
            self._look_after_lost()
        with self._lock:
            bundles = self._core.bundles()
        picture = self.picture()
        if bundles != self._bundles:
            # Who waits here has asked Ray for nothing yet: nobody else would make the cluster grow.
            request_resources(bundles=bundles)
            self._bundles = bundles
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(picture))
        new.replace(self._file)
        self._metrics.tell(picture, readings)

    def _look_after_lost(self) -> None:
        try:
            wanted = _replicas()
        except Exception as error:  # Serve does not answer: it may be on its way back, and want them
            _log.info("Serve was not asked for its replicas: %r", error)
            return
        with self._lock:
            self._core.keep_lost(wanted)

    def _read(self, node_ids: list[str]) -> list[NodeReading]:
        """Every node's reading, side by side: this one's here, the others' by an actor on each."""
        others = set(node_ids) - {self._node_id}
        for known in (self._readers, self._asked, self._last):
            for node_id in known.keys() - others:
                del known[node_id]
        for node_id in others - self._asked.keys():
            self._asked[node_id] = self._reader(node_id).read.remote()
        if self._asked:
            replies = list(self._asked.values())
            answered, _ = ray.wait(replies, num_returns=len(replies), timeout=_READ_TIMEOUT_S)
            for node_id in [one for one, reply in self._asked.items() if reply in answered]:
                self._take(node_id, self._asked.pop(node_id))
        found = list(self._last.values())
        if self._node_id in node_ids:
            found.append(read_node(folder_of(self._session, self._node_id), self._node_id))
        return found

    def _take(self, node_id: str, reply: Any) -> None:
        try:
            self._last[node_id] = ray.get(reply)
        except Exception as error:  # its node or process is gone
            _log.info("node %s was not read: %r", node_id, error)
            self._last.pop(node_id, None)
            del self._readers[node_id]

    def _reader(self, node_id: str) -> Any:
        if node_id not in self._readers:
            actor: Any = ray.remote(Reader)
            self._readers[node_id] = actor.options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
            ).remote()
        return self._readers[node_id]


def _replicas() -> dict[str, int]:
    """Replicas of each app that Serve has, or starts."""
    # Here: asked only while one has died, and Serve's code is a third of this process.
    from ray import serve

    found: Counter[str] = Counter()
    for app in serve.status().applications.values():
        for name, deployment in app.deployments.items():
            states = deployment.replica_states
            found[name.removesuffix(BY_PREFIX)] += sum(states.values()) - states.get("STOPPING", 0)
    return found


class Reader:
    """Reads the node that it is on."""

    def __init__(self) -> None:
        self._node_id = ray.get_runtime_context().get_node_id()
        session = ray._private.worker._global_node.get_session_dir_path()
        self._folder = folder_of(session, self._node_id)

    def read(self) -> NodeReading:
        """One look."""
        return read_node(self._folder, self._node_id)
