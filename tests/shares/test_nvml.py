"""What follows from NVML's answers, without a GPU: constructed readings stand in (recorded/README.md)."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import psutil
import pytest

from cluster.inventory import Inventory
from cluster.ledger.core import Core
from cluster.local import LocalClusterSpec, expected
from cluster.nodes import node_of
from cluster.nvml import read_cards
from cluster.shares.holding import told
from cluster.shares.reading import read_node
from tests.conftest import wait_for
from tests.shares.processes import FIELDS, line, running

RECORDED = Path(__file__).parent / "recorded"
GIB = 1 << 30
FIRST, SECOND = "GPU-5c1d2e77-9a43-4f0b-8a52-0c6a9b1f2d31", "GPU-b90c7f14-33d6-4b1e-9d0e-7d5f6c2a8e02"


@pytest.fixture(autouse=True)
def no_visible_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def two_l4(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TANDEM_NVML_READING", str(RECORDED / "two-l4.json"))
    return RECORDED / "two-l4.json"


def used_by(file: Path, source: Path, *by_card: dict[int, int]) -> None:
    """A reading like ``source``, in which these processes use so much of each card."""
    cards = json.loads(source.read_text())
    for card, pids in zip(cards, by_card, strict=True):
        card["used_by"] = {str(pid): size for pid, size in pids.items()}
    file.write_text(json.dumps(cards))


def looked(node_id: str, folder: Path, **resources: float) -> Core:
    core = Core()
    inventory = Inventory.of([node_of(node_id, {"CPU": 8, "memory": 32 * GIB, **resources})])
    core.look(inventory, {node_id: {"CPU": 8, **resources}}, [read_node(folder, node_id)], 100.0)
    return core


def test_without_a_driver_there_are_no_cards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TANDEM_NVML_READING", raising=False)
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a driver")
    assert read_cards() == []


def test_the_inventory_has_the_cards_own_memory_and_uuids(two_l4: Path, tmp_path: Path):
    core = looked("node", tmp_path, GPU=2, **{"accelerator_type:L4": 1})
    cards = core.picture(100.0)["nodes"][0]["cards"]
    assert [(card["uuid"], card["memory_bytes"], card["product"]) for card in cards] == [
        (FIRST, 24152899584, "NVIDIA L4"),
        (SECOND, 24152899584, "NVIDIA L4"),
    ]
    assert [card["used_bytes"] for card in cards] == [9128902656, 470024192]


def test_the_devices_of_a_gpu_in_mig_mode_are_cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TANDEM_NVML_READING", str(RECORDED / "a100-mig.json"))
    core = looked("node", tmp_path, GPU=2, **{"accelerator_type:A100": 1})
    cards = core.picture(100.0)["nodes"][0]["cards"]
    assert {card["memory_bytes"] for card in cards} == {20937965568}
    assert all(card["uuid"].startswith("MIG-") for card in cards)


def test_a_local_cluster_would_have_the_cards_that_nvml_reads(two_l4: Path):
    (node,) = expected(LocalClusterSpec()).nodes
    assert (len(node.cards), node.accelerator_type) == (2, "L4")
    (node,) = expected(LocalClusterSpec(num_gpus=0)).nodes
    assert node.cards == ()


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        ("0,1", [FIRST, SECOND]),
        ("1", [SECOND]),
        ("1,0", [SECOND, FIRST]),
        ("GPU-b90c", [SECOND]),
        (f"{SECOND},{FIRST}", [SECOND, FIRST]),
        ("", []),
        ("7", []),
        ("GPU-0000", []),
    ],
)
def test_only_the_visible_cards_are_read_in_their_order(
    two_l4: Path, monkeypatch: pytest.MonkeyPatch, visible: str, uuids: list[str]
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [card.uuid for card in read_cards()] == uuids


def test_a_process_and_its_children_use_their_card_together(
    two_l4: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    # Its child's child computes, as an engine's workers do.
    program = """
import subprocess, sys
again = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'input()']).pid, flush=True)"
subprocess.Popen([sys.executable, "-c", f"{again}; input()"])
input()
"""
    with running(program) as engine:
        grandchild = int(line(engine))
        own = psutil.Process()
        assert own.pid == os.getpid()
        reading = tmp_path / "reading.json"
        used_by(reading, two_l4, {grandchild: 5 * GIB, engine.pid: GIB, 1: 7 * GIB}, {})
        monkeypatch.setenv("TANDEM_NVML_READING", str(reading))
        with told(tmp_path / "shares", **FIELDS | {"on": "card", "promised_bytes": 4 * GIB}):
            (held,) = read_node(tmp_path / "shares", "node").held
            assert held.used_bytes == 6 * GIB
            core = looked("node", tmp_path / "shares", GPU=2, **{"accelerator_type:L4": 1})
            picture = core.picture(100.0)
            assert picture["over"] == ["lesson-1"]
            (share,) = picture["nodes"][0]["cards"][0]["shares"]
            assert (share["promised_bytes"], share["used_bytes"], share["over_bytes"]) == (
                4 * GIB,
                6 * GIB,
                2 * GIB,
            )
            psutil.Process(grandchild).kill()
            wait_for(
                lambda: not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == "zombie",
                "it has ended",
                10,
            )


def test_of_two_cards_a_process_promises_and_uses_so_much_on_each(
    two_l4: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    reading = tmp_path / "reading.json"
    used_by(reading, two_l4, {os.getpid(): 3 * GIB}, {os.getpid(): 5 * GIB})
    monkeypatch.setenv("TANDEM_NVML_READING", str(reading))
    fields = FIELDS | {"on": "card", "cards": ("0", SECOND), "fraction": 1.0, "promised_bytes": 4 * GIB}
    with told(tmp_path / "shares", **fields):
        core = looked("node", tmp_path / "shares", GPU=2, **{"accelerator_type:L4": 1})
    cards = core.picture(100.0)["nodes"][0]["cards"]
    assert [share["used_bytes"] for card in cards for share in card["shares"]] == [4 * GIB, 4 * GIB]
    assert core.picture(100.0)["over"] == []


def test_of_a_process_that_nvml_does_not_know_nothing_is_told(two_l4: Path, tmp_path: Path):
    # In a container NVML tells the host's numbers of processes: 4321 is none of ours.
    with told(tmp_path, **FIELDS | {"on": "card"}):
        (held,) = read_node(tmp_path, "node").held
        assert held.used_bytes is None
        (share,) = looked("node", tmp_path, GPU=2, **{"accelerator_type:L4": 1}).picture(1.0)["nodes"][0][
            "cards"
        ][0]["shares"]
        assert (share["used_bytes"], share["over_bytes"], share["fraction"]) == (None, 0, 0.5)


def test_a_reading_with_fewer_cards_than_the_node_has_is_not_taken_for_it(
    two_l4: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    cards = looked("node", tmp_path, GPU=2, **{"accelerator_type:L4": 1}).picture(1.0)["nodes"][0]["cards"]
    assert [card["uuid"] for card in cards] == [None, None]


def test_logical_cards_are_not_the_real_ones_beside_them(two_l4: Path, tmp_path: Path):
    cards = looked("node", tmp_path, GPU=2).picture(1.0)["nodes"][0]["cards"]
    assert [(card["uuid"], card["memory_bytes"], card["used_bytes"]) for card in cards] == [
        (None, 16 * GIB, None)
    ] * 2


def test_a_reading_is_what_would_be_recorded(two_l4: Path):
    assert [json.loads(json.dumps(dataclasses.asdict(card))) for card in read_cards()] == json.loads(
        two_l4.read_text()
    )
