"""What the estimate takes for granted of torch and transformers, against what they allocate."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from cluster.environments import interpreter, process_env
from cluster.estimator.optimizers import state_bytes
from cluster.estimator.training_shape import Evaluation
from tests.conftest import ROOT

pytestmark = pytest.mark.engine


def test_optimizers_states_and_an_evaluations_logits_are_as_large_as_they_are_reckoned():
    done = subprocess.run(
        [str(interpreter("train")), "-m", "tests.estimator.counted_program"],
        env=os.environ | process_env("train") | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    counted = json.loads(done.stdout.splitlines()[-1])
    for optim, by_type in counted["states"].items():
        for dtype, each in (("torch.float32", 4), ("torch.bfloat16", 2)):
            reckoned = state_bytes(optim, hidden_size=512, parameter_bytes=each)
            assert by_type[dtype] == pytest.approx(reckoned, abs=0.001), (optim, dtype)
    assert counted["logits"]["torch.bfloat16"] == pytest.approx(Evaluation(1).logits_bytes, rel=0.01)
    assert counted["logits"]["torch.float32"] == pytest.approx(8, rel=0.01), (
        "less: what is reckoned is enough"
    )
