"""Committed checkpoints as folders of this node, in the form that this attempt's engine loads."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch.distributed as dist

from storage.cache import cached, wanted_of
from storage.runs import Checkpoint, RunFolder
from train_jobs.engine.committing import last_checkpoint
from train_jobs.engine.orders import Orders
from train_jobs.engine.universal import converted, needs_conversion
from train_jobs.plan import TrainPlan


class Resuming:
    """Where an attempt begins. What it makes stays until ``stack`` ends.

    Args:
        scratch: A folder that the ranks of this node share.
        node: Which node this is.
    """

    def __init__(
        self, plan: TrainPlan, run: RunFolder, scratch: Path, orders: Orders, stack: ExitStack, node: str
    ) -> None:
        self._plan, self._run, self._scratch = plan, run, scratch
        self._orders, self._stack, self._node = orders, stack, node
        self._universal = False

    def arguments(self) -> dict[str, Any]:
        """What LLaMA-Factory is given to go on from the last committed checkpoint. Called by all ranks."""
        found = last_checkpoint(self._run)
        if found is None or self._plan.llamafactory.get("save_only_model"):
            return {"resume_from_checkpoint": None, "deepspeed": self._plan.deepspeed}
        folder = self._fetched(found)
        done = _is_done(folder)
        if self._plan.deepspeed is not None and needs_conversion(folder, dist.get_world_size()):
            self._universal = True
            folder = self._converted(folder, found.manifest.step)
        return {
            "resume_from_checkpoint": str(folder),
            "deepspeed": self._deepspeed(),
            # Else the trainer does one step more than it was told: it looks only after a step.
            **({"max_steps": -1, "num_train_epochs": 0.0} if done else {}),
        }

    def bring(self, checkpoint: Checkpoint) -> Path:
        """A checkpoint of this run as the engine that runs now can load it. Called by all ranks."""
        folder = self._fetched(checkpoint)
        if self._universal and (folder / "latest").exists():
            # Once told to load universal checkpoints, DeepSpeed loads no others.
            return self._converted(folder, checkpoint.manifest.step)
        return folder

    def _deepspeed(self) -> dict[str, Any] | None:
        given = self._plan.deepspeed
        if given is None or not self._universal:
            return given
        return given | {"checkpoint": given.get("checkpoint", {}) | {"load_universal": True}}

    def _fetched(self, checkpoint: Checkpoint) -> Path:
        manifest = checkpoint.manifest
        wanted = wanted_of(manifest.files, checkpoint.place / manifest.prefix)
        return self._stack.enter_context(cached(wanted, label=f"{self._run.run_id} step {manifest.step}"))

    def _converted(self, folder: Path, step: int) -> Path:
        """In DeepSpeed's universal form, made by the first rank of each node for all of it."""
        made: Path | Exception | None = None
        # Not Ray Train's local rank: that counts by address, and a machine may run several nodes.
        if self._orders.gathered(self._node).index(self._node) == dist.get_rank():
            target = self._scratch / f"universal-{step}-{self._node[:8]}"
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            self._stack.callback(shutil.rmtree, target, ignore_errors=True)
            try:
                made = converted(folder, target)
            except Exception as error:  # told to the others, who wait
                made = error
        told = self._orders.gathered((self._node, made))
        for _, what in told:
            if isinstance(what, Exception):
                raise what
        return next(what for place, what in told if place == self._node and isinstance(what, Path))


def _is_done(checkpoint: Path) -> bool:
    """Whether the checkpoint is of the last step: only evaluation and handing in are left."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return bool(state["global_step"] >= state["max_steps"] > 0)
