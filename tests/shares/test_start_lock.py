"""One engine at a time starts on a card."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from cluster.shares.start_lock import alone_on
from tests.conftest import wait_for
from tests.shares.processes import line, running

STARTS = """
import os, sys
from cluster.shares.start_lock import alone_on
node, *cards = sys.argv[1:]
print("asks", flush=True)
with alone_on(cards, node_id=node):
    print("starts", flush=True)
    sys.stdin.readline()
print("has started", flush=True)
sys.stdin.readline()
"""

FORKS = STARTS.replace(
    '    print("starts"',
    """\
    ends_with_parent, kept_by_parent = os.pipe()
    if os.fork() == 0:
        os.close(kept_by_parent)
        os.read(ends_with_parent, 1)
        os._exit(0)
    print("starts\"""",
)
"""Its child reads a pipe of its own: on the same input it could take the line that the parent waits for."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks of this test's own: they would hold for every cluster of this machine."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


@contextmanager
def engine(*cards: str, node: str = "node", program: str = STARTS) -> Iterator[subprocess.Popen[str]]:
    with running(program, node, *cards) as process:
        assert line(process) == "asks"
        yield process


def waits(process: subprocess.Popen[str]) -> bool:
    """Whether the kernel keeps it waiting for a lock: what nobody but the kernel knows."""
    locks = Path("/proc/locks").read_text().splitlines()
    return any("->" in entry and f" {process.pid} " in entry for entry in locks)


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def wait_until_it_waits(process: subprocess.Popen[str]) -> None:
    wait_for(lambda: waits(process), "it waits for the other one", 20)


def test_two_on_one_card_start_one_after_the_other():
    with engine("0") as first:
        assert line(first) == "starts"
        with engine("0") as second:
            wait_until_it_waits(second)
            go_on(first)
            assert line(first) == "has started"
            assert line(second) == "starts"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("node", "0"), ("node", "1")),
        (("node", "0"), ("second", "0")),
        (("node", "GPU-a"), ("node", "GPU-b")),
    ],
    ids=["two cards", "the same number on two nodes of one machine", "two UUIDs"],
)
def test_on_different_cards_they_start_at_once(one: tuple[str, str], other: tuple[str, str]):
    with engine(one[1], node=one[0]) as first, engine(other[1], node=other[0]) as second:
        assert (line(first), line(second)) == ("starts", "starts")


def test_a_uuid_is_one_card_whichever_cluster_names_it():
    with engine("GPU-8f0e", node="one") as first:
        assert line(first) == "starts"
        with engine("GPU-8f0e", node="other") as second:
            wait_until_it_waits(second)
            go_on(first)
            assert line(second) == "starts"


def test_kill_9_of_the_one_that_starts_lets_the_next_one_start():
    with engine("0") as first:
        assert line(first) == "starts"
        with engine("0") as second:
            wait_until_it_waits(second)
            first.send_signal(signal.SIGKILL)
            assert line(second) == "starts"


def test_a_child_that_was_forked_meanwhile_keeps_nobody_waiting():
    with engine("0", program=FORKS) as first:
        assert line(first) == "starts"
        go_on(first)
        assert line(first) == "has started"
        (child,) = psutil.Process(first.pid).children()
        with engine("0") as second:
            assert line(second) == "starts"
            assert child.status() != psutil.STATUS_ZOMBIE


def test_two_that_want_the_same_two_cards_in_another_order_do_not_wait_for_each_other():
    # Many times: a deadlock needs both to have got their first card.
    program = """
import sys
from cluster.shares.start_lock import alone_on
for _ in range(300):
    with alone_on(sys.argv[1:], node_id="node"):
        pass
print("done", flush=True)
"""
    with ExitStack() as stack:
        pairs = [("0", "1"), ("1", "0"), ("0", "1"), ("1", "0")]
        processes = [stack.enter_context(running(program, *cards)) for cards in pairs]
        assert [line(process) for process in processes] == ["done"] * 4


def test_the_same_card_twice_is_one_card():
    with alone_on(["0", "0"], node_id="node"):
        pass
