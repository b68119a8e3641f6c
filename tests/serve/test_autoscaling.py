"""Replicas come and go with the load, for real, and no request fails: one app through HAProxy."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from cluster import applications
from serve_apps.plan import IMPORT_PATH
from serve_apps.status import why
from tests.conftest import TestCluster, wait_for

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

APP = "elastic"
# The window of the mean is then 2 s too. A drained replica stays reachable 3 s.
AUTOSCALING = {
    "min_replicas": 0,
    "max_replicas": 2,
    "target_ongoing_requests": 3,
    "upscale_delay_s": 1,
    "downscale_delay_s": 4,
}


@pytest.fixture(scope="module")
def app(inputs: TestCluster) -> Iterator[TestCluster]:
    """The cluster with one app that may have 0 to 2 replicas; it starts with one."""
    spec: dict[str, Any] = {
        "name": APP,
        "model": "docstrings-base",
        "auth": "none",
        "autoscaling": AUTOSCALING,
        "resources": {"cpus": 0.5},
    }
    application = {"name": APP, "route_prefix": f"/{APP}", "import_path": IMPORT_PATH, "args": spec}
    applications.deploy(inputs.dashboard_url, application, http_port=urlsplit(inputs.http_url).port)
    wait_for(lambda: details(inputs).get("status") in ("RUNNING", "DEPLOY_FAILED"), "the app settled", 240)
    assert details(inputs)["status"] == "RUNNING", why(details(inputs))
    yield inputs
    applications.delete(inputs.dashboard_url, APP)
    wait_for(lambda: not details(inputs), "the app deleted", 60)


def details(cluster: TestCluster) -> dict[str, Any]:
    return applications.applications(cluster.dashboard_url).get(APP, {})


def replicas(cluster: TestCluster) -> list[str]:
    """States of the app's replicas, as Serve knows them."""
    (deployment,) = details(cluster)["deployments"].values()
    return sorted(replica["state"] for replica in deployment["replicas"])


def completion(client: httpx.Client, max_tokens: int) -> None:
    """One streamed completion from its first token to its last."""
    body = {
        "model": APP,
        "prompt": "def",
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with client.stream("POST", f"/{APP}/v1/completions", json=body) as answer:
        text = answer.read().decode()
    assert answer.status_code == 200, text
    assert f'"completion_tokens":{max_tokens}' in text and text.endswith("data: [DONE]\n\n"), text


@contextmanager
def load(cluster: TestCluster, *, clients: int, max_tokens: int = 200) -> Iterator[list[str]]:
    """So many clients, each with one stream after the other; yields the list of what failed."""
    stop, failed = threading.Event(), list[str]()

    def ask() -> None:
        with httpx.Client(base_url=cluster.http_url, timeout=120, trust_env=False) as client:
            while not stop.is_set():
                try:
                    completion(client, max_tokens)
                except (httpx.HTTPError, AssertionError) as error:
                    failed.append(repr(error))

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield failed
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.slow
def test_a_burst_starts_a_second_replica_and_its_end_removes_it_without_a_failed_request(app: TestCluster):
    with load(app, clients=8) as failed:
        wait_for(lambda: replicas(app) == ["RUNNING", "RUNNING"], "a second replica", 120)
    assert failed == []
    # Two that go on, one stream at each replica: the one that is removed finishes its own.
    with load(app, clients=2) as failed:
        wait_for(lambda: "STOPPING" in replicas(app), "one replica being removed", 60)
        wait_for(lambda: replicas(app) == ["RUNNING"], "one replica left", 60)
    assert failed == []


def test_an_idle_app_gives_its_last_replica_back_and_the_next_request_starts_one(app: TestCluster):
    wait_for(lambda: replicas(app) == [], "no replica", 60)
    with httpx.Client(base_url=app.http_url, timeout=120, trust_env=False) as client:
        completion(client, 4)
    assert replicas(app) == ["RUNNING"]
