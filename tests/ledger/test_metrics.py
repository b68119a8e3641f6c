"""What the ledger tells Prometheus: all workers of a holder together, and the disk of each node's cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cluster.inventory import Share
from cluster.ledger.metrics import METRICS, series
from cluster.ledger.picture import draw
from cluster.nvml import CardReading
from cluster.shares.reading import Held, NodeReading, read_node
from tests.inventories import nodes
from tests.ledger.holdings import GIB, holding


def test_two_replicas_on_one_card_are_added_up():
    inventory = nodes({"CPU": 4, "GPU": 1}, product="L4")
    shares = [Share("chat", "node-0", 0, 0.25, 1.0), Share("chat", "node-0", 0, 0.5, 1.0)]
    promised = [5 * GIB, 11 * GIB]
    held = [
        Held(holding("chat", node_id="node-0", worker=str(size), promised_bytes=size), size + GIB)
        for size in promised
    ]
    reading = NodeReading("node-0", (CardReading("GPU-0", "NVIDIA L4", 23 * GIB, 18 * GIB, {}),), tuple(held))
    found = series(draw(inventory, shares, [reading], [], 100.0), [reading])
    on_card = ("node-0", "0", "chat")
    assert found["tandem_share_fraction"] == {on_card: 0.75}
    assert found["tandem_share_promised_bytes"] == {on_card: 16 * GIB}
    assert found["tandem_share_used_bytes"] == {on_card: 18 * GIB}
    assert found["tandem_share_over_bytes"] == {on_card: 2 * GIB}
    assert found["tandem_card_free"] == {on_card[:2]: 0.25}
    assert found["tandem_card_used_bytes"] == {on_card[:2]: 18 * GIB}


def test_a_share_outside_all_cards_has_no_card_and_who_waits_is_counted_by_priority():
    waiting = [{"priority": priority} for priority in ("training", "serving", "training")]
    picture = draw(nodes({"CPU": 4}), [Share("lesson-1", "node-0", None, 0.0, 2.0)], [], waiting, 100.0)
    found = series(picture, [])
    assert found["tandem_share_fraction"] == {("node-0", "", "lesson-1"): 0}
    assert found["tandem_waiting_requests"] == {("training",): 2, ("serving",): 1}
    assert found.keys() == METRICS.keys()


def test_the_disk_of_the_cache_is_the_one_that_it_will_lie_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TANDEM_FILE_CACHE", str(tmp_path / "not" / "yet"))
    reading = read_node(tmp_path / "shares", "node-0")
    assert reading.cache_disk is not None
    size_bytes, free_bytes = reading.cache_disk
    assert size_bytes == shutil.disk_usage(tmp_path).total and 0 <= free_bytes < size_bytes
    found = series(draw(nodes({"CPU": 4}), [], [reading], [], 100.0), [reading])
    assert found["tandem_cache_disk_bytes"] == {("node-0",): size_bytes}
    assert found["tandem_cache_disk_free_bytes"] == {("node-0",): free_bytes}
