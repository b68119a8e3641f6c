"""A cluster on paper: what happens when, what it looks like, and that nobody starves."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.placement import Request
from cluster.simulation import Simulated, simulate
from cluster.simulation_spec import SimulatedCluster, WorkloadSpec, load_cluster
from cluster.waiting import CLASSES, NOT_PASSED_AFTER_S, PROMOTED_AFTER_S
from runtime.core.config import load_spec
from runtime.core.errors import ConfigError
from runtime.simulate import described
from runtime.simulate_picture import cell, node_lines, over_time

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "simulate"


def nodes(count: int = 1, gpus: int = 4, **fields: object) -> dict[str, object]:
    group = {"name": "n", "count": count, "gpus": gpus, "accelerator_type": "A100", "gpu_memory": "80GiB"}
    return {"nodes": [{**group, "cpus": 64, "memory": "512GiB", **fields}]}


def run(cluster: dict[str, object], *requests: dict[str, object]) -> Simulated:
    spec = load_spec(SimulatedCluster, cluster)
    workload = load_spec(WorkloadSpec, {"requests": list(requests)})
    return simulate(spec.inventory(), workload, classes=spec.priorities)


def job(name: str, cards: int, duration_s: float | None = 100.0, **fields: object) -> dict[str, object]:
    return {"name": name, "num_workers": cards, "gpus_per_worker": 1, "duration_s": duration_s, **fields}


def test_requests_come_run_wait_and_end_when_they_should():
    result = run(
        nodes(), job("three", 3), job("two", 2, 50, at_s=10), job("app", 1, None, at_s=20, kind="serve"),
        job("five", 5, at_s=30),
    )  # fmt: skip
    assert [(o.request.name, o.status, o.started_s, o.ended_s, o.waited_s) for o in result.outcomes] == [
        ("three", "ended", 0, 100, 0),
        ("two", "ended", 100, 150, 90),
        ("app", "running", 20, None, 0),
        ("five", "refused", None, None, None),
    ]
    assert [(m.at_s, m.used, m.whole_free, m.waiting) for m in result.timeline] == [
        (0, 3, 1, 0), (10, 3, 1, 1), (20, 4, 0, 1), (30, 4, 0, 1), (100, 3, 1, 0), (150, 1, 3, 0),
    ]  # fmt: skip
    # 20 s with 3 cards, 80 with 4, 50 with 3, of 150 s with 4.
    assert result.utilization == pytest.approx((20 * 3 + 80 * 4 + 50 * 3) / 600)
    assert (result.end_s, result.fullest_s, result.at(99).used, result.at(100).used) == (150, 20, 4, 3)


def test_what_waits_to_the_end_says_so():
    result = run(nodes(), job("app", 3, None, kind="serve"), job("run", 2, at_s=5))
    waits = result.outcomes[1]
    assert (waits.status, waits.position, waits.waited_s) == ("waiting", 1, None)
    assert waits.reason.startswith("1 of 2 workers finds a whole A100 now")


def stream(**fields: object) -> dict[str, object]:
    """Six cards' worth of small work on four cards, for three hours."""
    return job("small", 1, 300, count=216, every_s=50, **fields)


@pytest.mark.parametrize(
    ("small", "big", "classes_to_climb"),
    [("training", "training", 0), ("training", "batch", 1), ("interactive", "batch", 3)],
)
def test_a_large_request_is_not_starved_by_a_stream_of_small_ones(small, big, classes_to_climb):
    result = run(nodes(), stream(priority=small), job("big", 4, at_s=120, priority=big))
    waited = next(outcome.waited_s for outcome in result.outcomes if outcome.arrival == "big")
    least = max(NOT_PASSED_AFTER_S, classes_to_climb * PROMOTED_AFTER_S)
    # Then the small ones that run have to end, which they do within 300 s.
    assert waited is not None and waited <= least + 300 + 50
    # Without the place kept it would wait for the stream's end, 10,800 s later, and longer.
    assert all(outcome.status == "ended" for outcome in result.outcomes)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 3), st.integers(0, 2000), st.integers(1, 700), st.sampled_from(CLASSES),
            st.sampled_from([0.25, 0.5, 1]), st.sampled_from(["train", "other"]),
        ),
        min_size=1, max_size=25,
    )
)  # fmt: skip
def test_whoever_fits_an_empty_cluster_starts_some_time(asked):
    requests = [
        job(f"r{n}", workers, duration, at_s=at, priority=priority, kind=kind, gpus_per_worker=part)
        for n, (workers, at, duration, priority, part, kind) in enumerate(asked)
    ]
    result = run(nodes(2, 2), *requests)
    assert {outcome.status for outcome in result.outcomes} == {"ended"}
    assert all(0 <= moment.used <= 4 for moment in result.timeline)
    assert result.timeline[-1].used == 0 and result.timeline[-1].whole_free == 4
    assert result == run(nodes(2, 2), *requests)


