"""One engine at a time starts on a card."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from cluster.shares.start_lock import VARIABLE, alone_on
from runtime.core.errors import ClusterError
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
    monkeypatch.setenv(VARIABLE, str(tmp_path / "locks"))


@contextmanager
def engine(
    *cards: str, node: str = "node", program: str = STARTS, **env: str
) -> Iterator[subprocess.Popen[str]]:
    with running(program, node, *cards, **env) as process:
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


def test_a_card_is_one_card_for_jobs_with_a_tmpdir_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv(VARIABLE)
    card = f"GPU-{uuid.uuid4()}"
    one, other = (tmp_path / name for name in ("one", "other"))
    for folder in (one, other):
        folder.mkdir()
    try:
        with engine(card, TMPDIR=str(one)) as first:
            assert line(first) == "starts"
            with engine(card, TMPDIR=str(other)) as second:
                wait_until_it_waits(second)
                go_on(first)
                assert line(second) == "starts"
    finally:
        Path("/tmp/tandem-cards", f"{card}.lock").unlink()


AS_NOBODY = STARTS.replace('print("asks"', 'os.setgid(65534); os.setuid(65534); print("asks"')


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(
    ("one", "other"), [(STARTS, AS_NOBODY), (AS_NOBODY, STARTS)], ids=["root first", "nobody first"]
)
def test_a_card_is_one_card_for_two_users_whatever_their_umask(one: str, other: str):
    # In /tmp itself: the folders of the tests are closed to others.
    folder = Path(f"/tmp/tandem-cards-{uuid.uuid4().hex}")
    private = "os.umask(0o077); from cluster"
    one, other = (text.replace("from cluster", private, 1) for text in (one, other))
    try:
        with engine("GPU-1", program=one, **{VARIABLE: str(folder)}) as first:
            assert line(first) == "starts"
            with engine("GPU-1", program=other, **{VARIABLE: str(folder)}) as second:
                wait_until_it_waits(second)
                go_on(first)
                assert line(second) == "starts"
            # Each may add locks of other cards, and take nobody's away.
            for program in (one, other):
                with engine("GPU-2", program=program, **{VARIABLE: str(folder)}) as third:
                    assert line(third) == "starts"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
        assert {file.name for file in folder.iterdir()} == {"GPU-1.lock", "GPU-2.lock"}
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def test_a_link_that_somebody_laid_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "GPU-1.lock").symlink_to(precious)
    said = rf"GPU-1\.lock: .* name another folder with {VARIABLE}"
    with pytest.raises(ClusterError, match=said), alone_on(["GPU-1"], node_id="node"):
        pass
    (tmp_path / "way").symlink_to(tmp_path / "locks")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "way"))
    said = "the lock of a card cannot be taken"
    with pytest.raises(ClusterError, match=said), alone_on(["GPU-2"], node_id="node"):
        pass
    assert precious.read_text() == "mine"
    assert not (tmp_path / "locks" / "GPU-2.lock").exists()


def test_a_lock_file_that_was_tidied_away_while_one_waited_for_it_is_made_again(tmp_path: Path):
    with engine("0") as first:
        assert line(first) == "starts"
        with engine("0") as second:
            wait_until_it_waits(second)
            (tmp_path / "locks" / "node-0.lock").unlink()
            go_on(first)
            assert line(second) == "starts"
            with engine("0") as third:
                wait_until_it_waits(third)
