"""One run, taken up as often as it takes: after a loss, when a node is taken back, or there is more room."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.ledger.client import NeverFits, Place, Room, Stopped
from runtime.core.errors import WaitTimeout
from storage.runs import RunFolder
from train_jobs.elastic import worker_counts
from train_jobs.engine import admission, room
from train_jobs.engine.failure import Failure, failure
from train_jobs.engine.watch import Watch
from train_jobs.plan import TrainPlan

_POLL_S = 1.0
_SETTLE_S = 5.0
"""How long an elastic run waits for more room than it found, before it begins: nodes and workers come and go
one after another."""
_RESIZED_S = 20.0
"""The same, where it left for more room that is there: its own workers give theirs back one after another,
and the ledger, which looks once a second, hears of all that later than Ray."""
_PINNED_START_S = 30.0
"""How long an elastic run, and one whose nodes the ledger has named, waits for its workers before it counts
the room again. A node that died may count for half a minute."""


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
        self._waiting_since_s: float | None = None
        # A run that goes on after a loss is as old as it was.
        self._asked_at = time.time()
        self._had_room = False
        self._settle_s = _SETTLE_S

    def until_end(self) -> Failure | dict[str, Any]:
        """Take the run up until it has succeeded, was stopped by a person, or cannot go on.

        Returns:
            ``{"ended": "succeeded"}``, ``{"ended": "stopped", "reason": ..., "step": ...}``, or why not.
        """
        while True:
            ended = self._once()
            if not (isinstance(ended, Failure) and ended.no_room):
                self._waiting_since_s = None
            self._settle_s = _SETTLE_S
            if isinstance(ended, dict):
                if ended["ended"] in ("succeeded", "stopped"):
                    return ended
                if ended["ended"] == "resized":
                    self._settle_s = _RESIZED_S
                self._tell(
                    f"{ended['reason']}: a checkpoint of step {ended['step']} is kept; going on from it"
                )
                self._failed_at = time.time()
                continue
            asked = self._folder.stop_request()
            if asked and asked.ended == "stopped" and not ended.superseded:
                # Lost while it was leaving: the last checkpoint is what there is.
                return {"ended": "stopped", "reason": asked.reason, "step": self._step()}
            if ended.no_room and self._gave_up_waiting():
                return ended
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
        if self._folder.driver() != self._driver:
            return Failure("another driver has taken up this run", superseded=True)
        if self._folder.is_handed_in():
            # The attempt before was lost after its work was done.
            return {"ended": "succeeded"}
        asked = self._folder.stop_request()
        if asked and asked.ended == "stopped":
            return {"ended": "stopped", "reason": asked.reason, "step": self._step()}
        self._folder.withdraw_leave()
        self._waiting_since_s = self._waiting_since_s or time.monotonic()
        possible, settled_s = worker_counts(self._plan), time.monotonic() + self._settle_s
        while True:
            asked_for = admission.sizes(self._plan, self._workers(settled_s), possible)
            with closing(Place(asked_for, priority=self._plan.priority, since_s=self._asked_at)) as place:
                room_ = self._wait_for(place)
                if isinstance(room_, Failure):
                    return room_
                if room_.choice == 0 or time.monotonic() > settled_s:
                    return self._attempt(asked_for[room_.choice].workers_per_group, room_)
            # Less than Ray says is free: the ledger has not seen it yet, or somebody else is to have it.
            time.sleep(_POLL_S)

    def _wait_for(self, place: Place) -> Room | Failure:
        """The room that the ledger gives, or why there is none."""
        told = ""
        try:
            while True:
                try:
                    return self._ask_for(place)
                except NeverFits as error:
                    # A run that had room has lost its node, and that may come back.
                    if not self._had_room or self._gave_up_waiting():
                        return Failure(str(error))
                    if self._folder.stop_request() is not None:
                        raise Stopped from None
                    if str(error) != told:
                        told = str(error)
                        self._tell_waiting(f"for a node to come back: {told}")
                    time.sleep(_POLL_S)
        except WaitTimeout as error:
            return Failure(f"{error} (failure.start_timeout_s).")
        except Stopped:
            return Failure("asked to stop while it waited for room", no_room=True)
        finally:
            self._folder.set_waiting(None)

    def _ask_for(self, place: Place) -> Room:
        waited_s = time.monotonic() - (self._waiting_since_s or 0.0)
        return place.wait(
            timeout_s=self._plan.failure.start_timeout_s - waited_s,
            tell=self._tell_waiting,
            should_stop=lambda: self._folder.stop_request() is not None,
            # Once it had room, a loss must not end it.
            may_wait=self._plan.may_wait or self._had_room,
        )

    def _tell_waiting(self, why: str) -> None:
        self._folder.set_waiting(why)
        self._tell(f"waits for room: {why}")

    def _attempt(self, workers: int, room_: Room) -> Failure | dict[str, Any]:
        self._had_room = True
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
        ended = self._fit(workers, room_)
        said = {"ended": "failed", "reason": ended.reason} if isinstance(ended, Failure) else ended
        if not (isinstance(ended, Failure) and ended.superseded):
            self._folder.write_attempt(
                self._number, "ended", **{**said, "ended_at": time.time(), "step": self._step()}
            )
        return ended

    def _fit(self, workers: int, room_: Room) -> Failure | dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="tandem-train-") as scratch:
            watch = Watch(self._folder, self._plan, workers)
            self._limit_start(room_)
            try:
                result = self._trainer(workers, room_, Path(scratch)).fit()
            except Exception as error:  # of any kind: sorted by `failure`
                found = failure(error)
                return replace(found, reason=self._no_room(workers)) if found.no_room else found
            finally:
                watch.close()
        return dict(result.return_value)

    def _limit_start(self, room_: Room) -> None:
        """How long Ray Train waits for the workers; its default of 60 s is less than a new node takes.

        Where the ledger has said which nodes they are to be on, not long: a node that died may have been
        granted still, and would be waited for, by its id, for as long as a run waits for room.
        """
        limit_s = self._plan.failure.start_timeout_s
        is_elastic = self._plan.min_workers < self._plan.max_workers
        if is_elastic or admission.node_labels(self._plan, room_) is not None:
            limit_s = min(_PINNED_START_S, limit_s)
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(limit_s)

    def _trainer(self, workers: int, room_: Room, scratch: Path) -> TorchTrainer:
        """Ray Train's trainer.

        Args:
            room_: Where the workers are to be.
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
                # With logical cards, too, which Ray hands out only so.
                use_gpu=plan.resources_per_worker.get("GPU", 0) > 0,
                label_selector=admission.node_labels(plan, room_),
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

    def _workers(self, settled_s: float) -> int:
        """How many workers this attempt has: as many as there is room for, but not less than the least.

        Ray Train then waits for room, and an autoscaler sees what is wanted.

        Args:
            settled_s: Until when more room is waited for, on the monotonic clock.
        """
        sizes = worker_counts(self._plan)
        if len(sizes) == 1:
            return sizes[0]
        while True:
            possible = [size for size in sizes if size <= room.fitting(self._plan)]
            if (possible and possible[-1] == sizes[-1]) or time.monotonic() > settled_s:
                return possible[-1] if possible else sizes[0]
            time.sleep(_POLL_S)

    def _no_room(self, workers: int) -> str:
        return (
            f"no {room.missing(self._plan, workers, room.fitting(self._plan))} (failure.start_timeout_s is "
            f"{self._plan.failure.start_timeout_s:g} s). Wait for other jobs, or lower scaling.num_workers."
        )

    def _gave_up_waiting(self) -> bool:
        """Whether there has been no room for longer than the spec allows."""
        waited_s = time.monotonic() - (self._waiting_since_s or 0.0)
        # Ray Train waits a little less than it was told.
        return waited_s > 0.95 * self._plan.failure.start_timeout_s

    def _step(self) -> int:
        found = self._folder.checkpoints()
        return found[-1].manifest.step if found else 0

    def _tell(self, what: str) -> None:
        print(f"run {self._folder.run_id}: {what}", flush=True)
