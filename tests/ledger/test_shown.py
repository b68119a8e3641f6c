"""What is planned and refused from afar: by cards as the ledger has read them, through the dashboard.

The server stands for Ray's dashboard, and answers as it does; the ledger's rules behind it are the real ones.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cluster.ledger.core import Core
from cluster.ledger.shown import at_its_largest, refuse_without_room
from cluster.nodes import inventory_of
from cluster.nvml import CardReading
from cluster.placement import Request
from cluster.priority import CLASSES
from cluster.shares.reading import Held, NodeReading
from runtime.core.errors import ClusterError
from tests.ledger.holdings import GIB, holding

A100 = [
    {
        "node_id": "node-0",
        "node_ip": "192.0.2.1",
        "state": "ALIVE",
        "is_head_node": True,
        "resources_total": {"CPU": 8.0, "GPU": 2.0, "memory": 9e11, "accelerator_type:A100": 1.0},
    }
]
Serve = Callable[[dict[str, Any] | None], str]


@pytest.fixture
def dashboard() -> Iterator[Serve]:
    """Serve a dashboard whose cluster has two A100, with the ledger's file or without one; return its URL."""
    with ExitStack() as stack:

        def serve(ledgers_file: dict[str, Any] | None) -> str:
            class Dashboard(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    nodes = {"data": {"result": {"result": A100}}}
                    body = nodes if self.path.startswith("/api/v0/nodes") else ledgers_file
                    self.send_response(404 if body is None else 200)
                    self.end_headers()
                    self.wfile.write(json.dumps(body).encode())

                def log_message(self, *_: object) -> None:
                    """Print nothing."""

            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Dashboard))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_address[1]}"

        yield serve


def told(*cards: CardReading, groups: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """The file of a ledger that has looked at that cluster and read these cards."""
    core = Core(groups)
    core.look(inventory_of(A100), {}, [NodeReading("node-0", cards, ())], 0.0)
    return core.picture(0.0) | {"at": time.time()}


def two(product: str, gib: int) -> list[CardReading]:
    return [CardReading(f"GPU-{number}", product, gib * GIB, 0, {}) for number in range(2)]


def large(gib: int) -> Request:
    return Request("app", "serve", gpus_per_worker=1, card_bytes_per_worker=gib * GIB)


def card_bytes(url: str) -> list[int | None]:
    return [card.memory_bytes for node in at_its_largest(url).nodes for card in node.cards]


def test_what_only_the_largest_product_of_rays_word_could_hold_is_not_refused_before_nvml_was_read(
    dashboard: Serve,
):
    for url in (dashboard(None), dashboard(told())):
        assert card_bytes(url) == [80 * GIB] * 2
        refuse_without_room(url, large(70), priority="serving")


def test_what_nvml_has_read_has_the_last_word(dashboard: Serve):
    small = dashboard(told(*two("NVIDIA A100-SXM4-40GB", 40)))
    assert card_bytes(small) == [40 * GIB] * 2
    refuse_without_room(small, large(39), priority="serving")
    with pytest.raises(ClusterError, match=r"A worker needs 70 GiB of its card, .* \(40 GiB\)"):
        refuse_without_room(small, large(70), priority="serving")
    large_cards = dashboard(told(*two("NVIDIA A100-SXM4-80GB", 80)))
    assert card_bytes(large_cards) == [80 * GIB] * 2
    refuse_without_room(large_cards, large(70), priority="serving")


def test_nodes_to_come_are_as_the_cluster_file_says_beside_living_ones_as_they_were_read(dashboard: Serve):
    group = {
        "name": "big", "count": 2, "cpus": 8.0, "memory_bytes": 64 * GIB, "cards": 2, "card_bytes": 80 * GIB,
        "product": "NVIDIA A100-SXM4-80GB", "accelerator_type": "A100",
    }  # fmt: skip
    url = dashboard(told(*two("NVIDIA A100-SXM4-80GB", 79), groups=[group]))
    assert card_bytes(url) == [80 * GIB, 80 * GIB, 79 * GIB, 79 * GIB]


def kept_for_a_run(classes: tuple[str, ...] = CLASSES) -> dict[str, Any]:
    """The file of a ledger that keeps both cards for a run that has waited for 11 minutes; one of them is
    free."""
    core, nodes = Core(classes=classes), inventory_of(A100)
    busy = Held(holding("busy", node_id="node-0", fraction=1.0), None)
    run = Request("run-big", "train", workers_per_group=2, gpus_per_worker=1)
    for now_s in range(0, 660, 20):
        core.look(nodes, {}, [NodeReading("node-0", (), (busy,))], now_s)
        core.ask([run], priority="training", since_s=0, now_s=now_s, wait=True)
    return core.picture(660) | {"at": time.time()}


def test_room_that_is_kept_for_one_who_waits_is_none_for_those_behind_it(dashboard: Serve):
    url = dashboard(kept_for_a_run())
    with pytest.raises(
        ClusterError, match=r"There is room, kept for 'run-big', .* Without --no-wait it waits"
    ):
        refuse_without_room(url, large(1), priority="training")
    # A run that waits for 10 minutes counts as one class higher, and is older.
    with pytest.raises(ClusterError, match="kept for 'run-big'"):
        refuse_without_room(url, large(1), priority="serving")
    # What goes before it in the queue may have the card, and it itself may.
    refuse_without_room(url, large(1), priority="interactive")
    refuse_without_room(url, Request("run-big", "train", gpus_per_worker=1), priority="training")


def test_whether_one_is_behind_goes_by_the_clusters_own_order_of_the_classes(dashboard: Serve):
    url = dashboard(kept_for_a_run(("training", "serving", "batch", "interactive")))
    with pytest.raises(ClusterError, match="kept for 'run-big'"):
        refuse_without_room(url, large(1), priority="interactive")


def test_where_nothing_is_kept_what_is_missing_is_said(dashboard: Serve):
    url = dashboard(kept_for_a_run())
    two_cards = Request("app", "serve", groups=2, gpus_per_worker=1)
    with pytest.raises(ClusterError, match="1 of 2 replicas finds a whole A100 now"):
        refuse_without_room(url, two_cards, priority="serving")
