"""The ledger's rules, with the time as an argument: who is granted a place, who waits, who is forgotten."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.inventory import Inventory
from cluster.ledger.core import LEASE_S, STARTING_S, Core
from cluster.nvml import CardReading
from cluster.placement import Request
from cluster.shares.holding import Holding
from cluster.shares.reading import Held, NodeReading
from cluster.waiting import NOT_PASSED_AFTER_S, PROMOTED_AFTER_S
from runtime.core.errors import ConfigError
from tests.inventories import nodes
from tests.ledger.holdings import GIB, holding


class World:
    """A cluster of ``cards`` on each node, of which Ray hands out what the holdings say, and its ledger."""

    def __init__(self, *cards: int, product: str | None = "A100") -> None:
        self.core = Core()
        self.now_s = 1000.0
        self.holdings: list[Holding] = []
        self.used: dict[str, int] = {}
        self.inventory = nodes(*({"CPU": 16, "GPU": count} for count in cards), product=product)

    def look(self, *, later_s: float = 0.0, without: tuple[str, ...] = ()) -> None:
        """Time passes, and the ledger looks; nodes ``without`` are gone, or taken back."""
        self.now_s += later_s
        living = [node for node in self.inventory.nodes if node.node_id not in without]
        free = {
            node.node_id: {
                "CPU": node.cpus - sum(one.cpus for one in self.holdings if one.node_id == node.node_id),
                "memory": float(node.memory_bytes),
                "GPU": len(node.cards)
                - sum(one.fraction * len(one.cards) for one in self.holdings if one.node_id == node.node_id),
            }
            for node in living
        }
        readings = [
            NodeReading(
                node.node_id,
                (),
                tuple(
                    Held(one, self.used.get(one.holder))
                    for one in self.holdings
                    if one.node_id == node.node_id
                ),
            )
            for node in living
        ]
        self.core.look(Inventory.of(living), free, readings, self.now_s)

    def ask(
        self, *sizes: Request, priority: str = "training", since_s: float | None = None, wait: bool = True
    ):
        since_s = self.now_s if since_s is None else since_s
        return self.core.ask(sizes, priority=priority, since_s=since_s, now_s=self.now_s, wait=wait)

    def picture(self) -> dict[str, Any]:
        return self.core.picture(self.now_s)

    def waiting(self) -> list[str]:
        return [one["name"] for one in self.picture()["waiting"]]

    def taken(self) -> Counter[tuple[str, int]]:
        """Ten-thousandths taken of each card."""
        return Counter(
            {
                (node["node_id"], card["index"]): round(sum(s["fraction"] for s in card["shares"]) * 10_000)
                for node in self.picture()["nodes"]
                for card in node["cards"]
            }
        )


def world(*cards: int, product: str | None = "A100") -> World:
    made = World(*cards, product=product)
    made.look()
    return made


def wants(name: str, workers: int = 1, gpus: float = 1.0, **fields: Any) -> Request:
    return Request(
        name, fields.pop("kind", "train"), workers_per_group=workers, gpus_per_worker=gpus, **fields
    )


def app(name: str, replicas: int, gpus: float = 1.0) -> Request:
    return Request(name, "serve", groups=replicas, gpus_per_worker=gpus)


def test_one_who_asks_is_granted_a_place_and_the_next_one_waits_for_it():
    w = world(1)
    granted = w.ask(wants("first"))
    assert granted == {"state": "granted", "choice": 0, "nodes": ["node-0"], "accelerator_type": "A100"}
    held = w.ask(wants("second"))
    assert (held["state"], held["position"]) == ("held", 1)
    assert "0 would fit" in held["reason"] or "1" in held["reason"]
    assert w.ask(wants("first")) == granted
    assert w.waiting() == ["second"]


def test_a_run_that_re_forms_is_not_kept_from_room_by_its_own_workers_that_have_ended():
    w = world(1, 1)
    w.holdings = [holding("run", node_id="node-0", fraction=1.0)]
    w.look()
    # Nobody has looked since its worker ended: the share is still in the books.
    granted = w.ask(wants("run", 2), wants("run", 1))
    assert (granted["state"], granted["choice"], len(granted["nodes"])) == ("granted", 0, 2)
    # Of others it still counts.
    w = world(1, 1)
    w.holdings = [holding("run", node_id="node-0", fraction=1.0)]
    w.look()
    assert w.ask(wants("other", 2), wants("other", 1))["choice"] == 1


def test_what_the_empty_cluster_cannot_hold_is_refused_and_forgotten():
    w = world(2)
    refused = w.ask(wants("huge", 3))
    assert refused["state"] == "refused"
    assert refused["reason"]
    assert w.waiting() == []


def test_one_who_does_not_want_to_wait_is_told_why_there_is_no_room_and_leaves_no_trace():
    w = world(1)
    w.ask(wants("first"))
    refused = w.ask(wants("second"), wait=False)
    assert refused["state"] == "refused"
    assert w.waiting() == []
    assert w.ask(wants("third", gpus=0.5), wait=False)["state"] == "refused"
    w.core.leave("first")
    assert w.ask(wants("second"), wait=False)["state"] == "granted"


def test_the_largest_size_that_fits_is_granted():
    w = world(4)
    w.ask(wants("first"))
    sizes = [wants("elastic", count) for count in (4, 3, 2, 1)]
    granted = w.ask(*sizes)
    assert (granted["state"], granted["choice"], len(granted["nodes"])) == ("granted", 1, 3)
    assert w.ask(wants("last"))["state"] == "held"


def test_a_larger_size_does_not_take_the_place_that_is_kept_for_one_who_waited_too_long():
    w = world(2, 2)
    w.holdings = [
        holding("busy", node_id="node-0", cards=("0",), fraction=1.0),
        holding("app", node_id="node-1", cards=("0",), fraction=1.0, kind="serve"),
    ]
    w.look()
    whole = wants("head", 2, strategy="STRICT_PACK")
    assert w.ask(whole)["state"] == "held"
    w.look(later_s=LEASE_S - 1)
    while w.now_s < 1000 + NOT_PASSED_AFTER_S:
        w.ask(whole)
        w.look(later_s=LEASE_S - 1)
    # Two cards are free. That of node-0 is kept for the head, and one on node-1 is left.
    granted = w.ask(wants("elastic", 2, strategy="SPREAD"), wants("elastic", 1))
    assert (granted["state"], granted["choice"], granted["nodes"]) == ("granted", 1, ["node-1"])


def test_who_neither_asks_nor_renews_is_gone():
    w = world(1)
    w.ask(wants("first"))
    assert w.ask(wants("second"))["state"] == "held"
    w.look(later_s=LEASE_S - 1)
    assert w.core.renew("first", w.now_s)
    w.ask(wants("second"))
    w.look(later_s=LEASE_S - 1)
    assert w.waiting() == ["second"]
    w.look(later_s=2)
    # The first one's lease has expired; the second asked less than a lease ago.
    assert w.waiting() == []
    assert w.ask(wants("second"))["state"] == "granted"
    assert not w.core.renew("first", w.now_s)


def test_one_who_leaves_lets_the_next_one_in_and_one_who_waits_is_let_in_by_a_look():
    w = world(1)
    w.ask(wants("first"))
    w.ask(wants("second"))
    w.ask(wants("third"))
    w.core.leave("first")
    w.look(later_s=1)
    assert w.ask(wants("third"))["position"] == 1
    assert w.ask(wants("second"))["state"] == "granted"
    w.core.leave("second")
    assert w.ask(wants("third"))["state"] == "granted"


def test_one_who_leaves_while_waiting_is_out_of_the_queue():
    w = world(1)
    w.ask(wants("first"))
    w.ask(wants("second"))
    w.ask(wants("third"))
    w.core.leave("second")
    assert w.ask(wants("third"))["position"] == 1
    assert w.waiting() == ["third"]


def test_the_place_of_an_app_stands_until_all_of_its_replicas_have_told_their_shares():
    w = world(2)
    w.ask(app("chat", 2))
    w.core.starts("chat", w.now_s)
    w.look(later_s=2 * LEASE_S)
    assert w.ask(wants("run"))["state"] == "held"
    replica = holding("chat", worker="one", node_id="node-0", cards=("0",), fraction=1.0, kind="serve")
    w.holdings = [replica]
    w.look(later_s=1)
    # The other one is on its way: its card is not free.
    assert w.ask(wants("run"))["state"] == "held"
    w.holdings.append(replace(replica, worker="two", cards=("1",)))
    w.look(later_s=1)
    assert w.ask(wants("run"))["state"] == "held"
    w.holdings = []
    w.look(later_s=1)
    w.core.keep_lost({})
    assert w.ask(wants("run"))["state"] == "granted"


def test_the_card_of_a_replica_that_died_waits_for_the_one_in_its_place():
    w = world(1)
    replica = holding("chat", worker="one", node_id="node-0", cards=("0",), fraction=1.0, kind="serve")
    w.holdings = [replica]
    w.look()
    assert (w.ask(wants("run"))["state"], w.core.has_lost) == ("held", False)
    w.holdings = []
    for _ in range(3):
        w.look(later_s=1)
        w.core.keep_lost({"chat": 1})
        assert (w.ask(wants("run"))["state"], w.core.has_lost) == ("held", True)
    w.holdings = [replace(replica, worker="two")]
    w.look(later_s=1)
    assert (w.ask(wants("run"))["state"], w.core.has_lost) == ("held", False)
    # Scaled down, or ended: nobody comes in its place.
    w.holdings = []
    w.look(later_s=1)
    w.core.keep_lost({"chat": 0})
    assert (w.ask(wants("run"))["state"], w.core.has_lost) == ("granted", False)


def test_one_who_asks_under_a_name_that_somebody_else_has_taken_over_takes_nothing_away():
    w = world(1)
    first = {"priority": "serving", "since_s": w.now_s, "now_s": w.now_s, "wait": True}
    w.core.ask([app("chat", 1)], **first, token="old")
    w.core.ask([app("chat", 1)], **first, token="new")
    w.core.leave("chat", "old")
    assert w.ask(wants("run"))["state"] == "held"
    w.core.leave("chat", "new")
    assert w.ask(wants("run"))["state"] == "granted"


def test_a_newer_configuration_of_an_app_that_has_not_begun_asks_anew():
    w = world(2)
    assert w.ask(app("chat", 1, 0.5))["state"] == "granted"
    w.core.starts("chat", w.now_s)
    assert w.ask(wants("run"))["state"] == "granted"
    refused = w.ask(app("chat", 5))
    assert refused["state"] == "refused"
    assert "2 of 5 replicas find a whole A100" in refused["reason"]
    # Only the run holds anything now.
    assert sorted(w.taken().values()) == [0, 10_000]
    assert w.ask(app("chat", 2))["state"] == "held"
    w.core.leave("run")
    again = w.ask(app("chat", 2))
    assert (again["state"], len(again["nodes"])) == ("granted", 2)
    assert w.taken() == {("node-0", 0): 10_000, ("node-0", 1): 10_000}
    # The same configuration keeps what it was granted.
    assert w.ask(app("chat", 2)) == again


def test_a_run_without_cards_that_began_on_another_node_than_was_granted_counts_once():
    w = world(0, 0)
    run = Request("cpu-run", kind="train", cpus_per_worker=10)
    assert w.ask(run)["nodes"] == ["node-0"]
    w.holdings = [holding("cpu-run", node_id="node-1", cards=(), fraction=0.0, cpus=10.0)]
    w.look(later_s=1)
    free = Counter({node["node_id"]: node["cpus"] for node in w.picture()["nodes"]})
    for node in w.picture()["nodes"]:
        free[node["node_id"]] -= sum(share["cpus"] for share in node["shares"])
    assert free == {"node-0": 16, "node-1": 6}


def test_the_place_of_an_app_that_never_begins_is_given_back_in_the_end():
    w = world(1)
    w.ask(app("chat", 1))
    w.core.starts("chat", w.now_s)
    w.look(later_s=STARTING_S - 1)
    assert w.ask(wants("run"))["state"] == "held"
    w.look(later_s=2)
    assert w.ask(wants("run"))["state"] == "granted"


def test_the_queue_is_by_class_then_age_and_everybody_is_told_the_position():
    w = world(1)
    w.ask(wants("first"))
    for name, priority in (("b", "batch"), ("t", "training"), ("s", "serving"), ("i", "interactive")):
        w.ask(wants(name), priority=priority)
        w.now_s += 1
    w.ask(wants("t2"), priority="training")
    w.look()
    assert w.waiting() == ["i", "s", "t", "t2", "b"]
    assert [one["position"] for one in w.picture()["waiting"]] == [1, 2, 3, 4, 5]
    assert "'i', 's', 't'" in w.picture()["waiting"][3]["reason"]


def test_a_cluster_may_have_another_order_of_the_classes():
    w = World(1)
    w.core = Core(classes=("training", "batch", "serving", "interactive"))
    w.look()
    w.ask(wants("first"))
    for name, priority in (("i", "interactive"), ("b", "batch"), ("s", "serving"), ("t", "training")):
        w.ask(wants(name), priority=priority)
    w.look()
    assert w.waiting() == ["t", "b", "s", "i"]


def test_one_who_waits_long_enough_goes_first_whatever_its_class():
    w = world(1)
    w.ask(wants("first"))
    w.ask(wants("old"), priority="batch", since_s=w.now_s - 3 * PROMOTED_AFTER_S)
    w.ask(wants("new"), priority="interactive")
    w.look()
    assert w.waiting() == ["old", "new"]


def test_an_unknown_class_is_refused_and_stands_in_nobodys_way():
    w = world(1)
    with pytest.raises(ConfigError, match="which is no class"):
        w.ask(wants("odd"), priority="trainning")
    assert w.ask(wants("first"))["state"] == "granted"
    w.look(later_s=1)
    assert w.waiting() == []


def test_those_who_wait_keep_their_age_when_a_new_ledger_is_asked_and_those_who_began_their_place():
    w = world(1)
    w.holdings = [holding("first", node_id="node-0", fraction=1.0)]
    w.look()
    for name, since_s in (("old", 900.0), ("young", 950.0)):
        w.ask(wants(name), since_s=since_s)
    w.core = Core()
    w.look()
    assert w.core.holds_already("first")
    w.ask(wants("young"), since_s=950.0)
    w.ask(wants("old"), since_s=900.0)
    assert [(one["name"], one["waiting_s"]) for one in w.picture()["waiting"]] == [
        ("old", 100),
        ("young", 50),
    ]


def test_what_one_who_waits_said_first_of_its_age_stands():
    w = world(1)
    w.ask(wants("first"))
    w.ask(wants("second"), since_s=990.0)
    # Somebody has set the clock of the machine that asks.
    w.ask(wants("second"), since_s=-5000.0)
    assert w.picture()["waiting"][0]["waiting_s"] == 10


def test_a_grant_that_has_not_begun_counts_though_ray_has_handed_out_nothing():
    w = world(1)
    w.ask(wants("first", gpus=0.75))
    w.look(later_s=1)
    assert w.ask(wants("second", gpus=0.5))["state"] == "held"
    assert w.ask(wants("third", gpus=0.25))["state"] == "granted"
    (card,) = w.picture()["nodes"][0]["cards"]
    assert card["free"] == 0
    assert [share["worker"] for share in card["shares"]] == [None, None]


def test_what_ray_has_handed_out_to_others_is_no_room():
    w = world(1)
    w.core.look(w.inventory, {"node-0": {"CPU": 15.0, "GPU": 0.4, "memory": 1e9}}, [], w.now_s)
    assert w.ask(wants("first", gpus=0.5))["state"] == "held"
    assert w.ask(wants("second", gpus=0.4))["state"] == "granted"


def test_nobody_is_placed_on_a_node_that_is_taken_back_and_those_there_count_no_more():
    w = world(1, 1)
    w.holdings = [holding("run", node_id="node-0", fraction=1.0)]
    w.look(without=("node-0",))
    granted = w.ask(wants("next"))
    assert granted["nodes"] == ["node-1"]
    assert w.ask(wants("after"))["state"] == "held"
    assert [node["node_id"] for node in w.picture()["nodes"]] == ["node-1"]


def test_who_uses_more_than_it_promised_is_in_the_picture():
    w = world(1)
    w.holdings = [
        holding("greedy", node_id="node-0", promised_bytes=4 * GIB, fraction=0.5),
        holding("round", node_id="node-0", promised_bytes=4 * GIB, fraction=0.25),
        holding("silent", node_id="node-0", promised_bytes=4 * GIB, fraction=0.25),
    ]
    w.used = {"greedy": 6 * GIB, "round": round(4.1 * GIB)}
    w.look()
    assert w.picture()["over"] == ["greedy"]
    shares = {share["holder"]: share for share in w.picture()["nodes"][0]["cards"][0]["shares"]}
    assert [shares[name]["over_bytes"] for name in ("greedy", "round", "silent")] == [2 * GIB, 0, 0]
    assert shares["silent"]["used_bytes"] is None


def test_what_nvml_says_of_a_card_stands_and_a_request_is_held_to_it():
    w = world(1)
    small = CardReading("GPU-1", "NVIDIA A100-SXM4-40GB", 40 * GIB, 0, {})
    w.core.look(w.inventory, {}, [NodeReading("node-0", (small,), ())], w.now_s)
    (card,) = w.picture()["nodes"][0]["cards"]
    assert (card["uuid"], card["memory_bytes"]) == ("GPU-1", 40 * GIB)
    assert w.ask(wants("large", gpus=0.5, card_bytes_per_worker=30 * GIB))["state"] == "refused"
    assert w.ask(wants("fits", gpus=0.5, card_bytes_per_worker=20 * GIB))["state"] == "granted"


def test_a_share_of_a_card_that_is_named_by_its_uuid_is_on_that_card():
    w = world(2)
    cards = tuple(CardReading(f"GPU-{n}", "NVIDIA A100-SXM4-40GB", 40 * GIB, 0, {}) for n in range(2))
    held = Held(holding("run", node_id="node-0", cards=("GPU-1",), fraction=1.0), 1)
    w.core.look(
        w.inventory, {"node-0": {"CPU": 16, "GPU": 1}}, [NodeReading("node-0", cards, (held,))], w.now_s
    )
    assert w.taken() == {("node-0", 0): 0, ("node-0", 1): 10_000}
    assert w.picture()["nodes"][0]["cards"][1]["shares"][0]["used_bytes"] == 1


def test_logical_cards_are_shared_out_alike():
    w = world(1, product=None)
    assert w.ask(wants("first", gpus=0.5))["accelerator_type"] is None
    assert w.ask(app("second", 1, 0.5))["state"] == "granted"
    assert w.ask(wants("third", gpus=0.5))["state"] == "held"


def test_asking_again_costs_next_to_nothing_while_nothing_has_changed():
    w = world(*[8] * 50)
    requests = [wants(f"run-{number}", 8) for number in range(300)]
    # Time of this thread alone: what it costs, however busy the machine is.
    began = time.thread_time()
    for one in requests:
        w.ask(one)
    asking_s = time.thread_time() - began
    assert len(w.waiting()) == 250
    began = time.thread_time()
    for one in requests:
        w.ask(one)
    assert time.thread_time() - began < asking_s / 10


ASKS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "leave", "begin", "end", "look", "renew", "lost"]),
        st.integers(0, 7),
        st.sampled_from([0.25, 0.3333, 0.5, 1.0]),
        st.integers(1, 3),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(ASKS)
def test_whatever_happens_no_card_is_ever_granted_more_than_once(steps):
    """Runs ask, begin, end and vanish in any order, and the ledger is lost and asked again."""
    w = world(2, 1)
    granted: dict[str, tuple[tuple[Request, ...], list[str]]] = {}
    for step, number, gpus, workers in steps:
        name = f"run-{number}"
        if step == "ask" and name not in granted:
            sizes = tuple(wants(name, count, gpus) for count in range(workers, 0, -1))
            answer = w.ask(*sizes)
            if answer["state"] == "granted":
                granted[name] = (sizes, answer["nodes"])
                assert len(answer["nodes"]) == sizes[answer["choice"]].workers
        elif step == "leave" and name not in granted:
            w.core.leave(name)
        elif step == "begin" and name in granted and not w.core.holds_already(name):
            begin(w, name, *granted[name])
            w.look(later_s=1)
        elif step == "end" and name in granted:
            w.holdings = [one for one in w.holdings if one.holder != name]
            del granted[name]
            w.core.leave(name)
            w.look(later_s=1)
        elif step == "look":
            w.look(later_s=1)
        elif step == "renew":
            for one in granted:
                w.core.renew(one, w.now_s)
        elif step == "lost" and all(w.core.holds_already(one) for one in granted):
            w.core = Core()
            w.look()
        assert all(units <= 10_000 for units in w.taken().values())
        for one in granted:
            w.core.renew(one, w.now_s)


def begin(w: World, name: str, sizes: tuple[Request, ...], on: list[str]) -> None:
    """As Ray does it: each worker on the fullest card of its node that has room."""
    for rank, node_id in enumerate(on):
        fraction = sizes[0].gpus_per_worker
        taken = Counter[str]()
        for one in w.holdings:
            if one.node_id == node_id:
                taken.update({card: round(one.fraction * 10_000) for card in one.cards})
        count = len(next(node for node in w.inventory.nodes if node.node_id == node_id).cards)
        mine = {one.cards[0] for one in w.holdings if one.holder == name and one.node_id == node_id}
        room = [
            str(card)
            for card in range(count)
            if taken[str(card)] + round(fraction * 10_000) <= 10_000 and str(card) not in mine
        ]
        if room:
            card = max(room, key=lambda card: taken[card])
            w.holdings.append(
                holding(name, worker=f"rank {rank}", node_id=node_id, cards=(card,), fraction=fraction)
            )
