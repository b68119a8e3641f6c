"""A worker's own code up to where it would use a GPU, on a machine without one, and what it did, in order.

torch.cuda's functions are the seam that needs a GPU: here they stand for a card of 24 GiB, note that they
were called, and the training ends where the card would be used. All else is real.
"""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from train_jobs.engine.faults import Fault
from train_jobs.engine.worker import train_loop

CARD_BYTES = 24 << 30
Event = tuple[str, float | None]
"""``fraction`` with its value; ``used`` where the card would be; ``ended`` with the reason."""


def begin(plan: str, port: str, events: list[Event]) -> threading.Thread:
    """Train in a thread, as Ray Train's workers do.

    Args:
        plan: A TrainPlan as JSON.
        port: For the process group of this one worker.
        events: Where to note what happens.
    """
    _stand_in_for_a_card(events)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    dist.init_process_group("gloo", rank=0, world_size=1)
    training = threading.Thread(target=_train, args=(plan, events))
    training.start()
    return training


def _train(plan: str, events: list[Event]) -> None:
    attempt = {"number": 1, "driver": "test", "failed_at": None}
    try:
        train_loop({"plan": plan, "attempt": attempt})
    except Fault as fault:
        events.append((f"ended: {fault}", None))


def _stand_in_for_a_card(events: list[Event]) -> None:
    def used(*_: Any, **__: Any) -> NoReturn:
        events.append(("used", None))
        raise RuntimeError("there is no card here")

    cuda: Any = torch.cuda
    cuda.is_available = lambda: True
    cuda.device_count = lambda: 1
    cuda.get_device_name = lambda *_: "NVIDIA L4"
    cuda.get_device_properties = lambda *_: SimpleNamespace(total_memory=CARD_BYTES)
    cuda.set_per_process_memory_fraction = lambda fraction, *_: events.append(("fraction", fraction))
    # Nothing comes to a card, not even its choice, without one of these.
    cuda.set_device = cuda._lazy_init = used
