"""An app goes on answering: its engine hangs, its arguments change while requests run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import psutil
import pytest

from cluster import applications
from runtime.app import App
from tests.conftest import TestCluster, wait_for

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

NAME = "steady"
SPEC: dict[str, Any] = {
    "name": NAME,
    "model": "docstrings-base",
    "auth": "none",
    "engine": {"max_num_seqs": 8},
    "autoscaling": {"max_replicas": 1},
    "health_check_timeout_s": 5,
}


@pytest.fixture(scope="module")
def app(inputs: TestCluster) -> Iterator[App]:
    app = inputs.tandem().serve(SPEC).wait(240)
    yield app
    app.stop()


def replica(app: App) -> dict[str, Any] | None:
    """The replica that runs, as Serve knows it."""
    details = applications.applications(app.dashboard_url)[NAME]["deployments"].values()
    running = [r for d in details for r in d["replicas"] if r["state"] == "RUNNING"]
    return running[0] if running else None


def another_runs(app: App, before: dict[str, Any]) -> bool:
    now = replica(app)
    return now is not None and now["replica_id"] != before["replica_id"]


def ask(url: str, max_tokens: int = 4) -> httpx.Response:
    body = {"model": NAME, "prompt": "def", "max_tokens": max_tokens, "ignore_eos": True}
    return httpx.post(f"{url}/completions", json=body, timeout=150, trust_env=False)


@contextmanager
def asking(url: str, clients: int) -> Iterator[tuple[list[int], list[str]]]:
    """So many clients, each with one request after the other; yields the answers' sizes and what failed."""
    stop, answered, failed = threading.Event(), list[int](), list[str]()

    def work() -> None:
        while not stop.is_set():
            try:
                reply = ask(url, 100)
                if reply.is_success:
                    answered.append(reply.json()["usage"]["completion_tokens"])
                else:
                    failed.append(f"{reply.status_code} {reply.headers} {reply.text}")
            except httpx.HTTPError as error:
                failed.append(repr(error))

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield answered, failed
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_new_engine_arguments_under_load_fail_no_request(inputs: TestCluster, app: App):
    before = replica(app)
    assert before
    with asking(app.endpoint, clients=3) as (answered, failed):
        wait_for(lambda: answered, "the first answer", 60)
        inputs.tandem().serve({**SPEC, "engine": {"max_num_seqs": 16}})
        wait_for(lambda: another_runs(app, before), "a replica with the new arguments", 180)
        so_far = len(answered)
        wait_for(lambda: len(answered) > so_far + 3, "answers of the new one", 60)
    assert failed == [] and set(answered) == {100}


def test_an_engine_that_hangs_is_found_killed_and_replaced(app: App):
    before = replica(app)
    assert before
    children = psutil.Process(before["pid"]).children(recursive=True)
    (engine,) = [child for child in children if "EngineCore" in " ".join(child.cmdline())]
    os.kill(engine.pid, signal.SIGSTOP)
    wait_for(lambda: not engine.is_running(), "the stopped engine killed", 60)
    wait_for(lambda: another_runs(app, before), "another replica", 180)
    wait_for(lambda: ask(app.endpoint).status_code == 200, "the app answers", 60)


def test_an_app_that_is_ended_finishes_its_streams(app: App):
    body = {"model": NAME, "prompt": "def", "max_tokens": 900, "ignore_eos": True, "stream": True}
    with (
        httpx.stream("POST", f"{app.endpoint}/completions", json=body, timeout=150, trust_env=False) as reply,
        ThreadPoolExecutor(1) as pool,
    ):
        lines = reply.iter_lines()
        assert next(lines).startswith("data: {")
        stopping = pool.submit(app.stop)
        rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]" and '"finish_reason":"length"' in rest[-2]
        stopping.result()
    assert app.status == "NOT_STARTED"
