"""What a share of a card is, where Ray's word for the product leaves a choice and where NVML was read."""

from __future__ import annotations

from dataclasses import replace

from cluster.estimator.device import card_share
from cluster.inventory import Card, Inventory
from tests.inventories import GIB, nodes


def read(cluster: Inventory, product: str, memory_bytes: int) -> Inventory:
    """The same cluster after NVML was read on every node."""
    return Inventory.of(
        replace(
            node,
            cards=tuple(Card(one.index, memory_bytes, product, f"GPU-{one.index}") for one in node.cards),
        )
        for node in cluster.nodes
    )


def test_where_only_rays_word_is_known_the_largest_product_of_it_counts():
    # A100 is 40 or 80 GB: a spec for 70 GB must not be refused by whoever cannot see which.
    device = card_share(nodes({"CPU": 8, "GPU": 2}), "A100", 1.0)
    assert device is not None and device.available_bytes == int(0.97 * 80 * GIB)


def test_where_nvml_was_read_the_card_itself_counts():
    small = read(nodes({"CPU": 8, "GPU": 2}), "NVIDIA A100-SXM4-40GB", 40 * GIB)
    device = card_share(small, "A100", 0.5)
    assert device is not None and device.available_bytes == int(0.5 * int(0.97 * 40 * GIB))
    mig = read(nodes({"CPU": 8, "GPU": 4}), "NVIDIA A100-SXM4-40GB MIG 1g.5gb", 5 * GIB)
    device = card_share(mig, None, 1.0)
    assert device is not None and device.available_bytes == int(0.97 * 5 * GIB)


def test_where_any_product_will_do_the_smallest_counts():
    cluster = nodes(
        {"CPU": 8, "GPU": 2, "accelerator_type:H100": 1}, {"CPU": 8, "GPU": 2, "accelerator_type:L4": 1}
    )
    any_ = card_share(cluster, None, 1.0)
    assert any_ is not None and any_.name == "NVIDIA L4"
    one = card_share(cluster, "H100", 1.0)
    assert one is not None and "H100" in one.name


def test_where_only_cards_that_are_large_enough_are_taken_the_smallest_of_so_many_counts():
    small = read(nodes({"CPU": 8, "GPU": 2}), "NVIDIA A100-SXM4-40GB", 40 * GIB).nodes[0]
    large = read(nodes({"CPU": 8, "GPU": 2}), "NVIDIA A100-SXM4-80GB", 80 * GIB).nodes[0]
    cluster = Inventory.of([small, replace(large, node_id="large")])

    def gib(cards: int | None) -> float:
        device = card_share(cluster, "A100", 1.0, cards=cards)
        return round((device.available_bytes or 0) / GIB / 0.97) if device else 0

    assert [gib(cards) for cards in (1, 2, 3, 4, 9, None)] == [80, 80, 40, 40, 40, 40]


def test_what_a_cluster_file_says_of_a_card_counts():
    told = Card(0, 40 * GIB, "NVIDIA A100-SXM4-40GB")
    cluster = Inventory.of([replace(node, cards=(told,)) for node in nodes({"CPU": 8, "GPU": 1}).nodes])
    device = card_share(cluster, "A100", 1.0)
    assert device is not None and device.name == "NVIDIA A100-SXM4-40GB"


def test_of_a_product_outside_the_catalogue_its_memory_counts_where_it_is_known():
    # Some cards of one more product: nothing is known of them but what NVML, or a cluster file, says.
    cluster = nodes({"CPU": 8, "GPU": 2, "accelerator_type:H20": 1})
    device = card_share(read(cluster, "NVIDIA H20", 96 * GIB), "H20", 0.5)
    assert device is not None and device.available_bytes == int(0.5 * int(0.97 * 96 * GIB))
    assert device.name == "0.5 of NVIDIA H20" and device.calibration.product == "gpu"
    told = Inventory.of(replace(one, cards=(Card(0, 192 * GIB),)) for one in cluster.nodes)
    device = card_share(told, "H20", 1.0)
    assert device is not None and (device.name, device.available_bytes) == ("H20", int(0.97 * 192 * GIB))


def test_nothing_is_said_of_a_product_that_is_not_in_the_catalogue():
    cluster = nodes({"CPU": 8, "GPU": 2, "accelerator_type:MI300X": 1})
    assert card_share(cluster, "MI300X", 1.0) is None
    assert card_share(cluster, "A100", 1.0) is None
