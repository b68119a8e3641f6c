"""A head and two machines that join it: training and serving over both, through the loss of one of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster import applications, jobs
from runtime.core.errors import ClusterError
from runtime.demo import add_demo_inputs
from runtime.sdk import Tandem
from storage.keys import keys_in
from storage.store import Store, open_store
from tests.conftest import wait_for
from tests.plain_cluster.machines import Machine
from tests.plain_cluster.network import NotPermitted, network
from tests.train.living import began, ended, lesson, saved, steps

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

# A node of 2 CPUs has room for one replica and one worker, never for two replicas.
APP: dict[str, Any] = {
    "name": "spread",
    "model": "docstrings-base",
    "autoscaling": {"min_replicas": 2, "max_replicas": 2},
    "resources": {"cpus": 1.2},
    "engine": {"max_num_seqs": 8, "max_model_len": 256},
}
SCALING = {
    "num_workers": [1, 2],
    "gpus_per_worker": 0,
    "cpus_per_worker": 0.8,
    "placement_strategy": "STRICT_SPREAD",
    "elastic_resize_monitor_interval_s": 3,
}
LONG = {"max_steps": 2000, "save_steps": 10}


@dataclass(frozen=True)
class Plain:
    """The cluster: its machines, its dashboard, its token, its store."""

    head: Machine
    joined: list[Machine]
    dashboard_url: str
    address: str
    token_file: Path
    store: Store

    def join(self, machine: Machine, *words: str) -> dict[str, Any]:
        given = ["--token-file", str(self.token_file), "--num-cpus", "2", "--num-gpus", "0", *words]
        return machine.up("--join", self.address, *given)


@pytest.fixture(scope="module")
def plain(home: Path) -> Iterator[Plain]:
    """A head without CPUs, and two machines with two CPUs each."""
    with tempfile.TemporaryDirectory(prefix="plain-") as folder, pytest.MonkeyPatch.context() as patch:
        try:
            with network(3) as places:
                yield from _cluster([Machine.at(place, Path(folder)) for place in places], patch)
        except NotPermitted as error:
            pytest.skip(f"network namespaces are not permitted here: {error}")


def _cluster(machines: list[Machine], patch: pytest.MonkeyPatch) -> Iterator[Plain]:
    head, *joined = machines
    store = open_store(str(head.home.parent / "store"))
    patch.setenv("NO_PROXY", ",".join(machine.place.ip for machine in machines))
    try:
        options = ["--node-ip-address", head.place.ip, "--num-cpus", "0", "--num-gpus", "0"]
        told = head.up("--head", *options, "--store", store.uri)
        plain = Plain(head, joined, told["dashboard_url"], told["address"], Path(told["token_file"]), store)
        with ThreadPoolExecutor() as pool:
            list(pool.map(plain.join, joined))
        yield plain
    finally:
        for machine in reversed(machines):
            machine.tandem("down", check=False)
    assert (store.root / "clusters").find() == [], "the head's mark goes with it"


@pytest.fixture
def tandem(plain: Plain, monkeypatch: pytest.MonkeyPatch) -> Tandem:
    """The SDK, with the token as Ray's own tools take it."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(plain.token_file))
    return Tandem(plain.dashboard_url, store=plain.store.uri)


def replicas(dashboard_url: str) -> dict[str, str]:
    """Address of the node of each replica that runs, by the replica's id."""
    details = applications.applications(dashboard_url)[APP["name"]]["deployments"].values()
    running = [r for one in details for r in one["replicas"] if r["state"] == "RUNNING"]
    return {replica["replica_id"]: replica["node_ip"] for replica in running}


def ask(ip: str, key: str) -> httpx.Response:
    body = {"model": APP["name"], "prompt": "def", "max_tokens": 4, "ignore_eos": True}
    return httpx.post(
        f"http://{ip}:8000/v1/completions",
        json=body,
        headers={"Authorization": f"Bearer {key}"},
        timeout=60,
        trust_env=False,
    )


def test_a_request_without_the_token_is_refused_and_told_how_to_give_it(
    plain: Plain, monkeypatch: pytest.MonkeyPatch
):
    assert httpx.get(f"{plain.dashboard_url}/api/version", trust_env=False).status_code == 401
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ClusterError, match=r"asks for a token \(401\).*RAY_AUTH_TOKEN_PATH=FILE"):
        Tandem(plain.dashboard_url)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "guessed")
    with pytest.raises(ClusterError, match=r"does not take this token \(403\)"):
        Tandem(plain.dashboard_url)
    assert plain.token_file.stat().st_mode & 0o777 == 0o600


def test_a_machine_with_another_store_is_refused_and_one_that_is_a_node_already_is_found(plain: Plain):
    machine = plain.joined[0]
    before = (machine.home / "node.json").read_text()
    assert plain.join(machine)["node_ip"] == machine.place.ip
    assert (machine.home / "node.json").read_text() == before
    third = Machine(machine.place, machine.home.parent / "third", machine.code)
    words = ["up", "--join", plain.address, "--token-file", str(plain.token_file), "--store", "/elsewhere"]
    beside = third.tandem(*words, check=False)
    assert "--metrics-port is 8080, which cannot be listened on" in beside.stderr
    refused = third.tandem(*words, "--metrics-port", "8081", check=False)
    assert refused.returncode == 2, refused.stderr
    assert f"is /elsewhere, but the cluster's store is {plain.store.uri}" in refused.stderr


@pytest.mark.slow
def test_training_and_serving_over_two_machines_survive_the_loss_of_one(plain: Plain, tandem: Tandem):
    add_demo_inputs(plain.store)
    staying, lost = plain.joined
    key = keys_in(plain.store.root, None).create("test").text
    app = tandem.serve(APP)
    run = tandem.train(lesson("spread", LONG, scaling=SCALING, deepspeed=None))
    app.wait(400)
    both = {machine.place.ip for machine in plain.joined}
    wait_for(lambda: set(replicas(plain.dashboard_url).values()) == both, "a replica on each machine", 200)
    for machine in (plain.head, staying, lost):
        wait_for(lambda ip=machine.place.ip: _answers(ip, key), f"{machine.place.ip} answers", 60)
    assert ask(staying.place.ip, "no-key").status_code == 401
    assert began(run, 1, 400)["num_workers"] == 2
    saved(run, 10)

    lost.lose()
    alone = began(run, 2, 400)
    assert alone["num_workers"] == 1
    assert alone["from_step"] >= 10
    wait_for(lambda: set(replicas(plain.dashboard_url).values()) == {staying.place.ip}, "one replica", 120)
    wait_for(lambda: _answers(staying.place.ip, key), "the other machine answers", 60)
    assert next(jobs.tail(plain.dashboard_url, run.submission_id)), "its log is followed with the token"
    assert run.stop()
    assert ended(run) == "STOPPED"
    done = steps(run)
    assert done == list(range(1, len(done) + 1))

    plain.join(lost)
    wait_for(lambda: set(replicas(plain.dashboard_url).values()) == both, "the second replica again", 240)
    wait_for(lambda: _answers(lost.place.ip, key), "the machine that joined again answers", 60)
    left = lost.tandem("down").stdout
    assert left == f"This machine has left the cluster at {plain.address}.\n"
    assert tandem.resources()["CPU"] == 2
    app.stop()


def _answers(ip: str, key: str) -> bool:
    try:
        return ask(ip, key).status_code == 200
    except httpx.TransportError:
        return False  # its HAProxy comes with its replica
