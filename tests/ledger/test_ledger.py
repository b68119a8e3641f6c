"""The ledger as an actor on a real cluster: what is told, asked, killed and shown."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster import local
from cluster.environments import interpreter
from cluster.ledger.actor import ledger
from cluster.ledger.client import NeverFits, Place, Room
from cluster.ledger.shown import picture
from cluster.placement import Request
from cluster.rest import head_node_id
from cluster.shares.cards import own_cards
from cluster.shares.holding import folder_of
from runtime.core.errors import WaitTimeout
from tests.conftest import ROOT, wait_for
from tests.shares.processes import holder
from tests.train.living import kill_tree

GIB = 1 << 30


@dataclass(frozen=True)
class Living:
    """A cluster of two logical cards, with a ledger."""

    cluster: local.LocalCluster
    before: dict[str, Any]
    """What was shown when there was no ledger."""

    @property
    def url(self) -> str:
        return self.cluster.dashboard_url

    @property
    def head(self) -> str:
        return head_node_id(self.url)

    def folder(self, node_id: str) -> Path:
        """Where processes of the node tell their shares."""
        return folder_of(Path(self.cluster.temp_dir, "session_latest").resolve(), node_id)

    def node(self, node_id: str | None = None) -> dict[str, Any]:
        """The node as it is shown."""
        nodes = {node["node_id"]: node for node in picture(self.url)["nodes"]}
        return nodes.get(node_id or self.head, {"cards": [], "shares": []})

    def holders(self, node_id: str | None = None) -> list[list[str]]:
        """Who is shown to hold each card of the node."""
        return [[share["holder"] for share in card["shares"]] for card in self.node(node_id)["cards"]]

    def waiting(self) -> list[str]:
        return [one["name"] for one in picture(self.url)["waiting"]]


@pytest.fixture(scope="module")
def living(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Living]:
    own = tmp_path_factory.mktemp("ledger")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANDEM_HOME", str(own))
        # As the cluster itself has it.
        patch.setenv("RAY_AUTH_MODE", "disabled")
        cluster = local.up(local.LocalClusterSpec(num_cpus=3, num_gpus=2, dashboard_port=0, http_port=0))
        try:
            before = picture(cluster.dashboard_url)
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            ray.get(ledger().pid.remote())
            yield Living(cluster, before)
        finally:
            ray.shutdown()
            local.down()


def wants(name: str, gpus: float = 1.0, workers: int = 1) -> Request:
    return Request(name, "train", workers_per_group=workers, gpus_per_worker=gpus, cpus_per_worker=0.1)


def granted(place: Place, timeout_s: float = 60) -> Room:
    return place.wait(timeout_s=timeout_s, tell=lambda said: None)


def ledger_process() -> psutil.Process:
    return psutil.Process(ray.get(ledger().pid.remote(), timeout=60))


@contextmanager
def second_node(cluster: local.LocalCluster, log: Path, *, visible: str) -> Iterator[psutil.Process]:
    """One more raylet on this machine, with cards of its own, which are named so in CUDA_VISIBLE_DEVICES."""
    command = [str(interpreter("core").with_name("ray")), "start", "--address", cluster.address, "--block"]
    command += ["--num-cpus", "1", "--num-gpus", str(len(visible.split(",")))]
    env = psutil.Process(cluster.pid).environ() | {"CUDA_VISIBLE_DEVICES": visible}
    before = ray.cluster_resources()["GPU"]
    with log.open("w") as out:
        started = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: ray.cluster_resources()["GPU"] > before, "the node has joined", 60)
        yield psutil.Process(started.pid)
    finally:
        kill_tree(psutil.Process(started.pid))
        started.wait()
        wait_for(lambda: ray.cluster_resources()["GPU"] == before, "Ray knows", 60)


def test_where_there_is_no_ledger_yet_all_cards_are_free(living: Living):
    assert living.before["at"] is None
    (node,) = living.before["nodes"]
    assert [card["free"] for card in node["cards"]] == [1.0, 1.0]
    assert node["shares"] == living.before["waiting"] == living.before["over"] == []


def test_the_ledger_is_on_the_head_and_takes_nothing_of_the_cluster(living: Living):
    process = ledger_process()
    assert psutil.Process(living.cluster.pid) in process.parents()
    wait_for(lambda: picture(living.url)["at"], "the first picture", 20)
    assert living.node()["shares"] == []
    assert living.holders() == [[], []]
    assert picture(living.url)["nodes"][0]["node_id"] == living.head


def test_a_share_that_a_process_tells_is_shown_and_forgotten_when_it_is_killed(living: Living):
    fields = {"node_id": living.head, "cards": ("1",), "promised_bytes": 1 << 20}
    with holder(living.folder(living.head), more="memory = b'x' * (40 << 20)", **fields) as process:
        wait_for(lambda: living.holders() == [[], ["lesson-1"]], "it is shown", 20)
        # The first look at it may have been before it took its memory.
        (share,) = wait_for(
            lambda: [one for one in living.node()["cards"][1]["shares"] if one["used_bytes"] > 40 << 20],
            "its memory is seen",
            20,
        )
        assert (share["worker"], share["fraction"], share["promised_bytes"]) == ("rank 0", 0.5, 1 << 20)
        assert 40 << 20 < share["used_bytes"] < 100 << 20
        assert share["over_bytes"] == share["used_bytes"] - (1 << 20)
        assert picture(living.url)["over"] == ["lesson-1"]
        assert gpus_command(living)["over"] == ["lesson-1"]
        over = 'tandem_share_over_bytes{card="1",holder="lesson-1"}'
        wait_for(lambda: prometheus(living).get(over, 0) > 30 << 20, "the drift is among Ray's metrics", 60)
        process.kill()
        wait_for(lambda: living.holders() == [[], []], "it is forgotten", 20)
        wait_for(lambda: prometheus(living).get(over) == 0, "and so is the drift", 60)


def gpus_command(living: Living) -> dict[str, Any]:
    """What ``tandem gpus --json`` says."""
    command = ["-m", "runtime", "gpus", "--json", "--address", living.url]
    done = subprocess.run(
        [os.fspath(interpreter("core")), *command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def prometheus(living: Living) -> dict[str, float]:
    """The ledger's figures by name and labels, less those that Ray adds."""
    found = json.loads(Path(living.cluster.temp_dir, "prom_metrics_service_discovery.json").read_text())
    figures = {}
    for target in [target for group in found for target in group["targets"]]:
        try:
            told = httpx.get(f"http://{target}/metrics", timeout=20, trust_env=False).text
        except httpx.TransportError:
            # Ray lists one before it listens, and for a while after its end.
            continue
        for row in told.splitlines():
            if row.startswith("ray_tandem_"):
                name, labels, value = re.fullmatch(r"ray_(\w+)\{(.*)\} (\S+)", row).groups()
                kept = sorted(re.findall(r'(?:card|holder|priority)="[^"]*"', labels))
                figures[f"{name}{{{','.join(kept)}}}"] = float(value)
    return figures


