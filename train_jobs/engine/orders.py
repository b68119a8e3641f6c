"""What a worker is told while it trains: to save and leave, or that another driver has its run.

Any rank may hear of it first (SIGTERM goes to one process, ``stop.json`` is read by rank 0). All ranks must
leave after the same step, so they agree: at each step's end every rank starts a reduction of its flag and
looks at the one of the step before, which has arrived meanwhile and costs no wait.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import ray
import torch
import torch.distributed as dist

from runtime.core.errors import StorageError
from runtime.core.log import get_logger
from storage.runs import RunFolder, Stop
from train_jobs.engine.faults import Fault, Superseded, classified

_log = get_logger(__name__)
T = TypeVar("T")
_LOCAL_POLL_S = 0.5
_REMOTE_POLL_S = 2.0
"""Object stores are asked less often: every look is a request."""
_POLLS_PER_OWNER_CHECK = 5

_signalled = threading.Event()


class Left(Exception):
    """Not a fault: the workers saved a checkpoint and leave."""

    def __init__(self, step: int, stop: Stop) -> None:
        super().__init__(step, stop)
        self.step, self.stop = step, stop


def listen_for_sigterm() -> None:
    """From now on SIGTERM means: save at the end of this step, and leave.

    The training function runs in a thread, where Python installs no handler: the worker's actor is asked to
    do it, in its main thread.
    """
    _signalled.clear()
    actor = ray.get_runtime_context().current_actor
    ray.get(actor.execute.remote(_install))


def _install() -> None:
    signal.signal(signal.SIGTERM, lambda signum, frame: _signalled.set())


class Orders:
    """What this rank has heard, and what all have agreed on."""

    def __init__(self, run: RunFolder, driver: str, *, rank: int) -> None:
        self._run, self._driver, self._rank = run, driver, rank
        self._group = new_host_group()
        self._stop: Stop | None = None
        self._superseded = False
        self._pending: tuple[torch.Tensor, Any] | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="orders", daemon=True)
        if rank == 0:
            self._thread.start()

    def at_step_end(self) -> Stop | None:
        """What all ranks have agreed on by now: None is to go on. Called by all ranks after every step.

        Raises:
            Superseded: another driver has taken up the run.
        """
        heard = self._heard()
        if self._group is None:
            agreed = heard
        else:
            agreed = 0
            if self._pending is not None:
                flag, work = self._pending
                work.wait()
                agreed = int(flag.item())
            flag = torch.tensor([heard])
            self._pending = (
                flag,
                dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True),
            )
        if agreed == 2:
            raise Superseded("another driver has taken up this run; this attempt leaves it alone")
        return self._agreed_stop() if agreed else None

    def any_rank(self, mine: bool) -> bool:
        """Whether it is so on any rank. Called by all ranks."""
        return any(self.gathered(mine))

    def gathered(self, mine: Any) -> list[Any]:
        """What every rank says, by rank. Called by all ranks."""
        return gathered(mine, self._group)

    def check_owner(self) -> None:
        """Raise Superseded where another driver has the run: its files are not ours to write any more."""
        if self._run.driver() not in (None, self._driver):
            self._superseded = True
            raise Superseded("another driver has taken up this run; this attempt leaves it alone")

    def close(self) -> None:
        """Listen no longer."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def settle(self) -> None:
        """Wait for the last reduction: no group is torn down with one on its way. Called by all ranks."""
        if self._pending is not None:
            self._pending[1].wait()
            self._pending = None

    def _heard(self) -> int:
        if self._superseded:
            return 2
        if _signalled.is_set() and self._stop is None:
            self._stop = Stop(reason=f"SIGTERM to rank {self._rank}", ended="preempted")
        return 1 if self._stop else 0

    def _agreed_stop(self) -> Stop:
        found = [stop for stop in self.gathered(self._stop) if stop is not None]
        found = found or [Stop(reason="asked to leave", ended="preempted")]
        # What a person asks for counts more than what the cluster does.
        return min(found, key=lambda stop: stop.ended != "stopped")

    def _listen(self) -> None:
        pause_s = _LOCAL_POLL_S if self._run.place.backend.is_local else _REMOTE_POLL_S
        polls = 0
        while not self._closing.wait(pause_s):
            polls += 1
            try:
                if asked := self._run.stop_request():
                    self._stop = asked
                if polls % _POLLS_PER_OWNER_CHECK == 0:
                    self.check_owner()
            except Superseded:
                return
            except StorageError as error:
                # Training goes on while the store is away.
                _log.warning("orders: %s", error)


def gathered(mine: Any, group: Any) -> list[Any]:
    """What every rank of ``group`` says, by rank; a group of None has one rank."""
    if group is None:
        return [mine]
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, mine, group=group)
    return found


def together(action: Callable[[], T], group: Any) -> T:
    """What ``action`` returns, run on every rank; when it fails on one, it has failed on all.

    Raises:
        Fault: the same on all ranks: one that ends the run before one that does not.
    """
    result: T | None = None
    fault: Fault | None = None
    try:
        result = action()
    except Exception as error:  # whatever it is: the others wait, and must be told
        fault = classified(error)
    faults = [found for found in gathered(fault, group) if found is not None]
    if faults:
        raise min(faults, key=lambda found: found.retry)
    return result  # type: ignore[return-value]


def new_host_group() -> Any:
    """A group of all ranks with collectives on the CPU, beside those of the training; None for one rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    # gloo takes the interface that the hostname resolves to, which on some hosts is the loopback.
    if "GLOO_SOCKET_IFNAME" not in os.environ and (name := _interface(ray.util.get_node_ip_address())):
        os.environ["GLOO_SOCKET_IFNAME"] = name
    # As long as an upload takes on one rank while the others wait; a lost rank ends it sooner.
    return dist.new_group(backend="gloo", timeout=timedelta(days=1))


def _interface(address: str) -> str | None:
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return name
    return None
