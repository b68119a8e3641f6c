"""Looks after the cluster while an attempt runs, and asks the workers to leave where that is better."""

from __future__ import annotations

import threading
import time
from collections import Counter

import ray
from ray._private.state import actors

from runtime.core.log import get_logger
from storage.runs import RunFolder
from train_jobs.elastic import worker_counts
from train_jobs.engine import room
from train_jobs.plan import TrainPlan

_log = get_logger(__name__)
_POLL_S = 1.0


class Watch:
    """Sees nodes that are taken back, and room for more workers, until it is closed."""

    def __init__(self, folder: RunFolder, plan: TrainPlan, workers: int) -> None:
        self._folder, self._plan, self._workers = folder, plan, workers
        self._larger = [size for size in worker_counts(plan) if size > workers]
        self._closing = threading.Event()
        self._asked = False
        self._seen: str | None = None
        self._said: str | None = None
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no longer."""
        self._closing.set()
        self._thread.join()

    def _look(self) -> None:
        next_resize_s = time.monotonic() + self._plan.elastic_resize_monitor_interval_s
        while not self._closing.wait(_POLL_S):
            try:
                nodes = worker_nodes()
                self._say_what_it_waits_for(has_room=bool(nodes) or worker_nodes(state="PENDING_CREATION"))
                self._leave_draining_nodes(nodes)
                if nodes and self._larger and time.monotonic() > next_resize_s:
                    self._take_more_room(nodes)
                    next_resize_s = time.monotonic() + self._plan.elastic_resize_monitor_interval_s
            except Exception as error:  # of any kind: the next look may go better
                _log.warning("watch: %s", error)

    def _say_what_it_waits_for(self, *, has_room: bool) -> None:
        free = self._workers if has_room else room.fitting(self._plan)
        waiting = None
        if free < self._workers:
            waiting = room.missing(self._plan, self._workers, free)
        # Twice in a row: between the reservation and the workers' start the room is taken, and by us.
        if waiting == self._seen and waiting != self._said:
            self._folder.set_waiting(waiting)
            self._said = waiting
        self._seen = waiting

    def _leave_draining_nodes(self, nodes: Counter[str]) -> None:
        leaving = nodes.keys() & room.draining()
        if leaving and not self._asked:
            self._folder.request_stop(f"node {sorted(leaving)[0][:8]} is being taken back", ended="preempted")
            self._asked = True

    def _take_more_room(self, nodes: Counter[str]) -> None:
        free = room.fitting(self._plan, held=nodes)
        possible = [size for size in self._larger if size <= free]
        if possible and not self._asked:
            self._folder.request_stop(f"there is room for {possible[-1]} workers", ended="resized")
            self._asked = True


def worker_nodes(*, state: str = "ALIVE") -> Counter[str]:
    """This job's training workers by the id of their node."""
    job = ray.JobID(bytes.fromhex(ray.get_runtime_context().get_job_id()))
    found = actors(job_id=job, actor_state_name=state).values()
    return Counter(one["Address"]["NodeID"] for one in found if "RayTrainWorker" in one["ActorClassName"])
