"""Every DeepSpeed preset trains for real on two workers, and learns what plain DDP learns."""

from __future__ import annotations

import pytest

from cluster.environments import interpreter
from tests.conftest import ROOT
from tests.train.forked import Trainings, example, lesson
from train_jobs import deepspeed_presets

pytestmark = pytest.mark.engine

PRESETS = deepspeed_presets.names()

SAME = 1e-3
"""Relative. DeepSpeed rounds to 16 bits at other points than DDP, and presets sum in other orders: seen up
to 5e-4 in nine steps in which the loss falls from 8.4 to 4.4."""


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_learns_what_plain_ddp_learns(preset: str, trainings: Trainings):
    plain = trainings.train_once(lesson(None))
    done = trainings.train_once(lesson(preset))
    assert done.losses() == pytest.approx(plain.losses(), rel=SAME)
    assert done.curve("learning_rate") == plain.curve("learning_rate")
    assert done.losses()[-1] < 0.6 * done.losses()[0]
    assert done.saved_steps() == [3, 6, 9]
    # However it was sharded, what is handed in is one whole model.
    base = trainings.store.model("docstrings-base").manifest
    assert base is not None
    size_bytes = {file.path: file.size_bytes for file in base.files}["model.safetensors"]
    assert [file.path for file in done.weights()] == ["model.safetensors"]
    assert done.weights()[0].size_bytes >= size_bytes


def test_a_second_run_that_offloads_compiles_nothing(trainings: Trainings, monkeypatch: pytest.MonkeyPatch):
    trainings.train_once(lesson("zero2-offload"))
    before = compiled()
    assert before
    # Its DeepSpeed config is found from the top of the clone.
    monkeypatch.chdir(ROOT)
    done = trainings.train(example("sft_seed_ds_config", {"max_steps": 2}))
    assert compiled() == before
    # DeepSpeed's own optimizer says so, by printing to the process's stdout from C++.
    assert "Adam Optimizer #0 is created with" in done.log
    assert len(done.losses()) == 1


def compiled() -> dict[str, int]:
    """DeepSpeed's compiled ops in the environment, and when each was written, in nanoseconds since 1970."""
    prefix = interpreter("train").parent.parent
    return {str(file): file.stat().st_mtime_ns for file in prefix.glob("torch_extensions/*/*/*.so")}
