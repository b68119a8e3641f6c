"""vLLM on Ray Serve, for real: deployed with plain Ray tools, asked over HTTP, killed, replaced, deleted."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import yaml

from cluster import applications, local
from cluster.environments import interpreter, process_env
from cluster.estimator.kv_cache import kv_cache
from serve_apps.arguments import CATALOGUE
from serve_apps.plan import IMPORT_PATH
from serve_apps.status import why
from tests.conftest import TestCluster, wait_for

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
BASE = "docstrings-base"
SETTLED = ("RUNNING", "DEPLOY_FAILED", "UNHEALTHY")


def details(cluster: TestCluster, name: str) -> dict[str, Any]:
    return applications.applications(cluster.dashboard_url).get(name, {})


def settled(cluster: TestCluster, name: str) -> dict[str, Any]:
    wait_for(lambda: details(cluster, name).get("status") in SETTLED, f"{name} settled", 240)
    return details(cluster, name)


def replica_pid(cluster: TestCluster, name: str) -> int | None:
    """The running replica's process, as Serve knows it."""
    deployments = details(cluster, name).get("deployments", {}).values()
    running = [r["pid"] for d in deployments for r in d["replicas"] if r["state"] == "RUNNING"]
    return running[0] if running else None


def family(pid: int) -> list[psutil.Process]:
    """A replica's process and everything below it: watchdog, EngineCore, workers."""
    replica = psutil.Process(pid)
    return [replica, *replica.children(recursive=True)]


def delete(cluster: TestCluster, name: str) -> None:
    applications.delete(cluster.dashboard_url, name)
    wait_for(lambda: not details(cluster, name), f"{name} deleted", 60)


def deploy(cluster: TestCluster, **spec: Any) -> dict[str, Any]:
    """Serve's details of an app once it settled; sent as plain Ray would, with nothing checked before."""
    spec = {"auth": "none", **spec}
    application = {
        "name": spec["name"],
        "route_prefix": f"/{spec['name']}",
        "import_path": IMPORT_PATH,
        "args": spec,
    }
    applications.deploy(cluster.dashboard_url, application, http_port=urlsplit(cluster.http_url).port)
    return settled(cluster, spec["name"])


