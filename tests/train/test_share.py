"""A worker on a part of a card keeps to its part before anything of the model is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.environments import interpreter
from cluster.estimator.calibration import calibration
from cluster.processes import free_port
from runtime.core.config import load_spec
from storage.store import Store
from tests.conftest import DEADLINE_S, ROOT, TestCluster
from tests.inventories import nodes
from train_jobs.plan import plan_train
from train_jobs.spec import TrainSpec

pytestmark = pytest.mark.engine

CARD_BYTES = 24 << 30
"""Of the card that the program stands in for."""


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_part_of_a_card_is_kept_to_before_the_card_is_used_and_a_whole_one_is_not(
    share: float, store: Store, spec: dict[str, Any], cluster: TestCluster, tmp_path: Path
):
    spec["scaling"] = {"num_workers": 1, "gpus_per_worker": share}
    checked = load_spec(TrainSpec, spec)
    run = store.new_run(checked.name, checked.to_json())
    plan = plan_train(checked, store=store, run=run, inventory=nodes({"CPU": 4, "GPU": 1}))
    assert (plan.use_gpu, plan.resources_per_worker["GPU"]) == (True, share)
    events = _events(plan.to_json(), cluster.address, tmp_path)
    assert ["used", None] in events, events
    used = events.index(["used", None])
    # PyTorch counts what it allocates; the context beside it is part of the share, too.
    context = calibration("NVIDIA L4").train_process_bytes / CARD_BYTES
    kept = [["fraction", pytest.approx(share - context, rel=1e-9)]] if share < 1 else []
    assert events[:used] == kept, events
    assert share == 1 or 0.2 < share - context < share, "neither nothing nor all of it"


def _events(plan: str, address: str, folder: Path) -> list[Any]:
    """What the worker did with the card, in order."""
    (folder / "plan.json").write_text(plan)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.train.share_program", str(folder / "plan.json")),
            *(str(free_port()), address, str(interpreter("train"))),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return list(json.loads(done.stdout.splitlines()[-1]))
