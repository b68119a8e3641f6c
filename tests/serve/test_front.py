"""The front: how it finds the model in a body, what it lists, and how it passes requests on."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cluster.haproxy_rules import ROUTE_HEADER
from serve_apps.front.app import Front
from serve_apps.front.body import model_in
from serve_apps.front.known import KnownApps
from serve_apps.front.proxy import PASSED_HEADER
from serve_apps.plan import IMPORT_PATH
from serve_apps.refusal import Refused
from storage import attached
from storage.keys import Scopes, keys_in
from storage.store import Store
from tests.conftest import TestCluster, wait_for


def sent(**how: object) -> str | None:
    request = httpx.Request("POST", "http://front/v1/x", **how)  # type: ignore[arg-type]
    return model_in(request.headers.get("content-type", ""), request.read())


def test_the_model_is_found_in_json_and_in_forms():
    assert sent(json={"messages": [{"model": "no"}], "model": "poët"}) == "poët"
    assert sent(data={"model": "poet", "language": "de"}) == "poet"
    audio = {"file": ("a.wav", b"RIFF\r\n--\x00\xff", "audio/wav")}
    assert sent(data={"model": "whisper", "prompt": "model"}, files=audio) == "whisper"


def test_a_body_without_a_model_names_none():
    assert [sent(json={"prompt": "x"}), sent(json=["model"]), sent(json={"model": 7}), sent()] == [None] * 4
    assert sent(files={"file": b"RIFF"}) is None


def test_a_body_that_is_no_json_is_refused():
    with pytest.raises(Refused, match="cannot be read as JSON"):
        model_in("application/json", b"{")


# The whole front, over real connections.


class Backend:
    """Stands where HAProxy and the apps stand: says what came; gates and breaks off when told to."""

    def __init__(self) -> None:
        self.waits = threading.Event()
        """A request is here that gets no answer, or no whole one."""
        self.left = threading.Event()
        self.may_end = threading.Event()
        self.unknown_yet = 0
        self.app = Starlette(routes=[Route("/{path:path}", self._answer, methods=["GET", "POST"])])

    async def _answer(self, request: Request) -> Response:
        body = await request.body()
        if self.unknown_yet:
            self.unknown_yet -= 1
            return Response(status_code=503, headers={PASSED_HEADER: "1"})
        if "refused" in request.url.query:
            return JSONResponse({"error": {}}, status_code=429, headers={"retry-after": "7"})
        if "slow" in request.url.query:
            return StreamingResponse(self._pieces(), media_type="text/event-stream")
        if "silent" in request.url.query:
            self.waits.set()
            while (await request.receive())["type"] != "http.disconnect":
                pass
            self.left.set()
        seen = {"path": request.url.path, "query": request.url.query, "body": body.decode(errors="replace")}
        headers = {"x-request-id": "of-the-app", "connection": "x-hop", "x-hop": "1", "x-app": "1"}
        return JSONResponse(seen | {"headers": dict(request.headers)}, headers=headers)

    async def _pieces(self) -> AsyncIterator[bytes]:
        try:
            yield b"data: 1\n\n"
            self.waits.set()
            await asyncio.to_thread(self.may_end.wait, 30)
            yield b"data: 2\n\n"
        except asyncio.CancelledError:
            self.left.set()
            raise


@contextmanager
def listening(app: Starlette) -> Iterator[str]:
    """The address of a server of ``app``."""
    # A port of its own from the first moment: one that is only found free may be another's by then.
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    wait_for(lambda: server.started, "the server listens", 20)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def app_details(store: Store, name: str, *, running: int = 1, **spec: Any) -> dict[str, Any]:
    """One app in the words of Serve's REST API."""
    status, message = spec.pop("status", "RUNNING"), spec.pop("message", "")
    args = {"name": name, "model": "base/v1", "store": store.uri, "auth": "none", **spec}
    return {
        "status": status,
        "message": message,
        "route_prefix": f"/{name}",
        "last_deployed_time_s": 1.0,
        "deployed_app_config": {"name": name, "import_path": IMPORT_PATH, "args": args},
        "deployments": {name: {"message": "", "replicas": [{"state": "RUNNING"}] * running}},
    }


