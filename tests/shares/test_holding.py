"""Shares that processes tell on their node: there as long as the process is, however it ends."""

import json
import os
import signal
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from cluster.shares.holding import folder_of, holdings_in, told
from tests.servers.small_disk import small_disk
from tests.shares.processes import FIELDS, holder, line, running, told_by, wait_until_gone


def test_a_share_is_told_for_as_long_as_the_context_lasts(tmp_path: Path):
    folder = folder_of(tmp_path, "node")
    assert holdings_in(folder) == []
    with told(folder, **FIELDS | {"cards": ("0", "1")}) as mine:
        assert holdings_in(folder) == [mine]
        assert (mine.pid, mine.cards, mine.fraction) == (os.getpid(), ("0", "1"), 0.5)
    assert list(folder.iterdir()) == []


def test_the_shares_of_two_nodes_on_one_machine_are_apart(tmp_path: Path):
    with told(folder_of(tmp_path, "one"), **FIELDS):
        assert holdings_in(folder_of(tmp_path, "other")) == []


def test_the_share_of_a_killed_process_counts_no_more_and_is_removed(tmp_path: Path):
    with holder(tmp_path) as process:
        assert told_by(tmp_path)[process.pid].holder == "lesson-1"
        process.send_signal(signal.SIGKILL)
        # Nobody has asked for its exit code: it is a zombie, and holds nothing all the same.
        wait_until_gone(tmp_path, process.pid)
        assert process.returncode is None
        assert list(tmp_path.iterdir()) == []


def test_a_process_that_ends_by_itself_leaves_nothing(tmp_path: Path):
    with holder(tmp_path) as process:
        assert process.stdin
        process.stdin.close()
        assert line(process) == "ended"
        assert list(tmp_path.iterdir()) == []


def test_a_process_with_the_number_of_a_dead_one_does_not_hold_its_share(tmp_path: Path):
    with told(tmp_path, **FIELDS) as mine:
        (file,) = tmp_path.iterdir()
        before = tmp_path / "before.json"
        before.write_text(
            json.dumps(json.loads(file.read_text()) | {"start_ticks": mine.start_ticks - 1, "holder": "dead"})
        )
        assert [one.holder for one in holdings_in(tmp_path)] == ["lesson-1"]
        assert not before.exists()


def test_what_is_half_written_or_says_something_else_is_ignored(tmp_path: Path):
    with told(tmp_path, **FIELDS) as mine:
        (file,) = tmp_path.iterdir()
        whole = file.read_text()
        for number, text in enumerate(
            ("", whole[:40], "[]", "{}", "7", '{"cards": 3}', whole.replace("on", "in"))
        ):
            (tmp_path / f"{number}.json").write_text(text)
        (tmp_path / "1-abcd.new").write_text(whole)
        assert holdings_in(tmp_path) == [mine]


def test_a_forked_child_that_leaves_the_context_takes_nothing_away(tmp_path: Path):
    program = f"""
import os, sys
from pathlib import Path
from cluster.shares.holding import told
with told(Path(sys.argv[1]), **{FIELDS!r}):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        print("the child has ended", flush=True)
        sys.stdin.read()
"""
    with running(program, str(tmp_path)) as process:
        assert line(process) == "the child has ended"
        assert list(told_by(tmp_path)) == [process.pid]


def test_many_processes_tell_and_go_at_once_and_none_is_missed(tmp_path: Path):
    # A process may hold several, and every look must see all of those that stay.
    program = f"""
import sys
from contextlib import ExitStack
from pathlib import Path
from cluster.shares.holding import told
folder, fields = Path(sys.argv[1]), {FIELDS!r}
with ExitStack() as stay:
    for _ in range(5):
        stay.enter_context(told(folder, **fields))
    print("told", flush=True)
    for _ in range(300):
        with told(folder, **fields | {{"holder": "comes and goes"}}):
            pass
    print("done", flush=True)
    sys.stdin.read()
"""
    with ExitStack() as stack:
        processes = [stack.enter_context(running(program, str(tmp_path))) for _ in range(4)]
        for process in processes:
            assert line(process) == "told"
        for _ in range(50):
            stays = Counter(one.pid for one in holdings_in(tmp_path) if one.holder == "lesson-1")
            assert stays == {process.pid: 5 for process in processes}
        for process in processes:
            assert line(process) == "done"
        processes[0].kill()
        wait_until_gone(tmp_path, processes[0].pid)
        assert len(holdings_in(tmp_path)) == 15


def test_on_a_full_disk_the_process_goes_on_and_leaves_nothing(tmp_path: Path):
    with small_disk(tmp_path / "disk", size_bytes=1 << 20) as disk:
        folder = disk / "shares"
        folder.mkdir()
        with (disk / "filling").open("wb", buffering=0) as file:
            try:
                while file.write(bytes(1 << 16)):
                    pass
            except OSError:
                pass
        with told(folder, **FIELDS):
            assert holdings_in(folder) == []
        assert list(folder.iterdir()) == []
