"""The cap on a process's memory, kept by the kernel: what counts, how exactly, and what one is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.environments import interpreter, process_env
from tests.conftest import ROOT

SHARE_MIB = 300

PRELUDE = f"""
import json, mmap, sys, threading
from pathlib import Path
from cluster.shares.memory_cap import cap_memory
MIB = 1 << 20

def own_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024

kept = []
def grow(until_mib):
    while own_mib() < until_mib:
        block = bytearray(MIB)
        block[::4096] = b"x" * (MIB // 4096)
        kept.append(block)

def refused_at(until_mib):
    try:
        grow(until_mib)
    except MemoryError:
        return own_mib()
    return None

cap_memory({SHARE_MIB} * MIB)
"""


def in_a_process(program: str, python: str = sys.executable, **env: str) -> Any:
    """What the program prints, read as JSON."""
    done = subprocess.run(
        [python, "-c", PRELUDE + program],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_process_may_take_all_of_its_share_and_no_more():
    before, refused = in_a_process(
        "grow(280); before = own_mib(); print(json.dumps([before, refused_at(400)]))"
    )
    assert 280 <= before < 300
    assert refused is not None
    assert before < refused < 320


def test_what_was_given_back_may_be_taken_again():
    assert in_a_process("grow(280); kept.clear(); grow(280); print(json.dumps(own_mib() >= 280))")


def test_files_and_shared_memory_do_not_count(tmp_path: Path):
    file = tmp_path / "weights"
    file.write_bytes(bytes(400 << 20))
    mapped, own = in_a_process(f"""
with open({str(file)!r}, "rb") as weights:
    read = mmap.mmap(weights.fileno(), 0, prot=mmap.PROT_READ)
    shared = mmap.mmap(-1, 400 * MIB)
    for block in range(400):
        kept.append(read[block * MIB])
        shared[block * MIB] = 1
    print(json.dumps([len(read) + len(shared), own_mib()]))
""")
    assert mapped == 800 << 20
    assert own < 100


def test_memory_of_threads_counts_and_those_of_a_few_still_start():
    refused = in_a_process("""
found, started = [], threading.Barrier(9)
def work():
    started.wait()
    found.append(refused_at(400))
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
started.wait()
for thread in threads:
    thread.join()
print(json.dumps(found))
""")
    assert len(refused) == 8
    assert all(mib is not None and 200 < mib < 320 for mib in refused)


def test_a_process_that_has_more_already_is_told_so_and_not_left_without_room_for_a_thread():
    said = in_a_process("""
grow(200)
said = []
for share_mib in (100, 230):
    try:
        cap_memory(share_mib * MIB)
    except MemoryError as error:
        said.append(str(error))
cap_memory(290 * MIB)
print(json.dumps(said))
""")
    assert len(said) == 2
    assert said[0].endswith(f"before its work begins, and its share is {100 << 20}")


def test_a_lower_limit_of_whoever_started_the_process_stands():
    low = "import resource; resource.setrlimit(resource.RLIMIT_DATA, (150 << 20, 150 << 20))\n"
    done = subprocess.run(
        [sys.executable, "-c", low + PRELUDE + "print(json.dumps(refused_at(400)))"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) < 150


@pytest.mark.engine
def test_torch_says_so_in_words_that_are_known_as_out_of_memory():
    program = """
import torch
from train_jobs.engine.faults import OutOfMemory, classified
cap_memory((int(own_mib()) + 200) * MIB)
room = torch.ones(100 * MIB // 4)
try:
    torch.ones(300 * MIB // 4)
except RuntimeError as error:
    found = classified(error)
print(json.dumps([isinstance(found, OutOfMemory), found.retry, str(found)]))
"""
    known, retry, message = in_a_process(program, str(interpreter("train")), **process_env("train"))
    assert (known, retry) == (True, False)
    assert message.startswith("out of memory: ")
    assert "scaling.memory_bytes_per_worker" in message