@dataclass
class World:
    """A front over one backend, and what Serve tells it."""

    client: httpx.Client
    backend: Backend
    store: Store
    apps: dict[str, dict[str, Any]]
    serve_is_silent: bool = False

    def add(self, name: str, **details: Any) -> None:
        self.apps[name] = app_details(self.store, name, **details)

    def error(self, status: int, path: str = "/v1/completions", **how: Any) -> dict[str, Any]:
        """OpenAI's error that comes for a request."""
        reply = self.client.post(path, **how)
        assert reply.status_code == status, reply.text
        return dict(reply.json()["error"]) | {"retry-after": reply.headers.get("retry-after")}


@pytest.fixture
def world(store: Store) -> Iterator[World]:
    backend, apps = Backend(), {}

    async def describe(name: str) -> dict[str, Any]:
        return {"model": "base/v2" if name == "two" else "base/v1", "max_model_len": 512}

    with listening(backend.app) as backend_url:
        http_options = {"host": "0.0.0.0", "port": int(backend_url.rpartition(":")[2])}

        def details() -> dict[str, Any]:
            if found.serve_is_silent:
                raise RuntimeError("the controller is away")
            return {"applications": dict(apps), "http_options": http_options}

        with (
            listening(Front(KnownApps(details, describe)).app()) as url,
            httpx.Client(base_url=url, timeout=30, trust_env=False) as client,
        ):
            found = World(client, backend, store, apps)
            found.add("tandem-front")
            found.add("one", adapters={"poet": "poet/v3"})
            found.add("two", model="base")
            yield found
            backend.may_end.set()


def test_all_apps_and_adapters_are_listed_with_their_versions(world: World):
    attached.attach(world.store, "one", "clerk", "clerk/v1")
    world.add("asleep", running=0)
    cards = world.client.get("/v1/models").json()["data"]
    assert [(c["id"], c["version"], c["parent"], c["state"]) for c in cards] == [
        ("asleep", "base/v1", None, "SCALED_TO_ZERO"),
        ("one", "base/v1", None, "RUNNING"),
        ("poet", "poet/v3", "one", "RUNNING"),
        ("clerk", "clerk/v1", "one", "RUNNING"),
        ("two", "base/v2", None, "RUNNING"),
    ]
    assert [c["max_model_len"] for c in cards] == [None, 512, 512, 512, 512]
    assert world.client.get("/v1/models/poet").json() == cards[2]
    reply = world.client.get("/v1/models/nobody")
    assert reply.status_code == 404 and reply.json()["error"]["code"] == "model_not_found"


def test_a_caller_sees_what_is_open_and_what_its_key_opens(world: World):
    world.add("one", auth="keys", adapters={"poet": "poet/v3"})
    key = keys_in(world.store.root).create("ci", scopes=Scopes(models=["poet"])).text

    def seen(**headers: str) -> list[str]:
        return [card["id"] for card in world.client.get("/v1/models", headers=headers).json()["data"]]

    assert seen() == ["two"] and seen(authorization=f"Bearer {key}") == ["poet", "two"]
    assert "Known: base/v2, two." in world.error(404, json={"model": "x"})["message"]
    world.add("two", auth="keys")
    wait_for(lambda: world.client.get("/v1/models").status_code == 401, "nothing is open", 10)
    assert world.error(401, json={"model": "x"})["code"] == "invalid_api_key"


def test_a_request_goes_to_the_app_of_its_model_as_it_came(world: World):
    headers = {"x-request-id": "mine", "x-hop": "1", "connection": "x-hop", "authorization": "Bearer k"}
    for model, prefix in (("one", "/one"), ("poet", "/one"), ("two", "/two"), ("base/v2", "/two")):
        reply = world.client.post("/v1/x%2Fy?a=1&b=%20", json={"model": model}, headers=headers)
        seen = reply.json()
        assert (seen["path"], seen["query"]) == (f"{prefix}/v1/x/y", "a=1&b=%20")
        assert seen["body"] == json.dumps({"model": model}, separators=(",", ":"))
        assert seen["headers"]["x-request-id"] == "mine" and seen["headers"]["authorization"] == "Bearer k"
        assert "x-hop" not in seen["headers"] and "x-hop" not in reply.headers
        assert reply.headers[ROUTE_HEADER] == prefix and reply.headers["x-app"] == "1"


def test_haproxy_learns_only_from_json_that_an_app_accepted(world: World):
    form = world.client.post("/v1/x", data={"model": "one"}, files={"file": b"RIFF"})
    assert form.status_code == 200 and ROUTE_HEADER not in form.headers
    refused = world.client.post("/v1/x?refused", json={"model": "one"})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "7")
    assert ROUTE_HEADER not in refused.headers
    twice = world.error(400, content=b'{"model": "two", "model": "one"}')
    assert twice["param"] == "model"


