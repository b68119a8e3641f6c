"""What Tandem costs around vLLM's server: streaming completions against vLLM's own API server, as ratios.

    python benchmarks/serve.py [--only speed|bare|replicas|prefix|idle|adapter] [--pairs 3]
                               [--requests 24] [--json FILE]

Every server runs the same engine arguments, variables and model (4 million parameters, so that what lies
around the engine is what one sees), all are up at once, and each round asks one after the other, to and fro;
a ratio is between two runs of one round. Two cores for everything: CPU milliseconds per request and process
say more than requests a second where others use the machine too. All of it takes 20 to 25 minutes, the two
clusters of bare ray.serve.llm half of that.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

# This file is named as a module of others: the checkout must come before its own folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import serve_targets as targets
from benchmarks.serve_adapter import adapter_app
from benchmarks.serve_report import Row, show_parts, show_rows
from cluster import local
from runtime.demo import add_demo_inputs
from storage.store import Store, open_store

_CONCURRENCY = (1, 8, 32)
_PROMPT_TOKENS, _OUTPUT_TOKENS = 32, 32
_PREFIX_TOKENS = 896
_PREFIXES = 40
"""Different beginnings, each of so many requests: what a replica has not seen yet it must compute."""
_OF_A_PREFIX = 4
_IDLE = 1000
_WAIT_S = 2.0


class Bench:
    """The servers that are up, and the rounds between them."""

    def __init__(self, given: argparse.Namespace, console: Console, scratch: Path, stack: ExitStack) -> None:
        self.pairs: int = given.pairs
        self.requests: int = given.requests
        self.console = console
        self.scratch = scratch
        self.stack = stack
        self.cluster: local.LocalCluster = stack.enter_context(targets.tandem_cluster(scratch))
        self.store: Store = open_store()
        add_demo_inputs(self.store)
        self.plan = targets.plan_of(self.store)
        raw = targets.raw_vllm(self.plan, self.store, scratch / "raw.log")
        self.raw = stack.enter_context(raw)
        self.app = targets.tandem_app(self.store, self.cluster, "bench")

    def rounds(self, asked: list[targets.Target], title: str, **load: Any) -> list[Row]:
        """Every target once a round, the first of them being what the others are compared with."""
        taken: dict[str, list[dict[str, Any]]] = {target.name: [] for target in asked}
        # The first round warms up: connections, byte code, the engine's own caches.
        for number in range(self.pairs + 1):
            for target in asked[:: -1 if number % 2 else 1]:
                figures = self.load(target, seed=number, **load)
                if number:
                    taken[target.name].append(figures)
        return [Row(title, name, runs, taken[asked[0].name]) for name, runs in taken.items()]

    def load(
        self,
        target: targets.Target,
        *,
        seed: int,
        concurrency: int,
        prefix_tokens: int = 0,
        prompt_tokens: int = _PROMPT_TOKENS,
        output_tokens: int = _OUTPUT_TOKENS,
        **client: Any,
    ) -> dict[str, Any]:
        """Figures of one run."""
        count = self.requests * max(2, concurrency)
        if prefix_tokens:
            count = _PREFIXES * _OF_A_PREFIX
        dice = random.Random(f"{concurrency}-{seed}")
        made = _bodies(target.model, count, dice, prefix_tokens, prompt_tokens, output_tokens)
        job = {"url": f"{target.url}/completions", "bodies": made, "concurrency": concurrency, **client}
        figures = targets.measured(target, lambda: targets.run_client(job, self.scratch))
        return figures | {"tokens_per_s": figures["requests_per_s"] * output_tokens}


def _bodies(
    model: str, count: int, dice: random.Random, prefix_tokens: int, prompt_tokens: int, output_tokens: int
) -> list[str]:
    """Requests as token ids: the length is exact, and only a shared prefix is ever found in the cache."""

    def tokens(number: int) -> list[int]:
        return [dice.randrange(10, 300) for _ in range(number)]

    prefixes = [tokens(prefix_tokens) for _ in range(_PREFIXES)]
    fixed = {
        "model": model,
        "max_tokens": output_tokens,
        "ignore_eos": True,
        "stream": True,
        "temperature": 0,
    }
    prompts = (prefixes[n % _PREFIXES] + tokens(prompt_tokens) for n in range(count))
    return [json.dumps(fixed | {"prompt": prompt}) for prompt in prompts]


def _speed(bench: Bench) -> list[Row]:
    asked = [bench.raw, bench.app, targets.through_front(bench.app, bench.cluster)]
    return [
        row
        for concurrency in _CONCURRENCY
        for row in bench.rounds(asked, f"concurrency {concurrency}", concurrency=concurrency)
    ]


def _bare(bench: Bench) -> list[Row]:
    rows = []
    for direct in (False, True):
        # One cluster of it at a time: idle Ray processes still cost.
        with targets.bare_serve_llm(bench.plan, bench.store, bench.scratch, direct=direct) as bare:
            for concurrency in _CONCURRENCY:
                title = f"concurrency {concurrency}"
                rows += bench.rounds([bench.raw, bench.app, bare], title, concurrency=concurrency)
    return rows


def _replicas(bench: Bench) -> list[Row]:
    with _two(bench) as two:
        return bench.rounds([bench.app, two], "two replicas, concurrency 32", concurrency=32)


def _prefix(bench: Bench) -> list[Row]:
    shared = {"prefix_tokens": _PREFIX_TOKENS, "prompt_tokens": 16, "output_tokens": 4, "concurrency": 8}
    title = f"{_PREFIXES} beginnings of {_PREFIX_TOKENS} tokens, {_OF_A_PREFIX} requests each"
    with _two(bench) as two, _two(bench, name="bench-prefix", routing="prefix") as by_prefix:
        return bench.rounds([two, by_prefix], title, **shared)


@contextmanager
def _two(
    bench: Bench, *, name: str = "bench-two", routing: str = "least_requests"
) -> Iterator[targets.Target]:
    two = {"min_replicas": 2, "max_replicas": 2}
    engine = targets.ENGINE | {"max_model_len": 1024}
    fields = {"autoscaling": two, "routing": routing, "engine": engine}
    target = targets.tandem_app(bench.store, bench.cluster, name, **fields)
    try:
        yield targets.renamed(target, f"Tandem, two replicas, {routing}")
    finally:
        targets.stop(bench.store, target)


def _adapter(bench: Bench) -> list[Row]:
    """Prints seconds from "adapter version published" to the first token that it generated."""
    with adapter_app(bench.store, bench.cluster, bench.scratch) as publish_and_ask:
        taken_s = [publish_and_ask() for _ in range(bench.pairs)]
    bench.console.print(
        f"  from publishing a version to its first token: {', '.join(f'{s:.2f}' for s in taken_s)} s"
    )
    return []


def _idle(bench: Bench) -> list[Row]:
    rows = []
    for target in (bench.raw, bench.app):
        before = targets.memory_mb(target)
        quiet = [bench.load(target, seed=n, concurrency=1) for n in range(bench.pairs)]
        crowded = [
            bench.load(target, seed=n, concurrency=1, idle_connections=_IDLE, hold_s=_WAIT_S)
            for n in range(bench.pairs)
        ]
        grown = targets.memory_mb(target) - before
        closed = sum(run["idle_closed"] for run in crowded)
        bench.console.print(
            f"  {target.name}: {grown:+.0f} MB after {_IDLE} connections, {closed} of them cut"
        )
        rows += [
            Row(target.name, "no other connection", quiet, quiet),
            Row(target.name, f"{_IDLE} idle connections", crowded, quiet),
        ]
    return rows


_PARTS = {
    "speed": _speed,
    "replicas": _replicas,
    "prefix": _prefix,
    "idle": _idle,
    "adapter": _adapter,
    "bare": _bare,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=_PARTS, help="one part")
    parser.add_argument("--pairs", type=int, default=3, help="counted rounds")
    parser.add_argument("--requests", type=int, default=24, help="of each connection in a run")
    parser.add_argument("--json", type=Path, help="write every figure there")
    given = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    load_at_start = os.getloadavg()[0]
    rows: list[Row] = []
    # Short: HAProxy takes no socket path over 97 bytes, of which Ray's part is 70.
    scratch = Path(tempfile.mkdtemp(prefix="tb"))
    try:
        with ExitStack() as stack:
            bench = Bench(given, console, scratch, stack)
            for name in [given.only] if given.only else _PARTS:
                console.print(f"{name} ...", style="dim")
                found = _PARTS[name](bench)
                show_rows(console, name, found)
                show_parts(console, found)
                rows += found
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    loads = {"load_at_start": load_at_start, "load_at_end": os.getloadavg()[0]}
    console.print(
        f"load average {loads['load_at_start']:.1f} at the start, {loads['load_at_end']:.1f} at the end"
    )
    if given.json:
        given.json.write_text(json.dumps(loads | {"rows": [row.to_data() for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
