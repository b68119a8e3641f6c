"""What the ledger shows of shares on several cards, and what others take over from it."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.inventory import Inventory
from cluster.ledger.books import shares_now
from cluster.ledger.core import Core
from cluster.ledger.picture import as_read, draw
from cluster.nvml import CardReading
from cluster.shares.holding import Holding
from cluster.shares.reading import Held, NodeReading
from serve_apps.engine.share import promised_bytes
from tests.inventories import nodes
from tests.ledger.holdings import GIB, holding

TWO_LOGICAL = nodes({"CPU": 8, "GPU": 2}, product=None, memory_gib=64)
TENSOR_PARALLEL: dict[str, Any] = {
    "share_bytes": 16 * GIB, "memory": None, "engine": {"tensor_parallel_size": 2},
}  # fmt: skip


def replica(*cards: str) -> Holding:
    """Two workers on CPUs, each with a share of 16 GiB, as a replica tells it."""
    return holding(
        "app",
        kind="serve",
        node_id="node-0",
        cards=cards,
        fraction=0.5 if cards else 0.0,
        promised_bytes=promised_bytes(TENSOR_PARALLEL, cards),
        on="host",
    )


def shown(inventory: Inventory, one: Holding, used_bytes: int) -> dict[str, Any]:
    shares = shares_now(inventory, {}, [one], [])
    return draw(inventory, shares, [NodeReading("node-0", (), (Held(one, used_bytes),))], [], 0.0)


@pytest.mark.parametrize("used_gib", [20, 32])
def test_a_replica_on_two_logical_cards_uses_half_of_its_memory_on_each(used_gib: int):
    picture = shown(TWO_LOGICAL, replica("0", "1"), used_gib * GIB)
    shares = [share for card in picture["nodes"][0]["cards"] for share in card["shares"]]
    assert [(one["promised_bytes"], one["used_bytes"], one["over_bytes"]) for one in shares] == [
        (16 * GIB, used_gib * GIB // 2, 0)
    ] * 2
    assert picture["over"] == []


def test_a_replica_over_its_promise_on_logical_cards_is_told():
    picture = shown(TWO_LOGICAL, replica("0", "1"), 40 * GIB)
    over = [share["over_bytes"] for card in picture["nodes"][0]["cards"] for share in card["shares"]]
    assert (picture["over"], over) == (["app"], [4 * GIB, 4 * GIB])


def test_without_cards_all_workers_of_a_replica_are_held_to_all_of_its_memory():
    within = shown(nodes({"CPU": 8}, memory_gib=64), replica(), 30 * GIB)
    (share,) = within["nodes"][0]["shares"]
    assert (share["promised_bytes"], share["over_bytes"], within["over"]) == (32 * GIB, 0, [])
    assert shown(nodes({"CPU": 8}, memory_gib=64), replica(), 36 * GIB)["over"] == ["app"]


def test_without_a_share_a_replica_promises_its_estimate():
    plan = TENSOR_PARALLEL | {"share_bytes": None, "memory": {"needed_bytes": 3 * GIB}}
    assert promised_bytes(plan, ()) == 6 * GIB
    assert promised_bytes(plan, ("0", "1")) == 3 * GIB
    assert promised_bytes(plan | {"memory": None}, ()) is None


def test_what_nvml_says_of_cards_is_taken_over_from_the_ledger_and_of_others_rays_word_stays():
    living = nodes({"CPU": 8, "GPU": 1}, {"CPU": 8, "GPU": 1})
    reading = NodeReading("node-0", (CardReading("GPU-7", "NVIDIA A100-SXM4-40GB", 40 * GIB, 0, {}),), ())
    core = Core()
    core.look(living, {}, [reading], 0.0)
    (first,), (second,) = (node.cards for node in as_read(living, core.picture(0.0)).nodes)
    assert (first.product, first.memory_bytes, first.uuid) == ("NVIDIA A100-SXM4-40GB", 40 * GIB, "GPU-7")
    # A100 is 40 or 80 GB: until NVML was read there, it may be the larger one.
    assert (second.memory_bytes, second.uuid) == (80 * GIB, None)
    assert as_read(living, {}) == living