def test_an_app_that_never_ends_keeps_no_one_else_from_running():
    result = run(
        nodes(), job("app", 1, None, kind="serve"), job("big", 4, at_s=10), stream(at_s=20),
    )  # fmt: skip
    by_name = {outcome.request.name: outcome for outcome in result.outcomes}
    assert by_name["big"].status == "waiting"
    assert "does not fit beside what does not end by itself" in by_name["big"].reason
    assert all(outcome.status == "ended" for outcome in result.outcomes if outcome.arrival == "small")


def test_the_memory_of_a_card_comes_from_the_file_else_from_the_catalogue():
    def card_gib(**fields: object) -> float:
        spec = load_spec(SimulatedCluster, nodes(**fields))
        return (spec.inventory().nodes[0].cards[0].memory_bytes or 0) / 2**30

    assert card_gib(gpu_memory="40GiB") == 40
    assert 21 < card_gib(accelerator_type="L4", gpu_memory=None) <= 24
    # Several products answer to the word: as with living nodes, the largest counts.
    assert card_gib(accelerator_type="A100", gpu_memory=None) == 80
    with pytest.raises(ConfigError, match="'X9', which is not in the catalogue. Add gpu_memory"):
        card_gib(accelerator_type="X9", gpu_memory=None)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (
            job("x", 1, priority="urgent"),
            "priority of 'x' is 'urgent', which is none of the cluster's priorities",
        ),
        (job("x", 1, num_replicas=2), "num_replicas of 'x' is 2, and a training run has none"),
        (job("x", 1, gpus_per_worker=0, gpu_memory_per_worker="3GiB"), "but gpus_per_worker is 0"),
        (job("x", 1, duration=3), r"requests.0.duration: unknown field \(value 3\)"),
        (job("y-1", 1), "the name 'y-1' is there twice"),
    ],
)
def test_a_workload_that_makes_no_sense_is_refused(request_, said):
    with pytest.raises(ConfigError, match=said):
        run(nodes(), request_, job("y", 1, count=3))


def test_a_cell_shows_who_holds_what_of_a_card_in_quarters():
    assert cell({}) == "····"
    assert cell({"A": 0.5, "B": 0.25}) == "AAB·"
    assert cell({"A": 0.3333 * 3}) == "AAAA"
    assert cell({"A": 0.34, "B": 0.33, "C": 0.33}) == "AABC"
    assert cell({"A": 0.9, "B": 0.05}) == "AAAB"
    assert cell({"A": 0.05}) == "A···"
    assert len(cell(dict.fromkeys("ABCDEFGHIJ", 0.1))) == 4


def test_many_nodes_share_the_lines_of_those_that_look_alike():
    result = run(nodes(300, 2), job("a", 1, kind="serve", num_replicas=120), job("b", 2, count=3))
    lines = [line.plain for line in node_lines(result, 0)]
    assert lines == [
        "177 x n-123  ···· ····", "120 x n-000  AAAA ····", "3 x n-120    BBBB BBBB",
    ]  # fmt: skip


def test_the_use_over_time_is_the_mean_of_each_part():
    result = run(nodes(), job("a", 4, 300), job("b", 2, 300, at_s=300))
    bars = over_time(result).splitlines()[1]
    assert bars == "|" + "█" * 30 + "▄" * 30 + "|"


# The example and the command.


def example() -> Simulated:
    inventory, classes = load_cluster(EXAMPLE / "cluster.yaml")
    return simulate(inventory, load_spec(WorkloadSpec, EXAMPLE / "workload.yaml"), classes=classes)


def test_the_example_goes_as_its_header_says():
    result = example()
    outcomes = {outcome.request.name: outcome for outcome in result.outcomes}
    assert (result.fullest_s, result.at(result.fullest_s).used, result.inventory.cards) == (1500, 20, 24)
    assert outcomes["sft-full"].waited_s == 7500
    later = [outcome for outcome in result.outcomes if outcome.arrival == "sft-lora" and outcome.at_s > 1500]
    assert all(outcome.started_s >= outcomes["sft-full"].ended_s for outcome in later)
    assert outcomes["too-large"].reason.endswith("Raise gpus_per_worker to 0.6 or more.")
    assert len(set(outcomes["chat"].placement.node_ids)) == 2
    assert outcomes["small-chat"].placement.accelerator_type == "L4"
    assert outcomes["notebook-0"].placement.slots[0].card == 0


def tandem(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "runtime", "simulate", *words], cwd=ROOT, capture_output=True, text=True
    )


