"""Adapters on a running vLLM: attached, replaced in the middle of a stream, refused, detached."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest

from tests.conftest import TestCluster, wait_for
from tests.serve.adapter_files import shapes_of, write_adapter

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

APP = "with-adapters"
BASE = "docstrings-base/v1"
PROMPT = "What does os.getcwd do?"
LONG = 900
"""Tokens: the demo's base takes 1024, and the stream must last longer than the change of versions."""
REPLACED_WITHIN_S = 3.0


@pytest.fixture(scope="module")
def files(inputs: TestCluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three adapters over the demo's base, loud enough that each answers as no other, and one too large."""
    folder = tmp_path_factory.mktemp("adapters")
    with inputs.store.model(BASE).fetch() as base:
        modules = shapes_of(base.path, "down_proj") | shapes_of(base.path, "q_proj")
    made = {
        name: write_adapter(folder / name, modules, seed=seed) for seed, name in enumerate(("v1", "v2", "v3"))
    }
    return made | {"large": write_adapter(folder / "large", modules, r=32)}


@pytest.fixture(scope="module")
def client(inputs: TestCluster, files: dict[str, Path]) -> Iterator[httpx.Client]:
    """An app that has one adapter from the start, as its spec says."""
    publish(inputs, "first", files["v3"])
    app = inputs.tandem().serve(
        {"name": APP, "model": BASE, "auth": "none", "adapters": {"first": "first"}, "autoscaling": {}}
    )
    app.wait(240)
    with httpx.Client(base_url=app.url, timeout=120, trust_env=False) as client:
        yield client
    app.stop()


def publish(cluster: TestCluster, name: str, folder: Path) -> str:
    return cluster.store.publish_model(folder, name, kind="adapter", base=BASE).ref


def body(model: str, max_tokens: int = 24, **fields: Any) -> dict[str, Any]:
    words = {"prompt": PROMPT, "temperature": 0, "ignore_eos": True, "max_tokens": max_tokens}
    return {"model": model, **words, **fields}


def answer(client: httpx.Client, model: str, max_tokens: int = 24) -> str:
    response = client.post("/v1/completions", json=body(model, max_tokens))
    assert response.status_code == 200, response.text
    assert response.json()["model"] == model
    return str(response.json()["choices"][0]["text"])


def streamed(client: httpx.Client, model: str, begun: Event) -> str:
    """The long answer, as it comes."""
    text = ""
    with client.stream("POST", "/v1/completions", json=body(model, LONG, stream=True)) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                begun.set()
    return text


def served(client: httpx.Client) -> dict[str, str]:
    """Adapters by name, with the version behind it."""
    cards = client.get("/v1/models").json()["data"]
    return {card["id"]: card["root"] for card in cards if card.get("parent")}


def adapters(command: list[str], *words: str) -> subprocess.CompletedProcess[str]:
    """``tandem adapters ...``."""
    return subprocess.run([*command, "adapters", *words], check=False, capture_output=True, text=True)


def test_an_adapter_of_the_spec_is_there_when_the_app_is_ready(client: httpx.Client):
    assert served(client) == {"first": "first/v1"}
    assert answer(client, "first") != answer(client, APP)


def test_added_while_running_replaced_in_the_middle_of_a_stream_and_removed(
    client: httpx.Client, inputs: TestCluster, files: dict[str, Path], tandem_command: list[str]
):
    assert client.post("/v1/completions", json=body("helper")).status_code == 404
    publish(inputs, "helper", files["v1"])
    added = adapters(tandem_command, "add", APP, "helper=helper", "--json")
    assert added.returncode == 0, added.stderr
    assert json.loads(added.stdout)["loaded"] == "1/1"
    old = answer(client, "helper")
    assert len({old, answer(client, APP), answer(client, "first")}) == 3

    long_answer = answer(client, "helper", LONG)
    begun = Event()
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(streamed, client, "helper", begun)
        assert begun.wait(60)
        publish(inputs, "helper", files["v2"])
        published_at = time.monotonic()
        new = wait_for(
            lambda: (text := answer(client, "helper")) != old and text, "the new version", REPLACED_WITHIN_S
        )
        print(f"published to answered: {time.monotonic() - published_at:.2f} s")
        assert not stream.done(), "the stream ended before the swap: it proves nothing"
        assert stream.result() == long_answer
    assert served(client) == {"first": "first/v1", "helper": "helper/v2"}
    assert answer(client, "helper") == new

    assert adapters(tandem_command, "rm", APP, "helper").returncode == 0
    assert client.post("/v1/completions", json=body("helper")).status_code == 404
    assert answer(client, "first") not in (old, new)


def test_a_rank_beyond_the_engines_is_refused_and_nothing_changes(
    client: httpx.Client, inputs: TestCluster, files: dict[str, Path], tandem_command: list[str]
):
    publish(inputs, "large", files["large"])
    refused = adapters(tandem_command, "add", APP, "large=large")
    assert refused.returncode == 2
    assert "rank is 32, but the engine keeps room for 16" in refused.stderr
    assert served(client) == {"first": "first/v1"}


def test_what_only_vllm_can_see_is_refused_by_the_replica_and_taken_back(
    client: httpx.Client, inputs: TestCluster, tmp_path: Path, tandem_command: list[str]
):
    publish(inputs, "odd", write_adapter(tmp_path / "odd", {"model.layers.0.no_such_module": [8, 8]}))
    refused = adapters(tandem_command, "add", APP, "odd=odd")
    assert refused.returncode == 2
    assert "a replica refuses it" in refused.stderr and "no_such_module" in refused.stderr
    rows = json.loads(adapters(tandem_command, "ls", APP, "--json").stdout)
    assert [(row["name"], row["version"], row["loaded"]) for row in rows] == [("first", "first/v1", "1/1")]
    assert served(client) == {"first": "first/v1"}
