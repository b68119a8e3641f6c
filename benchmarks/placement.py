"""How long it takes to place requests on a large cluster: 10,000 GPUs on 2,000 nodes, 5,000 mixed requests.

    python benchmarks/placement.py [--requests 5000] [--rounds 3] [--json FILE]

Requests come one after the other; each that fits is written into the books, so that the cluster fills; now
and then, as the dice say, one leaves, so that it frays. What finds no room costs its reason, too. Every round
asks the same and gets the same: the least time of each request counts, others on the machine being what
differs. The aim is 1 s per 100 requests; on one of two cores it is a twentieth of that.
"""

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

# This file is run as a script: the checkout must come before its own folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster.inventory import Card, Inventory, Node
from cluster.placement import Free, NoRoom, Placement, Request, place

_GIB = 1 << 30
_GROUPS = (("A100", 1000, 8, 80), ("L4", 500, 2, 24), ("T4", 250, 4, 16), ("cpu", 250, 0, 0))
"""Product, nodes, GPUs of each, GiB of each GPU."""


def big_cluster() -> Inventory:
    """2,000 nodes, 10,000 cards, three products."""
    return Inventory.of(
        Node(
            f"{product}-{number:04}",
            cpus=12.0 * max(4, gpus),
            memory_bytes=900 * _GIB,
            cards=tuple(Card(index, size * _GIB, product) for index in range(gpus)),
            accelerator_type=product if gpus else None,
        )
        for product, count, gpus, size in _GROUPS
        for number in range(count)
    )


def mixed_requests(count: int, dice: random.Random) -> list[Request]:
    """Fractions, single cards, tensor-parallel replicas, runs of one node and of many, CPU work."""

    def one(number: int) -> Request:
        name = f"r{number}"
        match dice.choices(range(6), (30, 20, 20, 15, 5, 10))[0]:
            case 0:
                fraction = dice.choice((0.1, 0.25, 0.3333, 0.5))
                return Request(
                    name, "serve", groups=dice.randint(1, 4), gpus_per_worker=fraction, cpus_per_worker=1,
                    card_bytes_per_worker=dice.choice((0, 2, 4)) * _GIB,
                )  # fmt: skip
            case 1:
                return Request(name, gpus_per_worker=1, cpus_per_worker=2)
            case 2:
                return Request(
                    name, "serve", groups=dice.randint(1, 3), workers_per_group=dice.choice((2, 4)),
                    gpus_per_worker=1, cpus_per_worker=1, card_bytes_per_worker=dice.choice((10, 40)) * _GIB,
                )  # fmt: skip
            case 3:
                workers = dice.choice((2, 4, 8))
                return Request(name, "train", workers_per_group=workers, gpus_per_worker=1, cpus_per_worker=4)
            case 4:
                return Request(
                    name, "train", workers_per_group=dice.choice((16, 32, 64)), gpus_per_worker=1,
                    cpus_per_worker=4, accelerator_type="A100",
                )  # fmt: skip
            case _:
                return Request(name, workers_per_group=2, cpus_per_worker=4, memory_bytes_per_worker=8 * _GIB)

    return [one(number) for number in range(count)]


def measure(count: int, rounds: int = 1, seed: int = 7) -> dict[str, Any]:
    """Milliseconds per request, the books included, and how full the cluster became."""
    inventory = big_cluster()
    started = time.perf_counter()
    free = Free.of(inventory)
    books_ms = (time.perf_counter() - started) * 1000
    runs = [_filled(free, count, random.Random(seed)) for _ in range(rounds)]
    taken_ms = [min(times) for times in zip(*(times for times, _ in runs), strict=True)]
    return {
        "cards": inventory.cards,
        "nodes": len(inventory.nodes),
        "requests": count,
        "books_ms": books_ms,
        "median_ms": statistics.median(taken_ms),
        "p99_ms": statistics.quantiles(taken_ms, n=100)[98],
        "worst_ms": max(taken_ms),
        "total_s": sum(taken_ms) / 1000,
        "s_per_100": sum(taken_ms) / 10 / count,
        **runs[0][1],
    }


def _filled(free: Free, count: int, dice: random.Random) -> tuple[list[float], dict[str, float]]:
    """Milliseconds of each request, and what came of all."""
    taken_ms, held, no_room = [], [], 0
    for request in mixed_requests(count, dice):
        started = time.perf_counter()
        found = place(free, request)
        if isinstance(found, Placement):
            free = free.taken(found)
        taken_ms.append((time.perf_counter() - started) * 1000)
        if isinstance(found, NoRoom):
            no_room += 1
            continue
        held.append(found)
        if dice.random() < 1 / 3:
            free = free.given_back(held.pop(dice.randrange(len(held))))
    used = sum(slot.fraction for placement in held for slot in placement.slots)
    return taken_ms, {"no_room": no_room, "used_cards": used}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write the figures there, too.")
    given = parser.parse_args()
    figures = measure(given.requests, given.rounds)
    print(
        f"{figures['requests']} requests on {figures['cards']} cards of {figures['nodes']} nodes: "
        f"{figures['total_s']:.2f} s, {figures['s_per_100']:.3f} s per 100\n"
        f"a request: median {figures['median_ms']:.2f} ms, 99% within {figures['p99_ms']:.2f} ms, worst "
        f"{figures['worst_ms']:.2f} ms; the books {figures['books_ms']:.1f} ms once\n"
        f"{figures['used_cards']:.0f} cards used at the end, {figures['no_room']} found no room"
    )
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