@pytest.fixture(scope="module")
def app_url(inputs: TestCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the app of examples/serve/plain.yaml answers: the file as it is, less the port and the model."""
    config = yaml.safe_load((ROOT / "examples/serve/plain.yaml").read_text())
    config["http_options"]["port"] = urlsplit(inputs.http_url).port
    config["applications"][1]["args"]["model"] = BASE
    file = tmp_path_factory.mktemp("serve") / "plain.yaml"
    file.write_text(yaml.safe_dump(config))
    serve(inputs, "deploy", str(file))
    assert settled(inputs, "docstrings")["status"] == "RUNNING", why(details(inputs, "docstrings"))
    yield f"{inputs.http_url}/docstrings"
    delete(inputs, "docstrings")


def serve(cluster: TestCluster, *words: str) -> str:
    """Ray's own ``serve`` command."""
    command = [sys.executable, "-m", "ray.serve.scripts", *words, "-a", cluster.dashboard_url]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def client(app_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=app_url, timeout=120, trust_env=False) as client:
        yield client


def test_serve_status_of_plain_ray_sees_the_app(cluster: TestCluster, app_url: str):
    status = yaml.safe_load(serve(cluster, "status"))
    assert status["applications"]["docstrings"]["status"] == "RUNNING"


def test_every_route_of_vllm_answers_below_the_prefix(client: httpx.Client):
    models = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["docstrings", f"{BASE}/v1"]
    assert client.get("/health").status_code == 200
    tokens = client.post("/tokenize", json={"model": "docstrings", "prompt": "os.getcwd"}).json()
    text = client.post("/detokenize", json={"model": "docstrings", "tokens": tokens["tokens"]}).json()
    assert text["prompt"] == "os.getcwd"
    assert client.get("/v1/nothing").status_code == 404


def test_the_engines_own_metrics_come_through_rays(cluster: TestCluster, client: httpx.Client):
    body = {"model": "docstrings", "prompt": "def", "max_tokens": 2}
    assert client.post("/v1/completions", json=body).status_code == 200
    running = local.current()
    assert running
    (found,) = json.loads((Path(running.temp_dir) / "prom_metrics_service_discovery.json").read_text())

    def scraped() -> str:
        return "".join(_page(f"http://{target}/metrics") for target in found["targets"])

    series = [
        "ray_vllm_generation_tokens_total{",
        "ray_vllm_time_to_first_token_seconds_bucket{",
        'le="+Inf"',
    ]
    wait_for(lambda: all(one in scraped() for one in series), "the engine's tokens among Ray's metrics", 60)
    assert "vllm:generation_tokens_total{" in client.get("/metrics").text


def test_the_kv_cache_holds_as_many_tokens_as_estimated(inputs: TestCluster, client: httpx.Client):
    (info,) = re.findall(r"vllm:cache_config_info\{(.*?)\}", client.get("/metrics").text)
    told = dict(re.findall(r'(\w+)="([^"]*)"', info))
    tokens = int(told["num_gpu_blocks"]) * int(told["block_size"])
    estimated = kv_cache(inputs.store.model(BASE).config())
    assert estimated
    assert tokens == pytest.approx((1 << 30) / estimated.bytes_per_token, rel=0.01)


def test_the_status_shows_what_the_engine_does(
    cluster: TestCluster, client: httpx.Client, tandem_command: list[str]
):
    body = {"model": "docstrings", "prompt": "def", "max_tokens": 50, "ignore_eos": True}
    assert client.post("/v1/completions", json=body).status_code == 200
    app = cluster.tandem().app("docstrings")

    def at_rest() -> dict[str, Any] | None:
        # They are written once a second, perhaps in the middle of the request.
        return next((row for row in app.replicas() if row["tokens_per_s"] and row["running"] == 0), None)

    row = wait_for(at_rest, "its figures", 10)
    assert row["state"] == "RUNNING" and row["pid"] == replica_pid(cluster, "docstrings")
    assert 0 < row["ttft_s"] < 10 and 0 <= row["kv_cache_usage"] <= 1
    told = json.loads(subprocess.check_output([*tandem_command, "status", "--json"], text=True))
    (shown,) = [one for one in told["apps"] if one["name"] == "docstrings"]
    assert [replica["replica_id"] for replica in shown["replicas"]] == [row["replica_id"]]
    table = subprocess.check_output([*tandem_command, "status"], text=True)
    assert all(words in table for words in ("tok/s", "TTFT", "1/1", row["replica_id"]))


def _page(url: str) -> str:
    try:
        return httpx.get(url, trust_env=False).text
    except httpx.TransportError:
        return ""  # Ray lists processes that have ended, too


def test_a_client_that_leaves_aborts_its_generation(cluster: TestCluster, client: httpx.Client):
    body = {"model": "docstrings", "prompt": "def", "max_tokens": 400, "ignore_eos": True, "stream": True}
    headers = {"content-type": "application/json", "x-request-id": "streamed"}
    with client.stream("POST", "/v1/completions", json=body, headers=headers) as reply:
        next(reply.iter_lines())
    pid = replica_pid(cluster, "docstrings")
    logs = (Path(local.current().temp_dir) / "session_latest/logs").glob(f"worker-*-{pid}.err")  # type: ignore[union-attr]
    (log,) = logs

    def line_of(request_id: str) -> dict[str, Any] | None:
        """What the log says of a request; None before it has ended."""
        lines = [json.loads(line) for line in log.read_text().split("\n")[:-1] if line.startswith('{"at"')]
        return next((line for line in lines if line["request_id"] == request_id), None)

    told = wait_for(lambda: line_of("streamed"), "its line in the log", 30)
    assert (told["status"], told["path"]) == (200, "/v1/completions")
    assert 0 < told["completion_tokens"] < 400 and told["ttft_s"] > 0
    # One that is not streamed has told nothing when it is broken off, and was work all the same. The client
    # leaves when the engine has begun with it, which on a busy machine may take a while.
    url, before = client.base_url, generated_tokens(client)
    leaving = http.client.HTTPConnection(url.host, url.port)
    sent = json.dumps({**body, "stream": False})
    leaving.request("POST", f"{url.path}v1/completions", sent, headers | {"x-request-id": "whole"})
    wait_for(lambda: generated_tokens(client) > before, "its first tokens", 60)
    leaving.close()
    told = wait_for(lambda: line_of("whole"), "the line of the one that is not streamed", 60)
    assert told["status"] == 499
    assert told["prompt_tokens"] > 0 and 0 < told["completion_tokens"] < 400


def generated_tokens(client: httpx.Client) -> float:
    """Of all requests so far, as the engine counts them while they run."""
    (count,) = re.findall(r"^vllm:generation_tokens_total\{.*\} (\S+)$", client.get("/metrics").text, re.M)
    return float(count)


def test_one_endpoint_answers_for_every_app_by_the_model(inputs: TestCluster, app_url: str):
    with httpx.Client(base_url=inputs.http_url, timeout=120, trust_env=False) as root:

        def listed() -> list[tuple[str, str, str, int | None]]:
            cards = root.get("/v1/models").json()["data"]
            return [(card["id"], card["version"], card["state"], card["max_model_len"]) for card in cards]

        # The front has not been asked before, and answers with what it saw last where a look takes longer
        # than half a second: this one asks the app itself.
        expected = ("docstrings", f"{BASE}/v1", "RUNNING", 512)
        wait_for(lambda: listed() == [expected], "the app is listed", 30)
        (card,) = root.get("/v1/models").json()["data"]
        assert root.get("/v1/models/docstrings").json() == card
        body = {"prompt": "def", "max_tokens": 4, "temperature": 0, "model": "docstrings"}
        replies = [root.post("/v1/completions", json=body) for _ in range(2)]
        assert replies[0].json()["choices"] == replies[1].json()["choices"]
        # The first came through the front, which knows no length before the end; then HAProxy knew the way.
        assert "content-length" not in replies[0].headers and "content-length" in replies[1].headers
        refused = root.post("/v1/completions", json=body | {"model": "docstring"})
        assert refused.status_code == 404
        assert "Known: docstrings, docstrings-base" in refused.json()["error"]["message"]
        assert root.post("/v1/completions", json={"prompt": "x"}).status_code == 400


def test_chat_answers_the_same_to_the_name_and_to_the_version(client: httpx.Client):
    def ask(model: str) -> dict[str, Any]:
        messages = [{"role": "user", "content": "What does os.getcwd do?"}]
        body = {"model": model, "messages": messages, "max_tokens": 12, "temperature": 0}
        return client.post("/v1/chat/completions", json=body).raise_for_status().json()

    by_name, by_version = ask("docstrings"), ask(f"{BASE}/v1")
    assert by_name["choices"][0]["message"] == by_version["choices"][0]["message"]
    assert by_name["usage"]["completion_tokens"] <= 12


def test_an_unknown_model_is_named_in_the_refusal(client: httpx.Client):
    reply = client.post("/v1/completions", json={"model": "gpt-0", "prompt": "x"})
    assert reply.status_code == 404 and "gpt-0" in reply.json()["error"]["message"]


def test_a_stream_arrives_as_it_is_made(client: httpx.Client):
    body = {
        "model": "docstrings",
        "prompt": "def main",
        "max_tokens": 200,
        "ignore_eos": True,
        "stream": True,
    }

    def arrived() -> list[float]:
        """Seconds after the request."""
        began, found = time.monotonic(), []
        with client.stream("POST", "/v1/completions", json=body | {"temperature": 0}) as reply:
            for line in reply.iter_lines():
                if line.startswith("data: {"):
                    json.loads(line.removeprefix("data: "))
                    found.append(time.monotonic() - began)
        assert len(found) > 50
        return found

    # Buffered, the first would always come with the last. On a busy machine any may come late once.
    wait_for(lambda: (times := arrived())[0] < times[-1] / 3, "the first comes long before the last", 60)


def test_many_requests_are_answered_in_one_batch(client: httpx.Client):
    body = {"model": "docstrings", "prompt": "def", "max_tokens": 16, "ignore_eos": True, "n": 24}
    choices = client.post("/v1/completions", json=body).raise_for_status().json()["choices"]
    assert len(choices) == 24


def test_kill_9_of_the_replica_leaves_nothing_and_serve_replaces_it(
    cluster: TestCluster, client: httpx.Client
):
    pid = replica_pid(cluster, "docstrings")
    assert pid
    processes = family(pid)
    assert any("EngineCore" in " ".join(process.cmdline()) for process in processes)
    os.kill(pid, signal.SIGKILL)
    wait_for(
        lambda: not any(process.is_running() for process in processes), "the replica's processes gone", 20
    )

    def another() -> bool:
        now = replica_pid(cluster, "docstrings")
        return now is not None and now != pid

    wait_for(another, "another replica runs", 180)
    wait_for(lambda: answers(client.build_request("GET", "/v1/models")), "the app answers again", 60)


def answers(request: httpx.Request) -> bool:
    """Whether it is answered, on a connection of its own: an older one may go with what it led to."""
    try:
        with httpx.Client(timeout=120, trust_env=False) as client:
            return client.send(request).status_code == 200
    except httpx.TransportError:
        return False


def test_a_dead_engine_makes_serve_replace_the_replica(cluster: TestCluster, client: httpx.Client):
    pid = replica_pid(cluster, "docstrings")
    assert pid
    (engine,) = [process for process in family(pid) if "EngineCore" in " ".join(process.cmdline())]
    os.kill(engine.pid, signal.SIGKILL)

    def another() -> bool:
        now = replica_pid(cluster, "docstrings")
        return now is not None and now != pid

    wait_for(another, "another replica runs", 180)
    body = {"model": "docstrings", "prompt": "def", "max_tokens": 2}
    asked = client.build_request("POST", "/v1/completions", json=body)
    wait_for(lambda: answers(asked), "answers again", 60)


@pytest.mark.parametrize(
    ("size", "ranks"),
    [
        ("tensor_parallel_size", ("Worker_TP0", "Worker_TP1")),
        pytest.param("pipeline_parallel_size", ("Worker_PP0", "Worker_PP1"), marks=pytest.mark.slow),
    ],
)
def test_two_workers_hold_one_model_and_all_end_with_the_app(
    inputs: TestCluster, size: str, ranks: tuple[str, str]
):
    engine = {size: 2, "max_model_len": 256, "kv_cache_memory_bytes": 1 << 28}
    state = deploy(inputs, name="pair", model=BASE, engine=engine)
    assert state["status"] == "RUNNING", why(state)
    pid = replica_pid(inputs, "pair")
    assert pid
    processes = family(pid)
    names = [" ".join(process.cmdline()) for process in processes]
    assert [sum(rank in name for name in names) for rank in ranks] == [1, 1]
    body = {"model": "pair", "prompt": "def main", "max_tokens": 8, "temperature": 0}
    reply = httpx.post(f"{inputs.http_url}/pair/v1/completions", json=body, timeout=120, trust_env=False)
    assert reply.raise_for_status().json()["usage"]["completion_tokens"] > 0
    delete(inputs, "pair")
    wait_for(lambda: not any(process.is_running() for process in processes), "all processes gone", 30)


def test_a_model_that_does_not_load_says_why_and_is_served_once_it_is_repaired(
    inputs: TestCluster, tmp_path: Path
):
    broken = tmp_path / "broken"
    with inputs.store.model(BASE).fetch() as folder:
        shutil.copytree(folder.path, broken, copy_function=shutil.copyfile)
    config = json.loads((broken / "config.json").read_text())
    config["intermediate_size"] += 64
    (broken / "config.json").write_text(json.dumps(config))
    state = deploy(inputs, name="broken", model=str(broken))
    assert state["status"] == "DEPLOY_FAILED"
    assert why(state).startswith(f"vLLM could not start with {broken}: ")
    assert "See root cause" not in why(state) and str(config["intermediate_size"]) in why(state)
    # The same spec again: to Serve an unchanged config would mean that nothing is to be done.
    with inputs.store.model(BASE).fetch() as folder:
        shutil.copyfile(folder.path / "config.json", broken / "config.json")
    assert deploy(inputs, name="broken", model=str(broken))["status"] == "RUNNING"
    delete(inputs, "broken")


def test_a_spec_that_plain_ray_tools_sent_is_refused_on_the_cluster(inputs: TestCluster):
    state = deploy(inputs, name="refused", model=BASE, engine={"tensor_paralel_size": 2})
    assert state["status"] == "DEPLOY_FAILED"
    assert "engine.tensor_paralel_size: vLLM has no such argument" in why(state)
    delete(inputs, "refused")


def test_the_catalogue_is_what_the_installed_vllm_says():
    script = "import json; from serve_apps.engine.catalogue import catalogue; print(json.dumps(catalogue()))"
    environment = os.environ | process_env("serve") | {"PYTHONPATH": str(ROOT), "VLLM_LOGGING_LEVEL": "ERROR"}
    said = subprocess.run(
        [str(interpreter("serve")), "-c", script], env=environment, check=True, capture_output=True, text=True
    )
    assert json.loads(said.stdout.splitlines()[-1]) == json.loads(CATALOGUE.read_text())
