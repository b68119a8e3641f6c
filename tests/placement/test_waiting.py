"""The queue: who goes first, who may pass, for whom a place is kept, and what those who wait are told."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.inventory import Card, Inventory, Node, Share
from cluster.placement import Free, Request
from cluster.waiting import (
    CLASSES,
    NOT_PASSED_AFTER_S,
    PROMOTED_AFTER_S,
    Admitted,
    Held,
    Refused,
    Waiting,
    admit,
    in_order,
)
from runtime.core.errors import ConfigError

GIB = 1 << 30
PRODUCTS = {"a": "A100", "b": "A100", "l": "L4"}


def books(*held: tuple[str, int], **cards: int) -> Free:
    nodes = [
        Node(name, 64, 512 * GIB, tuple(Card(i, 80 * GIB) for i in range(count)), PRODUCTS[name])
        for name, count in cards.items()
    ]
    return Free.of(Inventory.of(nodes), [Share("running", node, card, 1.0) for node, card in held])


def one(
    name: str, cards: int, *, priority: str = "training", since_s: float = 0.0, product: str | None = None
):
    request = Request(
        name, "train", workers_per_group=cards, gpus_per_worker=1, accelerator_type=product,
        strategy="STRICT_PACK",
    )  # fmt: skip
    return Waiting(request, priority, since_s)


def names(decisions, kind) -> list[str]:
    return [decision.waiting.request.name for decision in decisions if isinstance(decision, kind)]


def test_the_order_is_by_class_then_age_then_name():
    queue = [
        one("b", 1, priority="batch", since_s=1),
        one("t2", 1, since_s=8),
        one("t1", 1, since_s=8),
        one("t0", 1, since_s=9),
        one("i", 1, priority="interactive", since_s=500),
        one("s", 1, priority="serving", since_s=400),
    ]
    for seed in range(20):
        random.Random(seed).shuffle(queue)
        assert [waiting.request.name for waiting in in_order(queue, 500)] == ["i", "s", "t1", "t2", "t0", "b"]


def test_a_request_counts_as_one_class_higher_after_every_so_long():
    batch = one("batch", 1, priority="batch", since_s=0)
    for passed, ahead in ((0, 3), (599, 3), (600, 2), (1200, 1), (1800, 0), (100_000, 0)):
        fresh = [one(name, 1, priority=name, since_s=passed) for name in CLASSES[:3]]
        assert PROMOTED_AFTER_S == 600
        assert in_order([*fresh, batch], passed).index(batch) == ahead


def test_an_unknown_class_is_refused():
    with pytest.raises(
        ConfigError, match="priority of 'x' is 'trainning', which is no class. Did you mean 'training'"
    ):
        admit(books(a=1), [one("x", 1, priority="trainning")], 0)


def test_what_can_never_fit_is_refused_and_holds_up_nobody():
    decisions = admit(books(a=2), [one("huge", 3, priority="interactive"), one("small", 2)], 10_000)
    assert names(decisions, Refused) == ["huge"] and names(decisions, Admitted) == ["small"]
    found = "2 of 3 workers find a whole A100 on one node of the empty cluster."
    assert decisions[0].reason.startswith(found)


def test_those_who_wait_are_told_why_and_who_is_ahead():
    queue = [one(f"run-{number}", 2, since_s=number) for number in range(6)]
    decisions = admit(books(("a", 0), a=2), queue, 100)
    assert [decision.position for decision in decisions] == [1, 2, 3, 4, 5, 6]
    short = "1 of 2 workers finds a whole A100 on one node now; the freest node (a) has 1 whole card free."
    assert decisions[0].reason == short
    assert decisions[5].reason == f"{short} Ahead of it: 'run-0', 'run-1', 'run-2' and 2 more."


def test_later_ones_pass_the_head_for_a_while_and_then_take_nothing_that_it_waits_for():
    free = books(("a", 0), a=4)
    queue = [one("big", 4), one("small", 1, since_s=1)]
    early = admit(free, queue, NOT_PASSED_AFTER_S - 1)
    assert (names(early, Held), names(early, Admitted)) == (["big"], ["small"])
    late = admit(free, queue, NOT_PASSED_AFTER_S)
    assert names(late, Held) == ["big", "small"]
    assert late[0].reason.endswith("A place is kept for it on a: it starts when the work there has ended.")
    assert late[1].reason == ("There is room, kept for 'big', waiting longer than 600 s. Ahead of it: 'big'.")


def test_beside_the_place_kept_others_go_on():
    # 'big' waits for the emptier node, a; b has one card free, l is another product.
    free = books(("a", 0), ("b", 0), ("b", 1), ("b", 2), a=4, b=4, l=1)
    queue = [
        one("big", 4, product="A100"),
        *(one(f"s{n}", 1, since_s=n, product="A100") for n in (1, 2)),
        one("any", 1, since_s=3),
    ]
    decisions = admit(free, queue, 900)
    assert {d.waiting.request.name: d.placement.node_ids for d in decisions if isinstance(d, Admitted)} == {
        "s1": ("b",), "any": ("l",),
    }  # fmt: skip
    assert names(decisions, Held) == ["big", "s2"]


def test_each_product_has_a_head_of_its_own():
    free = books(("a", 0), ("l", 0), a=2, l=2)
    queue = [
        one("big-a", 2, product="A100"),
        one("big-l", 2, since_s=1, product="L4"),
        one("small-l", 1, since_s=2, product="L4"),
    ]
    assert names(admit(free, queue, 700), Held) == ["big-a", "big-l", "small-l"]


def test_no_place_is_kept_where_waiting_does_not_help():
    free = books(("a", 0), a=4)
    queue = [one("big", 4), one("small", 1, since_s=1)]
    decisions = admit(free, queue, 5_000, lasting=free)
    assert names(decisions, Admitted) == ["small"]
    assert "it does not fit beside what does not end by itself" in decisions[0].reason


def test_a_fraction_that_is_overdue_keeps_its_part_of_a_card_and_no_more():
    # 0.3 of the card is free: 'half' waits for 0.5, so nothing of it is left for others, and all of b is.
    nodes = [Node(name, 8, 8 * GIB, (Card(0, 80 * GIB),), "A100") for name in "ab"]
    free = Free.of(Inventory.of(nodes), [Share("x", "a", 0, 0.7), Share("y", "b", 0, 0.8)])
    half = Waiting(Request("half", gpus_per_worker=0.5), "batch", 0)
    small = [Waiting(Request(f"s{n}", gpus_per_worker=0.2), "batch", 1 + n) for n in range(2)]
    decisions = admit(free, [half, *small], 1_000)
    assert [(d.waiting.request.name, d.placement.node_ids) for d in decisions if isinstance(d, Admitted)] == [
        ("s0", ("b",))
    ]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 5), st.sampled_from(CLASSES), st.integers(0, 3000), st.sampled_from([0.25, 0.5, 1])
        ),
        max_size=12,
    ),
    st.sets(st.sampled_from([("a", 0), ("a", 1), ("a", 2), ("b", 0), ("l", 0)])),
    st.randoms(),
)  # fmt: skip
def test_whatever_waits_all_decisions_hold_together(asked, held, dice):
    free = books(*held, a=3, b=2, l=2)
    queue = [
        Waiting(Request(f"r{n:02}", "train", workers_per_group=cards, gpus_per_worker=part), priority, since)
        for n, (cards, priority, since, part) in enumerate(asked)
    ]
    decisions = admit(free, queue, 3_000)
    assert [decision.waiting for decision in decisions] == in_order(queue, 3_000)
    for decision in decisions:
        if isinstance(decision, Admitted):
            # Raises where it takes what another one took.
            free = free.taken(decision.placement)
    positions = [decision.position for decision in decisions if isinstance(decision, Held)]
    assert positions == list(range(1, len(positions) + 1))
    first = next((decision for decision in decisions if not isinstance(decision, Refused)), None)
    if isinstance(first, Held):
        assert isinstance(admit(books(*held, a=3, b=2, l=2), [first.waiting], 3_000)[0], Held)
    dice.shuffle(queue)
    assert admit(books(*held, a=3, b=2, l=2), queue, 3_000) == decisions
