"""Which faults end a run, which are tried again, and what its owner reads, by the errors of the engines."""

from __future__ import annotations

import errno

import pytest
from ray.train.v2.api.exceptions import WorkerGroupError

from runtime.core.errors import NoSpace, Unreachable
from train_jobs.engine.failure import failure
from train_jobs.engine.faults import Fault, classified
from train_jobs.engine.room import workers_in

CONNECTION = "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:43149."
DIED = "A worker process has died."


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), "OutOfMemory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "OutOfMemory"),
        (MemoryError(), "OutOfMemory"),
        (OSError(errno.ENOSPC, "No space left on device"), "DiskFull"),
        (RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"), "DiskFull"),
        (NoSpace("gs://bucket: quota exceeded"), "DiskFull"),
        (RuntimeError(CONNECTION), "PeerLost"),
        (RuntimeError("NCCL communicator was aborted. ProcessGroupNCCL"), "PeerLost"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "Unavailable"),
        (Unreachable("gs://bucket does not answer"), "Unavailable"),
        (ValueError("Please enable `predict_with_generate`"), "RecipeFault"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_an_error_of_the_engines_is_known_by_its_kind(error: Exception, kind: str):
    assert type(classified(error)).__name__ == kind


def test_only_what_another_attempt_could_mend_is_tried_again():
    assert classified(RuntimeError(CONNECTION)).retry
    assert classified(Unreachable("gs://bucket does not answer")).retry
    assert not classified(ValueError("no such template")).retry
    assert not classified(MemoryError()).retry


def test_the_cause_behind_a_wrapper_is_told():
    class DatasetGenerationError(Exception):
        pass

    try:
        try:
            raise ValueError("Invalid JSON in row 7")
        except ValueError as cause:
            raise DatasetGenerationError("An error occurred while generating the dataset") from cause
    except DatasetGenerationError as error:
        assert str(classified(error)) == "ValueError: Invalid JSON in row 7"


def test_of_several_workers_the_one_that_failed_by_itself_is_told_and_decides():
    found = failure(group(classified(RuntimeError(CONNECTION)), classified(ValueError("no such template"))))
    assert (found.reason, found.retry) == ("rank 1: ValueError: no such template", False)


def test_a_worker_that_died_is_told_before_those_that_noticed():
    found = failure(group(classified(RuntimeError(CONNECTION)), RuntimeError(DIED)))
    assert found.retry
    assert found.reason.startswith("rank 1: the worker's process died")


def test_a_worker_that_ray_ended_for_memory_is_not_tried_again():
    found = failure(group(RuntimeError(f"{DIED} The node was running low on memory.")))
    assert ("out of memory" in found.reason, found.retry) == (True, False)


def test_a_fault_is_known_as_a_traceback_too():
    text = 'Traceback (most recent call last):\n  File "x.py"\ntrain_jobs.engine.faults.NanLoss: loss is nan'
    found = failure(group(RuntimeError(text)))
    assert (found.reason, found.retry) == ("rank 0: loss is nan", False)


def test_another_driver_is_known():
    text = "Traceback (most recent call last):\ntrain_jobs.engine.faults.Superseded: another driver has it"
    assert failure(group(RuntimeError(text))).superseded


def group(*errors: Exception | Fault) -> WorkerGroupError:
    return WorkerGroupError("", dict(enumerate(errors)))


@pytest.mark.parametrize(
    ("strategy", "workers"), [("PACK", 3), ("SPREAD", 3), ("STRICT_SPREAD", 2), ("STRICT_PACK", 2)]
)
def test_room_is_counted_as_the_placement_strategy_allows(strategy: str, workers: int):
    nodes = [{"CPU": 2.0}, {"CPU": 1.5}, {"CPU": 0.5}]
    assert workers_in(nodes, {"CPU": 1.0}, strategy) == workers


def test_what_many_small_shares_leave_still_counts():
    assert workers_in([{"CPU": 1.0 - 9 * 0.1}], {"CPU": 0.1}, "PACK") == 1
