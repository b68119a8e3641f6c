"""What is taken of the cluster, from what processes say, what was granted, and what Ray has left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.inventory import Card, Inventory, Node, Share
from cluster.ledger.books import OTHERS, Grant, card_index, shares_now
from cluster.placement import Placement, Slot
from tests.ledger.holdings import GIB, holding

NODES = Inventory.of(
    [
        Node("a", 8, 64 * GIB, tuple(Card(i, 24 * GIB, None, f"GPU-{i}") for i in range(3)), "L4"),
        Node("b", 4, 32 * GIB),
    ]
)
ALL_FREE = {"a": {"CPU": 8.0, "GPU": 3.0, "memory": 64.0 * GIB}, "b": {"CPU": 4.0, "memory": 32.0 * GIB}}


def free(**by_node: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """What Ray has left, where these amounts are less than all."""
    return {node: all_ | dict(by_node.get(node, {})) for node, all_ in ALL_FREE.items()}


def on_cards(shares: Sequence[Share]) -> list[tuple[str, str, int | None, float]]:
    return sorted((one.holder, one.node_id, one.card, one.fraction) for one in shares if one.card is not None)


def grant(holder: str, *slots: Slot) -> Grant:
    return Grant(holder, "train", Placement(slots, "L4"))


def test_of_a_cluster_at_rest_nothing_is_taken():
    assert shares_now(NODES, ALL_FREE, [], []) == []


def test_what_a_process_holds_is_taken_once_though_ray_knows_of_it_too():
    one = holding("run", cards=("1",), fraction=0.25, cpus=2, memory_bytes=GIB)
    left = free(a={"CPU": 6.0, "GPU": 2.75, "memory": 63.0 * GIB})
    assert shares_now(NODES, left, [one], []) == [Share("run", "a", 1, 0.25, 2, GIB)]


def test_a_replica_on_two_cards_has_a_share_on_each_and_its_cpus_once():
    one = holding("app", cards=("0", "2"), fraction=1.0, cpus=3, memory_bytes=GIB)
    left = free(a={"CPU": 5.0, "GPU": 1.0, "memory": 63.0 * GIB})
    assert shares_now(NODES, left, [one], []) == [
        Share("app", "a", 0, 1.0, 3, GIB),
        Share("app", "a", 2, 1.0),
    ]


def test_a_card_is_known_by_its_uuid_too():
    node = NODES.nodes[0]
    assert [card_index(node, name) for name in ("0", "2", "3", "GPU-2", "GPU-9")] == [0, 2, None, 2, None]
    assert on_cards(shares_now(NODES, free(a={"GPU": 2.5}), [holding("run", cards=("GPU-2",))], [])) == [
        ("run", "a", 2, 0.5)
    ]


def test_what_only_ray_knows_of_is_the_others_on_the_emptiest_cards():
    one = holding("run", cards=("0",), fraction=0.5)
    found = shares_now(NODES, free(a={"GPU": 0.75, "CPU": 7.0}), [one], [])
    # 2.25 are handed out: 0.5 by us. The others' 1.75 are where nobody is.
    assert on_cards(found) == [(OTHERS, "a", 1, 1.0), (OTHERS, "a", 2, 0.75), ("run", "a", 0, 0.5)]
    assert Share(OTHERS, "a", None, 0.0, 1.0, 0) in found


def test_a_share_of_which_ray_does_not_know_yet_is_taken_all_the_same():
    assert on_cards(shares_now(NODES, ALL_FREE, [holding("run", cards=("1",))], [])) == [("run", "a", 1, 0.5)]


def test_a_grant_counts_until_its_process_tells_its_share():
    given_ = grant("run", Slot(0, 0, "a", 0, 0.5, 1, 0), Slot(0, 1, "a", 1, 0.5, 1, 0))
    assert on_cards(shares_now(NODES, ALL_FREE, [], [given_])) == [("run", "a", 0, 0.5), ("run", "a", 1, 0.5)]
    # Ray may have chosen another card of the node.
    begun = [holding("run", cards=("2",))]
    assert on_cards(shares_now(NODES, ALL_FREE, begun, [given_])) == [
        ("run", "a", 1, 0.5),
        ("run", "a", 2, 0.5),
    ]
    begun.append(holding("run", cards=("1",), worker="rank 1"))
    assert on_cards(shares_now(NODES, ALL_FREE, begun, [given_])) == [
        ("run", "a", 1, 0.5),
        ("run", "a", 2, 0.5),
    ]


def test_between_a_grant_and_its_reservation_with_ray_nothing_is_counted_twice():
    given_ = grant("run", Slot(0, 0, "a", 0, 1.0, 1, 0))
    for left in (ALL_FREE, free(a={"GPU": 2.0, "CPU": 7.0})):
        assert shares_now(NODES, left, [], [given_]) == [Share("run", "a", 0, 1.0, 1, 0)]


def test_a_worker_without_a_card_holds_cpus_alone():
    one = holding("run", node_id="b", cards=(), fraction=0, cpus=1.5)
    assert shares_now(NODES, free(b={"CPU": 2.5}), [one], []) == [Share("run", "b", None, 0.0, 1.5, 0)]
    given_ = grant("run", Slot(0, 0, "b", None, 0, 1.5, 0))
    assert len(shares_now(NODES, free(b={"CPU": 2.5}), [one], [given_])) == 1


def test_what_is_on_a_node_that_is_gone_or_that_ray_does_not_tell_of_is_left_out():
    gone = holding("run", node_id="c")
    assert shares_now(NODES, ALL_FREE, [gone], []) == []
    assert shares_now(NODES, {"b": ALL_FREE["b"]}, [], []) == []


def test_a_card_that_the_node_does_not_have_is_held_by_nobody():
    assert on_cards(shares_now(NODES, ALL_FREE, [holding("run", cards=("7",))], [])) == []


FRACTIONS = st.integers(1, 10_000).map(lambda units: units / 10_000)


@st.composite
def clusters(draw: st.DrawFn) -> tuple[Inventory, dict[str, dict[str, float]], list]:
    """Cards with holders that fit on them, of which some are ours, some others', and some have just begun."""
    cards = draw(st.integers(1, 4))
    node = Node("a", 64, 64 * GIB, tuple(Card(i, GIB) for i in range(cards)), "L4")
    ours, handed_out = [], 0
    for card in range(cards):
        left = 10_000
        for number in range(draw(st.integers(0, 3))):
            units = draw(st.integers(0, left))
            left -= units
            if not units:
                continue
            kind = draw(st.sampled_from(["ours", "others", "granted"]))
            handed_out += units if kind != "granted" or draw(st.booleans()) else 0
            if kind == "ours":
                ours.append(
                    holding(f"run-{card}-{number}", cards=(str(card),), fraction=units / 10_000, cpus=0)
                )
            elif kind == "granted":
                slot = Slot(0, 0, "a", card, units / 10_000, 0, 0)
                ours.append(grant(f"run-{card}-{number}", slot))
    left_by_ray = {"CPU": 64.0, "memory": 64.0 * GIB, "GPU": (10_000 * cards - handed_out) / 10_000}
    return Inventory.of([node]), {"a": left_by_ray}, ours


@settings(deadline=None)
@given(clusters())
def test_the_shares_of_a_card_never_exceed_the_card_where_rays_numbers_are_right(cluster):
    inventory, left, ours = cluster
    holdings = [one for one in ours if not isinstance(one, Grant)]
    found = shares_now(inventory, left, holdings, [one for one in ours if isinstance(one, Grant)])
    taken = Counter[int]()
    for share in found:
        taken[share.card] += round(share.fraction * 10_000)
    assert all(units <= 10_000 for units in taken.values())
    # And at least as much is taken as Ray has handed out.
    cards = len(inventory.nodes[0].cards)
    assert sum(taken.values()) >= round((cards - left["a"]["GPU"]) * 10_000)


@settings(deadline=None)
@given(st.lists(FRACTIONS, max_size=6), st.floats(-1, 4))
def test_no_numbers_of_rays_make_it_fail_or_give_more_than_a_card_to_the_others(fractions, left):
    holdings = [holding(f"run-{i}", cards=(str(i % 3),), fraction=one) for i, one in enumerate(fractions)]
    found = shares_now(NODES, free(a={"GPU": left}), holdings, [])
    others = [share for share in found if share.holder == OTHERS]
    assert all(0 <= share.fraction <= 1 for share in others)
