"""One run, taken up as often as it takes: after a loss, when a node is taken back, or there is more room."""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import ray
from ray._private.state import actors
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from runtime.core.errors import StorageError
from runtime.core.log import get_logger
from storage.runs import RunFolder
from train_jobs.elastic import worker_counts
from train_jobs.engine import room
from train_jobs.engine.failure import Failure, failure
from train_jobs.plan import TrainPlan

_log = get_logger(__name__)

_POLL_S = 1.0
_SETTLE_S = 5.0
"""How long an elastic run waits for more room than it found, before it begins: nodes and workers come and go
one after another."""
ELASTIC_START_S = 30.0
"""How long an elastic run waits for its workers before it counts the room again. A node that died may count
for half a minute."""


def train_loop(config: dict[str, Any]) -> dict[str, Any]:
    """Runs in every worker. LLaMA-Factory is imported there only: the driver would take 5 s for nothing."""
    from train_jobs.engine import worker

    return worker.train_loop(config)


class Attempts:
    """The attempts of one driver at one run."""

    def __init__(self, folder: RunFolder, plan: TrainPlan, driver: str) -> None:
        self._folder, self._plan, self._driver = folder, plan, driver
        self._number = len(folder.attempts())
        self._failures = 0
        self._failed_at: float | None = None

    def until_end(self) -> Failure | dict[str, Any]:
        """Take the run up until it has succeeded, was stopped by a person, or cannot go on.

        Returns:
            ``{"ended": "succeeded"}``, ``{"ended": "stopped", "reason": ..., "step": ...}``, or why not.
        """
        while True:
            ended = self._once()
            if isinstance(ended, dict):
                if ended["ended"] in ("succeeded", "stopped"):
                    return ended
                self._tell(
                    f"{ended['reason']}: a checkpoint of step {ended['step']} is kept; going on from it"
                )
                self._failed_at = time.time()
                continue
            asked = self._folder.stop_request()
            if asked and asked.ended == "stopped" and not ended.superseded:
                # Lost while it was leaving: the last checkpoint is what there is.
                return {"ended": "stopped", "reason": asked.reason, "step": self._step()}
            self._failures += not ended.no_room
            limit = self._plan.failure.max_failures
            if not ended.retry or (limit >= 0 and self._failures > limit):
                return ended
            self._failed_at = time.time()
            self._tell(
                f"{ended.reason}; going on from step {self._step()} (failure {self._failures} of "
                f"{limit if limit >= 0 else 'any number'})"
            )

    def _once(self) -> Failure | dict[str, Any]:
        """One attempt, with as many workers as there is room for; what it ended with stands in the run."""
        asked = self._folder.stop_request()
        if asked and asked.ended == "stopped":
            return {"ended": "stopped", "reason": asked.reason, "step": self._step()}
        self._folder.withdraw_stop()
        try:
            workers = self._workers()
        except TimeoutError as error:
            return Failure(str(error))
        if workers is None:
            return self._once()
        self._number += 1
        self._folder.write_attempt(
            self._number,
            "began",
            attempt=self._number,
            driver=self._driver,
            began_at=time.time(),
            num_workers=workers,
            from_step=self._step(),
        )
        ended = self._fit(workers)
        said = {"ended": "failed", "reason": ended.reason} if isinstance(ended, Failure) else ended
        if not (isinstance(ended, Failure) and ended.superseded):
            self._folder.write_attempt(
                self._number, "ended", **{**said, "ended_at": time.time(), "step": self._step()}
            )
        return ended

    def _fit(self, workers: int) -> Failure | dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="tandem-train-") as scratch:
            watch = Watch(self._folder, self._plan, workers)
            try:
                result = self._trainer(workers, Path(scratch)).fit()
            except Exception as error:  # of any kind: sorted by `failure`
                return failure(error)
            finally:
                watch.close()
        return dict(result.return_value)

    def _trainer(self, workers: int, scratch: Path) -> TorchTrainer:
        """Ray Train's trainer.

        Args:
            scratch: For Ray Train's own notes. Checkpoints go to the store by our own commit.
        """
        plan = self._plan
        attempt = {"number": self._number, "driver": self._driver, "failed_at": self._failed_at}
        return TorchTrainer(
            train_loop,
            train_loop_config={"plan": plan.to_json(), "attempt": attempt},
            torch_config=TorchConfig(
                backend="nccl" if plan.use_gpu else "gloo",
                timeout_s=int(plan.llamafactory.get("ddp_timeout", 1800)),
            ),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=plan.use_gpu,
                resources_per_worker=plan.resources_per_worker,
                placement_strategy=plan.placement_strategy,
                accelerator_type=plan.accelerator_type,
            ),
            run_config=RunConfig(
                name="train",
                storage_path=str(scratch),
                # We try again ourselves: with other sizes, and not after a fault that comes again.
                failure_config=FailureConfig(
                    max_failures=0, controller_failure_limit=0, max_preemption_failures=0
                ),
            ),
        )

    def _workers(self) -> int | None:
        """How many workers this attempt has; None where the run was stopped while it waited for room.

        Raises:
            TimeoutError: there was no room for the least number within ``failure.start_timeout_s``.
        """
        sizes = worker_counts(self._plan)
        if len(sizes) == 1:
            return sizes[0]
        deadline_s = time.monotonic() + self._plan.failure.start_timeout_s
        settled_s = time.monotonic() + _SETTLE_S
        while True:
            free = room.fitting(self._plan)
            possible = [size for size in sizes if size <= free]
            if possible and (possible[-1] == sizes[-1] or time.monotonic() > settled_s):
                self._folder.update_record(waiting=None)
                return possible[-1]
            if not possible and time.monotonic() > settled_s:
                self._folder.update_record(waiting=f"room for {sizes[0]} workers; {free} would fit")
            if self._folder.stop_request():
                return None
            if time.monotonic() > deadline_s:
                raise TimeoutError(
                    f"no room for {sizes[0]} workers of {self._plan.resources_per_worker} within "
                    f"failure.start_timeout_s ({self._plan.failure.start_timeout_s:g} s); {free} would fit"
                )
            time.sleep(_POLL_S)

    def _step(self) -> int:
        found = self._folder.checkpoints()
        return found[-1].manifest.step if found else 0

    def _tell(self, what: str) -> None:
        print(f"run {self._folder.run_id}: {what}", flush=True)


