"""``tandem gpus``: what the ledger says, as rows, as a picture in the terminal and in a notebook."""

from __future__ import annotations

from typing import Any

from click.testing import CliRunner
from rich.console import Console

from cluster.inventory import Inventory, Share
from cluster.ledger.picture import draw
from cluster.nvml import CardReading
from cluster.shares.reading import Held, NodeReading
from runtime.cli import main
from runtime.gpus import Gpus
from tests.inventories import nodes
from tests.ledger.holdings import GIB, holding
from tests.runtime.conftest import Command

WAITING = {
    "name": "next-1",
    "position": 1,
    "priority": "training",
    "reason": "room for 1 worker of 1 GPU; 0 would fit.",
    "waiting_s": 71.4,
}


def look(inventory: Inventory, shares: list[Share], *held: Held, waiting: tuple[Any, ...] = ()) -> Gpus:
    cards = (CardReading("GPU-0", "NVIDIA L4", 23 * GIB, 15 * GIB, {}),)
    return Gpus(draw(inventory, shares, [NodeReading("node-0", cards, held)], waiting, 100.0))


def two_on_a_card(holder: str = "lesson-1") -> Gpus:
    shares = [Share(holder, "node-0", 0, 0.5, 1.0), Share("chat", "node-0", 0, 0.25, 1.0)]
    training = holding(holder, node_id="node-0", promised_bytes=11 * GIB)
    serving = holding(
        "chat", node_id="node-0", fraction=0.25, promised_bytes=5 * GIB, worker="abc", kind="serve"
    )
    inventory = nodes({"CPU": 4, "GPU": 1}, product="L4")
    return look(inventory, shares, Held(training, 10 * GIB), Held(serving, 6 * GIB), waiting=(WAITING,))


def printed(gpus: Gpus) -> str:
    console = Console(width=140, record=True)
    console.print(gpus)
    return console.export_text()


def test_a_card_is_drawn_as_a_bar_of_those_who_hold_it():
    text = printed(two_on_a_card())
    assert f"{'█' * 18}{'·' * 6}  0.5 lesson-1  0.25 chat" in text
    assert "15.0 GiB of " in text


def test_several_replicas_of_one_app_on_a_card_are_named_once_with_all_that_they_hold():
    shares = [Share(name, "node-0", 0, 0.25) for name in ("chat", "chat", "other")]
    text = printed(look(nodes({"CPU": 4, "GPU": 1}, product="L4"), shares))
    assert f"{'█' * 18}{'·' * 6}  0.5 chat  0.25 other  NVIDIA" in text


def test_promised_and_used_are_beside_each_other_and_who_is_over_is_named():
    text = printed(two_on_a_card())
    (row,) = [line for line in text.splitlines() if "abc" in line]
    assert [word in row for word in ("chat", "0.25 GPU", "5.0 GiB", "6.0 GiB", "1.0 GiB")] == [True] * 5
    assert "chat uses more than it promised." in text
    assert "lesson-1 uses more than it promised." not in text


def test_who_waits_is_below_with_position_and_reason():
    text = printed(two_on_a_card())
    (row,) = [line for line in text.splitlines() if "next-1" in line]
    assert "71 s" in row
    assert WAITING["reason"] in row


def test_rows_are_plain_data():
    gpus = two_on_a_card()
    assert [(card["node"], card["index"], card["free"]) for card in gpus.cards] == [("node-0", 0, 0.25)]
    assert [(one["holder"], one["card"], one["over_bytes"]) for one in gpus.shares] == [
        ("lesson-1", 0, 0),
        ("chat", 0, GIB),
    ]
    assert (gpus.over, [one["name"] for one in gpus.waiting]) == (["chat"], ["next-1"])


def test_a_place_that_is_granted_and_not_begun_says_so():
    gpus = look(nodes({"CPU": 4, "GPU": 1}, product="L4"), [Share("lesson-1", "node-0", 0, 1.0)])
    assert "(not begun)" in printed(gpus)


def test_bars_of_many_small_shares_are_as_long_as_the_card():
    shares = [Share(f"run-{number}", "node-0", 0, 0.0333) for number in range(30)]
    (line, *_) = printed(look(nodes({"CPU": 4, "GPU": 1}, product="L4"), shares)).splitlines()
    assert line.count("█") + line.count("·") == 24


def test_without_cards_the_shares_are_of_the_nodes_memory():
    one = holding(
        "lesson-1", node_id="node-0", cards=(), fraction=0.0, cpus=0.5, promised_bytes=4 * GIB, on="host"
    )
    gpus = look(nodes({"CPU": 4}), [Share("lesson-1", "node-0", None, 0.0, 0.5)], Held(one, GIB))
    text = printed(gpus)
    assert "No node of this cluster has a GPU. Shares are of the nodes' memory." in text
    (row,) = [line for line in text.splitlines() if "lesson-1" in line]
    assert [word in row for word in ("0.5 CPU", "4.0 GiB", "1.0 GiB")] == [True] * 3


def test_in_a_notebook_names_cannot_become_html():
    assert "<script" not in two_on_a_card("<script>alert()")._repr_html_()
    assert "width:120px" in two_on_a_card()._repr_html_()


def test_where_the_ledger_has_not_begun_that_is_said():
    gpus = Gpus(look(nodes({"CPU": 4, "GPU": 1}), []).picture | {"at": None})
    assert "The ledger begins with the first training or app" in printed(gpus)


def test_without_a_cluster_the_command_says_how_to_start_one(tandem: Command):
    assert CliRunner().invoke(main, ["gpus", "--help"]).exit_code == 0
    result = tandem("gpus", code=1)
    assert "no local cluster runs. Start one with `tandem up`" in result.output