def test_a_stream_comes_piece_by_piece(world: World):
    with world.client.stream("POST", "/v1/x?slow", json={"model": "one"}) as reply:
        pieces = reply.iter_raw()
        assert next(pieces) == b"data: 1\n\n"
        world.backend.may_end.set()
        assert b"".join(pieces) == b"data: 2\n\n"


@pytest.mark.parametrize("when", ["slow", "silent"])
def test_a_client_that_leaves_ends_its_request_at_the_app(world: World, when: str):
    client = http.client.HTTPConnection(world.client.base_url.netloc.decode())
    client.request("POST", f"/v1/x?{when}", b'{"model": "one"}', {"content-type": "application/json"})
    # Only then does it leave: a request that has not come that far ends before it reaches the app.
    assert world.backend.waits.wait(30) and not world.backend.left.is_set()
    client.close()
    assert world.backend.left.wait(30)


def test_an_app_that_cannot_answer_is_refused_with_the_reason_and_one_that_sleeps_is_asked(world: World):
    world.add("bad", running=0, status="DEPLOY_FAILED", message="ValueError: no such file")
    world.add("asleep", running=0)
    error = world.error(503, json={"model": "bad"})
    assert error["message"] == "The app bad is DEPLOY_FAILED: ValueError: no such file"
    assert (error["code"], error["retry-after"]) == ("model_not_ready", "5")
    assert world.client.post("/v1/x", json={"model": "asleep"}).json()["path"] == "/asleep/v1/x"
    world.add("bad", running=1, status="DEPLOYING")
    assert wait_for(lambda: world.client.post("/v1/x", json={"model": "bad"}).is_success, "it answers", 10)


def test_an_app_that_does_not_wake_in_time_or_ends_meanwhile_is_refused(world: World):
    world.add("asleep", running=0, wake_timeout_s=1.5)
    world.add("ends", running=0, wake_timeout_s=60)
    error = world.error(503, "/v1/x?silent", json={"model": "asleep"})
    assert (error["message"], error["retry-after"]) == ("The app asleep is not awake after 1.5 s.", "5")
    assert world.backend.left.wait(30)
    world.backend.waits.clear()

    def ends() -> None:
        assert world.backend.waits.wait(30)
        del world.apps["ends"]

    # This one has time to spare: only its app's end can end the request.
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(ends)
        assert world.error(503, "/v1/x?silent", json={"model": "ends"})["message"] == "The app ends is gone."
    ending.result()


def test_an_app_that_is_awake_may_take_longer_than_waking_may(world: World):
    world.add("asleep", running=0, wake_timeout_s=2.5)

    def wakes() -> None:
        assert world.backend.waits.wait(30)
        world.add("asleep")

    with ThreadPoolExecutor(1) as pool, pytest.raises(httpx.ReadTimeout):
        waking = pool.submit(wakes)
        world.client.post("/v1/x?silent", json={"model": "asleep"}, timeout=httpx.Timeout(30, read=4.5))
    waking.result()


def test_who_has_no_key_wakes_no_app_and_does_not_hear_of_it(world: World):
    world.add("asleep", running=0, auth="keys")
    key = keys_in(world.store.root).create("ci").text
    assert "asleep" not in world.error(404, json={"model": "asleep"})["message"].partition("Known")[2]
    headers = {"authorization": f"Bearer {key}"}
    assert (
        world.client.post("/v1/x", json={"model": "asleep"}, headers=headers).json()["path"] == "/asleep/v1/x"
    )


def test_requests_for_an_app_that_is_being_replaced_are_kept_for_it(world: World):
    assert world.client.post("/v1/x", json={"model": "one"}).is_success
    world.add("one", running=0, status="DEPLOYING")
    wait_for(lambda: world.client.get("/v1/models/one").json()["state"] == "DEPLOYING", "it is seen", 10)
    assert world.client.post("/v1/x", json={"model": "one"}).json()["path"] == "/one/v1/x"


def test_a_body_without_end_is_refused(world: World):
    error = world.error(413, content=(b"x" * (1 << 20) for _ in range(65)))
    assert "64 MiB" in error["message"]


def test_browsers_may_ask(world: World):
    asked = {"origin": "https://page.example", "access-control-request-method": "POST"}
    answer = world.client.options("/v1/completions", headers=asked)
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "*"


