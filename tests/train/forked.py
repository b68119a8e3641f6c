"""Real trainings in seconds: plans of real specs, run by the engine's own code in forked ranks, without Ray.

What Ray Train adds is tested in test_engine and test_survival; here it is what is trained that varies.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil
import yaml

from cluster.environments import interpreter, process_env
from runtime.core.config import load_spec
from runtime.demo import add_demo_inputs
from storage.commit import read_manifest
from storage.manifest import FileEntry, OutputManifest
from storage.runs import RunFolder
from storage.store import Store, open_store
from tests.conftest import ROOT
from tests.inventories import nodes
from tests.train import living
from train_jobs.plan import TrainPlan, plan_train, resolve
from train_jobs.spec import TrainSpec

EXAMPLES = ROOT / "examples" / "train"
EXAMPLE_DATA = ROOT / "examples" / "data"
START_S = 120.0
TRAINING_S = 120.0


LESSON = living.lesson(
    "lesson",
    {
        "max_samples": 64,
        "max_steps": 9,
        "save_steps": 3,
        "gradient_accumulation_steps": 2,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "weight_decay": 0.01,
        "disable_gradient_checkpointing": True,
    },
)
"""Nine steps of 16 rows, so across epochs of four steps, with a learning rate that changes at every step."""


def lesson(deepspeed: str | None, recipe: dict[str, Any] | None = None) -> dict[str, Any]:
    """LESSON with a DeepSpeed preset or plain DDP, and other arguments of LLaMA-Factory."""
    return LESSON | {"deepspeed": deepspeed, "llamafactory": LESSON["llamafactory"] | (recipe or {})}


def example(name: str, recipe: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """``examples/train/<name>.yaml`` with other arguments of LLaMA-Factory and other fields."""
    spec = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    return spec | {"llamafactory": spec["llamafactory"] | (recipe or {})} | fields


def add_example_data(store: Store) -> None:
    """The datasets of ``examples/data``, registered as the examples' headers say."""
    for file in sorted(EXAMPLE_DATA.glob("*.jsonl")):
        store.add_dataset(file.stem, [str(file)])


@dataclass(frozen=True)
class Trained:
    """A training that has ended."""

    run: RunFolder
    plan: TrainPlan
    faults: list[str | None]
    """One a rank; None where there was none."""
    log: str
    """What all ranks printed."""

    @property
    def fault(self) -> str | None:
        """The first one."""
        return next((fault for fault in self.faults if fault), None)

    def curve(self, *names: str, after: int = 0) -> list[tuple[Any, ...]]:
        """Step and the named values of every step logged later than ``after``."""
        lines = [line for line in self.run.metrics() if "loss" in line and line["step"] > after]
        return [(line["step"], *(line[name] for name in names)) for line in lines]

    def losses(self, after: int = 0) -> list[float]:
        """The loss of every step logged later than ``after``."""
        return [loss for _, loss in self.curve("loss", after=after)]

    def lines(self, mark: str) -> list[dict[str, Any]]:
        """The lines of metrics that have a value whose name begins with ``mark``."""
        return [line for line in self.run.metrics() if any(name.startswith(mark) for name in line)]

    def weights(self) -> list[FileEntry]:
        """The weights that the run kept: their paths, sizes and checksums."""
        manifest = read_manifest(self.run.place / "output", OutputManifest)
        assert manifest is not None
        return [entry for entry in manifest.files if entry.path.endswith(".safetensors")]

    def saved_steps(self) -> list[int]:
        """The steps of the committed checkpoints."""
        return [one.manifest.step for one in self.run.checkpoints()]