def test_the_command_draws_the_example():
    header = (EXAMPLE / "workload.yaml").read_text()
    command = "tandem simulate examples/simulate/cluster.yaml examples/simulate/workload.yaml"
    assert command in header
    done = tandem(*command.split()[2:])
    assert done.returncode == 0, done.stderr
    assert "a100-1  AAAA AAAA DDDD DDDD ···· ···· ···· ····" in done.stdout
    assert "l4-0    BBCC FFFF FFFF FFFF" in done.stdout
    assert "too-large refused: A worker needs 48 GiB of its card" in done.stdout
    later = tandem(*command.split()[2:], "--at", "9000")
    assert "At 9000 s: " in later.stdout and "EEEE" in later.stdout


def test_the_command_prints_json_and_one_line_for_a_wrong_file(tmp_path: Path):
    done = tandem(str(EXAMPLE / "cluster.yaml"), str(EXAMPLE / "workload.yaml"), "--json", "--at", "9000")
    assert json.loads(done.stdout) == json.loads(json.dumps(described(example(), 9000)))
    wrong = tmp_path / "cluster.yaml"
    wrong.write_text("nodes: [{name: a, cpus: 4, memory: 8GiB, gpus: 2}]\n")
    done = tandem(str(wrong), str(EXAMPLE / "workload.yaml"))
    assert done.returncode == 2
    assert "nodes.0: nodes of 'a' have 2 GPUs. Add accelerator_type: A100 or so." in done.stderr


def test_a_cluster_spec_is_simulated_with_its_groups_at_their_largest(tmp_path: Path):
    spec, workload = tmp_path / "cluster.yaml", tmp_path / "workload.yaml"
    spec.write_text(
        """
        name: lab
        store: {uri: gs://team/tandem}
        priorities: [batch, training, serving, interactive]
        node_groups:
          - {name: a100, accelerator_type: NVIDIA-A100-SXM4-80GB, gpus: 8, cpus: 90, memory: 900GiB, max: 2}
          - {name: l4, accelerator_type: NVIDIA-L4, gpus: 1, cpus: 7, memory: 28GiB, count: 3}
        """
    )
    workload.write_text(
        json.dumps(
            {
                "requests": [
                    job("big", 12, accelerator_type="A100"),
                    job("four", 4, accelerator_type="L4"),
                    job("second", 3, accelerator_type="L4"),
                    job("first", 3, accelerator_type="L4", priority="batch"),
                ]
            }
        )
    )
    done = tandem(str(spec), str(workload), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["nodes"], told["cards"]) == (5, 19)
    big, four, second, first = told["requests"]
    assert (big["status"], big["node_ids"]) == ("ended", ["a100-0", "a100-1"])
    assert four["status"] == "refused" and "3" in four["reason"]
    assert first["waited_s"] == 0 < second["waited_s"]


def test_a_thousand_requests_on_ten_thousand_cards_take_seconds():
    started = time.monotonic()
    result = run(
        nodes(1250, 8),
        job("whole", 8, 500, count=700, every_s=1),
        job("part", 1, 900, count=300, every_s=2, gpus_per_worker=0.25),
    )
    assert {outcome.status for outcome in result.outcomes} == {"ended"}
    # Measured 2 s.
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("node", "asked", "said"),
    [
        ({"cpus": float("inf")}, {}, "cpus"),
        ({"cpus": 1e300}, {}, "cpus"),
        ({"memory": "10EiB"}, {}, "memory"),
        ({"gpu_memory": "10EiB"}, {}, "gpu_memory"),
        ({}, {"cpus_per_worker": float("inf")}, "cpus_per_worker"),
        ({}, {"cpus_per_worker": 1e300}, "cpus_per_worker"),
        ({}, {"memory_per_worker": "10EiB"}, "memory_per_worker"),
        ({}, {"at_s": float("nan")}, "at_s"),
        ({}, {"duration_s": float("inf")}, "duration_s"),
    ],
)
def test_a_number_that_no_cluster_has_is_refused_by_its_field(
    node: dict[str, object], asked: dict[str, object], said: str
):
    with pytest.raises(ConfigError, match=said):
        run(nodes(**node), job("one", 1, **asked))


def test_the_largest_that_may_be_written_is_simulated():
    huge = nodes(cpus=1e6, memory="256TiB", gpu_memory="256TiB")
    asked = job("one", 4, cpus_per_worker=1000.0, memory_per_worker="64TiB", gpu_memory_per_worker="256TiB")
    assert run(huge, asked).outcomes[0].status == "ended"


@pytest.mark.parametrize(
    "change",
    [{"cpus_per_worker": float("inf")}, {"memory_bytes_per_worker": 10 << 60}, {"cpus_per_worker": -1}],
)
def test_a_request_for_what_no_node_has_is_refused_before_it_overflows(change: dict[str, Any]):
    with pytest.raises(ConfigError, match=next(iter(change))):
        Request("one", **change)