def test_what_names_no_model_or_an_unknown_one_is_told_so(world: World):
    unknown = world.error(404, json={"model": "tow"})
    assert unknown["code"] == "model_not_found" and "Known: base/v1, base/v2, one, poet" in unknown["message"]
    assert world.error(400, json={"prompt": "x"})["code"] == "model_missing"
    assert world.error(400, content=b"{")["code"] == "invalid_body"
    reply = world.client.options("/v1/completions")
    assert reply.status_code == 405 and "message" in reply.json()["error"]
    assert world.client.get("/v1/nothing").status_code == 404


def test_an_app_that_is_new_to_haproxy_is_asked_again_until_it_is_known(world: World):
    world.backend.unknown_yet = 2
    assert world.client.post("/v1/x", json={"model": "one"}).json()["path"] == "/one/v1/x"
    looped = world.client.post("/v1/x", json={"model": "one"}, headers={PASSED_HEADER: "1"})
    assert looped.status_code == 503 and PASSED_HEADER in looped.headers


def test_an_app_deployed_just_now_is_found_and_a_silent_serve_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    # What was seen is good for an hour, so that only asking for what is not in it makes the front look anew.
    monkeypatch.setattr(KnownApps.all, "__kwdefaults__", {"fresh_s": 3600.0})
    assert world.client.get("/v1/models").status_code == 200
    world.add("new")
    wait_for(lambda: world.client.post("/v1/x", json={"model": "new"}).is_success, "it is found", 20)
    world.serve_is_silent = True
    assert world.error(404, json={"model": "x"}) and world.error(404, json={"model": "x"})
    assert world.client.post("/v1/x", json={"model": "new"}).is_success


# Two real engines.


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_two_apps_answer_at_one_address_each_straight_once_haproxy_knows_the_way(inputs: TestCluster):
    tandem = inputs.tandem()
    common = {"model": "docstrings-base"}
    specs = [
        {"name": "one", "auth": "none", "engine": {"max_model_len": 128}, **common},
        {"name": "two", "auth": "keys", "engine": {"max_model_len": 256}, **common},
    ]
    key = keys_in(inputs.store.root).create("of-two", scopes=Scopes(models=["two"])).text
    headers = _bearer(key)
    apps = [tandem.serve(spec) for spec in specs]
    try:
        for app in apps:
            app.wait(300)
        with httpx.Client(base_url=inputs.http_url, timeout=120, trust_env=False) as client:

            def lengths() -> dict[str, int | None]:
                cards = client.get("/v1/models", headers=headers).json()["data"]
                return {card["id"]: card["max_model_len"] for card in cards}

            # The front answers with what it saw last where a look takes longer than half a second; the first
            # one after a deployment asks the new replicas.
            both = {"one": 128, "two": 256}
            wait_for(lambda: lengths().items() >= both.items(), "both are listed", 30)
            assert "two" not in client.get("/v1/models").text
            form = client.post("/v1/completions", data={"model": "one"}, files={"file": b"RIFF"})
            assert form.status_code == 400 and "application/json" in form.json()["error"]["message"]
        for model in ("one", "two"):
            # HAProxy forgets the way when Serve reloads it, which the other app may still bring about.
            straight = partial(_is_straight, inputs.http_url, model, headers)
            wait_for(lambda look=straight: all(look() for _ in range(5)), f"the way to {model}", 60)
        # Past the front the replica itself looks at the key: at who has none, and at what a key is for.
        other = keys_in(inputs.store.root).create("of-one", scopes=Scopes(models=["one"])).text
        refused = [_ask(inputs.http_url, "two"), _ask(inputs.http_url, "two", _bearer(other))]
        assert [reply.status_code for reply in refused] == [401, 403]
        assert [reply.json()["error"]["code"] for reply in refused] == [
            "invalid_api_key",
            "model_not_allowed",
        ]
    finally:
        for app in apps:
            app.stop()


def _bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def _ask(url: str, model: str, headers: dict[str, str] | None = None) -> httpx.Response:
    # On a connection of its own: HAProxy keeps an open one on the config that it began with.
    body = {"model": model, "prompt": "def", "max_tokens": 2}
    return httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=120, trust_env=False)


def _is_straight(url: str, model: str, headers: dict[str, str]) -> bool:
    """Whether a request went past the front, which passes on as it comes; a replica tells the length."""
    reply = _ask(url, model, headers).raise_for_status()
    assert reply.json()["model"] == model and ROUTE_HEADER not in reply.headers
    return "content-length" in reply.headers
