"""One training worker of a plan as an actor of a cluster; prints what it did with its card, as JSON.

python -m tests.train.share_program PLAN PORT RAY_ADDRESS PYTHON      # PYTHON: of the train environment
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray


@ray.remote(num_cpus=0)
class Worker:
    """Like Ray Train's, which can be called while it trains."""

    def begin(self, plan: str, port: str) -> None:
        """Train, in a thread."""
        # Only the actor has torch.
        from tests.train import share_worker

        self._events: list[Any] = []
        self._training = share_worker.begin(plan, port, self._events)

    def execute(self, called: Callable[[], Any]) -> Any:
        """As in Ray Train's worker."""
        return called()

    def ended(self) -> list[Any] | None:
        """The events, in order; None while it trains."""
        return None if self._training.is_alive() else self._events


def main() -> None:
    """Begin, and wait for its end."""
    plan, port, address, python = sys.argv[1:]
    env = {"py_executable": python, "env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}}
    ray.init(address=address, runtime_env=env, log_to_driver=False, logging_level="ERROR")
    worker = Worker.remote()
    ray.get(worker.begin.remote(Path(plan).read_text(), port))
    while (events := ray.get(worker.ended.remote())) is None:
        time.sleep(0.2)
    print(json.dumps(events))


if __name__ == "__main__":
    main()