class Watch:
    """Looks after the cluster while an attempt runs: nodes that are taken back, and room for more workers."""

    def __init__(self, folder: RunFolder, plan: TrainPlan, workers: int) -> None:
        self._folder, self._plan, self._workers = folder, plan, workers
        self._larger = [size for size in worker_counts(plan) if size > workers]
        self._closing = threading.Event()
        self._asked = False
        self._waiting: str | None = None
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
                self._say_what_it_waits_for(nodes)
                self._leave_draining_nodes(nodes)
                if nodes and self._larger and time.monotonic() > next_resize_s:
                    self._take_more_room(nodes)
                    next_resize_s = time.monotonic() + self._plan.elastic_resize_monitor_interval_s
            except (StorageError, ray.exceptions.RayError) as error:
                _log.warning("watch: %s", error)

    def _say_what_it_waits_for(self, nodes: Counter[str]) -> None:
        free = None if nodes else room.fitting(self._plan)
        waiting = None
        if free is not None and free < self._workers:
            waiting = (
                f"room for {self._workers} workers of {self._plan.resources_per_worker}; {free} would fit"
            )
        if waiting != self._waiting:
            self._folder.update_record(waiting=waiting)
            self._waiting = waiting

    def _leave_draining_nodes(self, nodes: Counter[str]) -> None:
        leaving = nodes.keys() & room.draining()
        if leaving and not self._asked:
            self._asked = True
            self._folder.request_stop(f"node {sorted(leaving)[0][:8]} is being taken back", ended="preempted")

    def _take_more_room(self, nodes: Counter[str]) -> None:
        free = room.fitting(self._plan, held=nodes)
        possible = [size for size in self._larger if size <= free]
        if possible and not self._asked:
            self._asked = True
            self._folder.request_stop(f"there is room for {possible[-1]} workers", ended="resized")


def worker_nodes() -> Counter[str]:
    """This job's training workers by the id of their node."""
    job = ray.JobID(bytes.fromhex(ray.get_runtime_context().get_job_id()))
    found = actors(job_id=job, actor_state_name="ALIVE").values()
    return Counter(one["Address"]["NodeID"] for one in found if "RayTrainWorker" in one["ActorClassName"])