@dataclass
class Trainings:
    """The program of ``matrix_program``, and a store with the demo's model and all example data."""

    store: Store
    folder: Path
    program: subprocess.Popen[str]
    outcomes: IO[str]
    """Where the program says one line for each task."""
    _once: dict[str, Trained] = field(default_factory=dict)

    def train(self, spec: dict[str, Any]) -> Trained:
        """Train, and fail the test if that fails."""
        done = self.attempt(spec)
        assert done.fault is None, f"{done.fault}\n{done.log[-4000:]}"
        return done

    def train_once(self, spec: dict[str, Any]) -> Trained:
        """The same, but equal specs are trained once for all tests: they come out equal."""
        key = json.dumps(spec, sort_keys=True)
        if key not in self._once:
            self._once[key] = self.train(spec)
        return self._once[key]

    def attempt(self, spec: dict[str, Any]) -> Trained:
        """Train; it may fail."""
        checked = resolve(load_spec(TrainSpec, spec))
        return self._run(self.store.new_run(checked.name, checked.to_json()), checked, None)

    def resume(self, done: Trained, *, from_step: int, num_workers: int | None = None) -> Trained:
        """What becomes of ``done`` when it is killed after the checkpoint of ``from_step``, and taken up.

        Args:
            num_workers: With another number of workers, like ``tandem train --resume RUN --num-workers N``.
        """
        spec = load_spec(TrainSpec, json.loads(done.run.spec_json()))
        run = self.store.new_run(spec.name, spec.to_json())
        before, folder = done.run.place.local_path(), run.place.local_path()
        assert before is not None
        assert folder is not None
        step = f"checkpoints/step-{from_step:08d}"
        shutil.copytree(before / step, folder / step)
        # Killed before its next checkpoint: later steps were logged, and are done again.
        shutil.copy(before / "metrics.jsonl", folder)
        again = self._run(run, spec, num_workers)
        assert again.fault is None, f"{again.fault}\n{again.log[-4000:]}"
        assert "Resuming training from checkpoint" in again.log or "Continuing training" in again.log
        return again

    def _run(self, run: RunFolder, spec: TrainSpec, go_on_with: int | None) -> Trained:
        plan = plan_train(
            spec, store=self.store, run=run, inventory=nodes({"CPU": 2.0}), go_on_with=go_on_with
        )
        folder = self.folder / run.run_id
        folder.mkdir()
        task = {
            "plan": plan.to_json(),
            "num_workers": plan.max_workers,
            "folder": str(folder),
            "timeout_s": TRAINING_S,
        }
        assert self.program.stdin is not None
        self.program.stdin.write(json.dumps(task) + "\n")
        self.program.stdin.flush()
        outcome = self.next_line(TRAINING_S + 30)
        log = "".join(file.read_text() for file in sorted(folder.glob("rank-*.log")))
        return Trained(run, plan, outcome["faults"], log)

    def next_line(self, timeout_s: float) -> dict[str, Any]:
        """The next line that the program says."""
        ready, _, _ = select.select([self.outcomes], [], [], timeout_s)
        line = self.outcomes.readline() if ready else ""
        assert line, f"the program said nothing within {timeout_s:.0f} s; exit code {self.program.poll()}"
        return dict(json.loads(line))


@contextmanager
def trainings(home: Path) -> Iterator[Trainings]:
    """The program while it runs, with a store of its own below ``home``; ended by its process id."""
    folder = home / "trainings"
    folder.mkdir()
    environment = os.environ | process_env("train") | {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hf")}
    # Not its stdout: libraries print there while they are imported.
    reading, writing = os.pipe()
    command = [str(interpreter("train")), "-m", "tests.train.matrix_program", str(writing)]
    with (folder / "program.log").open("w") as log:
        program = subprocess.Popen(
            command,
            env=environment,
            pass_fds=[writing],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            text=True,
        )
    os.close(writing)
    outcomes = os.fdopen(reading)
    try:
        store = open_store(str(folder / "store"))
        # Built once for the session, beside the shared cluster's.
        add_demo_inputs(shared := open_store(str(home / "store")))
        with shared.model("docstrings-base").fetch() as base:
            store.publish_model(base.path, "docstrings-base", template="qwen3_nothink")
        store.add_dataset("docstrings", shared.dataset("docstrings").rows())
        add_example_data(store)
        running = Trainings(store, folder, program, outcomes)
        assert running.next_line(START_S) == {"ready": program.pid}
        yield running
    finally:
        # With the ranks of a training that a failed test did not wait for.
        living.kill_tree(psutil.Process(program.pid))
        program.communicate()
        outcomes.close()