def test_a_killed_ledger_comes_back_and_says_the_same(living: Living):
    with (
        ThreadPoolExecutor(1) as pool,
        closing(Place([wants("waits", workers=2)], priority="training")) as place,
    ):
        with holder(living.folder(living.head), node_id=living.head, fraction=1.0):
            wait_for(lambda: living.holders()[0] == ["lesson-1"], "its share is seen", 20)
            waiting = pool.submit(granted, place, 120)
            wait_for(lambda: living.waiting() == ["waits"], "it waits", 20)
            seen = picture(living.url)
            first = ledger_process()
            first.kill()
            wait_for(lambda: picture(living.url)["at"] > seen["at"] + 2, "it looks again", 60)
            assert ledger_process().pid != first.pid
            wait_for(lambda: living.waiting() == ["waits"], "it is asked again", 20)
            assert living.holders() == [["lesson-1"], []]
            assert picture(living.url)["waiting"][0]["waiting_s"] > seen["waiting"][0]["waiting_s"]
            assert not waiting.done()
        assert waiting.result(60).nodes == (living.head, living.head)


def test_those_who_wait_are_told_their_position_and_the_reason_and_begin_in_order(living: Living):
    told: dict[str, list[str]] = {"batch": [], "interactive": []}
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(2))
        first = stack.enter_context(closing(Place([wants("first", workers=2)], priority="training")))
        granted(first)
        rooms, places = {}, {}
        for priority in told:
            place = stack.enter_context(closing(Place([wants(priority, workers=2)], priority=priority)))
            places[priority] = place
            rooms[priority] = pool.submit(place.wait, timeout_s=60, tell=told[priority].append)
            wait_for(lambda one=priority: one in living.waiting(), "it waits", 20)
            stack.callback(place.close)
        wait_for(lambda: living.waiting() == ["interactive", "batch"], "the later one is first", 20)
        wait_for(lambda: len(told["batch"]) == 2, "its position has changed", 20)
        assert told["batch"][0].startswith("number 1 in the queue: ")
        assert told["batch"][1].startswith("number 2 in the queue: ")
        assert "'interactive'" in told["batch"][1]
        shown = picture(living.url)["waiting"]
        assert [(one["position"], one["priority"]) for one in shown] == [(1, "interactive"), (2, "batch")]
        batch = 'tandem_waiting_requests{priority="batch"}'
        wait_for(lambda: prometheus(living).get(batch) == 1, "the queue is among Ray's metrics", 60)
        first.close()
        assert rooms["interactive"].result(30).choice == 0
        assert not rooms["batch"].done()
        # Another one of its name takes nothing away.
        Place([wants("interactive", workers=2)], priority="interactive").close()
        assert not rooms["batch"].done()
        places["interactive"].close()
        assert rooms["batch"].result(30).choice == 0


