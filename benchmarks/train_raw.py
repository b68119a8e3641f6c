"""LLaMA-Factory under torchrun, with two clocks: what benchmarks/train.py compares Tandem with.

    torchrun --nproc_per_node 2 benchmarks/train_raw.py ARGUMENTS.json REPORT.json

The callback only looks at the clock: when the first and the last step were done, and how long each save of
the trainer's own, to a local folder, held training up.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

_STARTED_AT = time.time()

import deepspeed  # noqa: E402
from llamafactory.train.tuner import run_exp  # noqa: E402
from transformers import TrainerCallback  # noqa: E402


class Clock(TrainerCallback):
    """Wall-clock times of steps, and the length of each save."""

    def __init__(self) -> None:
        self.steps_at: list[float] = []
        self.saves_s: list[float] = []
        self._saving_since = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps_at.append(time.time())
        self._saving_since = time.time()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saves_s.append(time.time() - self._saving_since)


def main() -> None:
    """Train, and write the times."""
    # As Tandem does it: plain gloo, and no compiler at start.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    clock = Clock()
    run_exp(json.loads(Path(sys.argv[1]).read_text()), [clock])
    if os.environ["RANK"] == "0":
        found = {"started_at": _STARTED_AT, "steps_at": clock.steps_at, "saves_s": clock.saves_s}
        Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
