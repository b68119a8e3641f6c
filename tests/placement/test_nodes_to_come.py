"""A cluster that may grow: what only nodes to come could hold waits, what even they could not is refused."""

from __future__ import annotations

import json

import pytest

from cluster.inventory import Card, Inventory, Node
from cluster.node_groups import NodeGroup
from cluster.nodes import node_of
from cluster.nodes_to_come import at_its_largest, joined, nodes_to_come_env
from cluster.placement import Free, Request
from cluster.waiting import NOT_PASSED_AFTER_S, Admitted, Held, Refused, Waiting, admit
from runtime.core.config import load_spec

GIB = 1 << 30
CPUS = Node("cpus", 8, 32 * GIB)


def group(name: str = "l4", **fields: object) -> NodeGroup:
    given = {
        "name": name,
        "accelerator_type": "L4",
        "gpus": 2,
        "cpus": 16,
        "memory": "64GiB",
        "min": 0,
        "max": 3,
    }
    return load_spec(NodeGroup, given | fields)


def l4(name: str) -> Node:
    cards = tuple(Card(i, 24 * GIB, "NVIDIA L4") for i in range(2))
    return Node(name, 16.0, 44 * GIB, cards, "L4")


@pytest.fixture
def growing(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process runs on a cluster of up to three nodes of two L4."""
    for name, value in nodes_to_come_env([group()]).items():
        monkeypatch.setenv(name, value)


def test_a_cluster_scaled_to_zero_counts_at_its_largest(growing: None):
    largest = at_its_largest(Inventory.of([CPUS]))
    assert largest.cards == 6
    assert largest.accelerators == {"L4": 6.0}
    assert {card.product for node in largest.nodes for card in node.cards} == {"NVIDIA L4"}


def test_nodes_that_are_there_already_are_not_counted_twice(growing: None):
    largest = at_its_largest(Inventory.of([CPUS, l4("a"), l4("b")]))
    assert (largest.cards, len(largest.nodes)) == (6, 4)


def test_where_several_products_answer_to_the_word_the_largest_counts_as_with_living_nodes():
    a100 = group(accelerator_type="A100")
    there = node_of("there", {"CPU": 16, "GPU": 2, "memory": 44 * GIB, "accelerator_type:A100": 1})
    to_come = joined(Inventory(), _told(a100)).nodes
    for node in (there, *to_come, *a100.inventory_nodes()):
        assert {(card.product, card.memory_bytes) for card in node.cards} == {
            ("NVIDIA A100-SXM4-80GB", 80 * GIB)
        }
    told = group(accelerator_type="A100", gpu_memory="40GiB")
    assert {card.memory_bytes for node in told.inventory_nodes() for card in node.cards} == {40 * GIB}


def test_groups_that_are_alike_fill_up_together():
    groups = [group("a", max=1), group("b", max=2)]
    told = [entry for one in groups for entry in _told(one)]
    assert joined(Inventory.of([l4("x"), l4("y")]), told).cards == 6


def test_a_cluster_that_does_not_grow_is_as_large_as_it_is():
    assert at_its_largest(Inventory.of([CPUS])) == Inventory.of([CPUS])


def test_what_only_nodes_to_come_could_hold_waits_and_what_they_could_not_is_refused():
    free = Free.of(Inventory.of([CPUS]))
    largest = Free.of(joined(Inventory.of([CPUS]), _told(group())))
    small = Waiting(Request("small", "train", workers_per_group=6, gpus_per_worker=1), "training", 0.0)
    large = Waiting(Request("large", "train", workers_per_group=7, gpus_per_worker=1), "training", 0.0)
    cpu = Waiting(Request("cpu", "train", cpus_per_worker=4), "training", 1.0)
    found = {d.waiting.request.name: d for d in admit(free, [small, large, cpu], 10.0, largest=largest)}
    assert isinstance(found["small"], Held)
    assert "waits for those that the cluster may still get" in found["small"].reason
    assert isinstance(found["large"], Refused)
    assert isinstance(found["cpu"], Admitted)


def test_for_one_that_waits_for_new_nodes_no_place_is_kept_on_the_old_ones():
    free = Free.of(Inventory.of([l4("a")]))
    largest = Free.of(joined(Inventory.of([l4("a")]), _told(group())))
    old = Waiting(Request("old", "train", workers_per_group=4, gpus_per_worker=1), "training", 0.0)
    new = Waiting(Request("new", "train", workers_per_group=2, gpus_per_worker=1), "training", 5.0)
    first, second = admit(free, [old, new], NOT_PASSED_AFTER_S + 1, largest=largest)
    assert isinstance(first, Held)
    assert isinstance(second, Admitted)


def _told(one: NodeGroup) -> list[dict[str, object]]:
    (text,) = nodes_to_come_env([one]).values()
    return json.loads(text)