def test_what_never_fits_or_may_not_wait_or_has_waited_long_enough_is_told_why(living: Living):
    with pytest.raises(NeverFits, match="2"):
        granted(Place([wants("huge", workers=3)], priority="training"))
    with closing(Place([wants("first", workers=2)], priority="training")) as first:
        granted(first)
        with pytest.raises(NeverFits):
            Place([wants("now")], priority="training").wait(timeout_s=60, tell=print, may_wait=False)
        with (
            closing(Place([wants("patient")], priority="training")) as place,
            pytest.raises(WaitTimeout, match="no room within 2 s; number 1 in the queue: "),
        ):
            granted(place, 2)
    wait_for(lambda: living.holders() == [[], []] and not living.waiting(), "all is given back", 20)


def test_of_many_who_ask_at_once_no_more_hold_a_card_than_there_is_room_for_and_each_has_its_turn(
    living: Living,
):
    hold(living, 12, gpus=0.5, at_once=4)


def test_when_the_ledger_is_killed_while_many_ask_each_has_its_turn_all_the_same(living: Living):
    hold(living, 6, gpus=1.0, at_once=None, meanwhile=lambda: ledger_process().kill())


def hold(
    living: Living,
    askers: int,
    *,
    gpus: float,
    at_once: int | None,
    meanwhile: Callable[[], None] | None = None,
) -> None:
    """So many ask for a place each and hold it for two looks; ``meanwhile`` once the first have theirs."""
    holding: set[str] = set()
    most, lock, told = 0, threading.Lock(), threading.Event()

    def one(name: str) -> Room:
        nonlocal most
        with closing(Place([wants(name, gpus)], priority="training")) as place:
            room = granted(place, 120)
            with lock:
                holding.add(name)
                most = max(most, len(holding))
            told.set()
            at = picture(living.url)["at"]
            wait_for(lambda: picture(living.url)["at"] > at + 1, "another look", 60)
            with lock:
                holding.remove(name)
            return room

    with ThreadPoolExecutor(askers) as pool:
        rooms = [pool.submit(one, f"asker-{number}") for number in range(askers)]
        assert told.wait(60)
        if meanwhile:
            meanwhile()
        # Where the ledger did not answer, nodes is empty: Ray alone would decide.
        assert [room.result(180).nodes for room in rooms] == [(living.head,)] * askers
    assert at_once is None or most == at_once
    wait_for(lambda: living.holders() == [[], []] and not living.waiting(), "all is given back", 20)


def test_a_second_node_on_the_same_machine_has_shares_of_its_own(living: Living, tmp_path: Path):
    with second_node(living.cluster, tmp_path / "node.log", visible="6,GPU-7,8"):
        wait_for(lambda: len(picture(living.url)["nodes"]) == 2, "it is shown", 30)
        (second,) = {node["node_id"] for node in picture(living.url)["nodes"]} - {living.head}
        fields = {"node_id": second, "cards": ("2",), "holder": "there", "cpus": 0.1}
        with holder(living.folder(second), **fields):
            wait_for(lambda: living.holders(second) == [[], [], ["there"]], "its share is shown", 60)
            (share,) = living.node(second)["cards"][2]["shares"]
            assert 1 << 20 < share["used_bytes"] < GIB
            assert living.holders() == [[], []]
            # Ray names its cards 6, GPU-7 and 8; the ledger counts them from 0 on.
            on_it = NodeAffinitySchedulingStrategy(second, soft=False)
            asked = ray.remote(own_cards).options(num_cpus=0, num_gpus=3, scheduling_strategy=on_it)
            assert ray.get(asked.remote(), timeout=60) == ("0", "1", "2")
            with closing(Place([wants("pair", workers=4)], priority="training")) as place:
                room = granted(place)
                assert sorted(room.nodes) == sorted([living.head] * 2 + [second] * 2)
    wait_for(lambda: len(picture(living.url)["nodes"]) == 1, "it is gone", 60)
