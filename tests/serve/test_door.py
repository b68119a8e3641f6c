"""The door of a replica, around a small application, over real connections where a connection matters."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from serve_apps.door import Door
from serve_apps.keyring import Keyring
from serve_apps.limits import Limits
from serve_apps.tally import CURRENT
from serve_apps.usage import Usage, UsageRow, read_usage
from storage.keys import Keys, Scopes, keys_in
from storage.store import Store

PATHS = [
    "/v1/completions",
    "/v1/models",
    "/health",
    "/ping",
    "/metrics",
    "/sleep",
    "/v1/load_lora_adapter",
    "/invocations",
]
HELLO = {"model": "tiny", "prompt": "hello"}


class Engine:
    """Stands where vLLM's application stands: echoes the body, counts 3 + 2 tokens, waits when told to."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.order: list[str] = []
        self.app = Starlette(
            routes=[Route(path, self.answer, methods=["GET", "POST"]) for path in PATHS]
            + [Route("/v1/stream", self.stream, methods=["POST"])]
        )

    async def answer(self, request: Request) -> Response:
        body = await request.body()
        self.order.append(body.decode())
        await self.may_answer.wait()
        if request.method == "POST":
            self._count()
        return JSONResponse({"body": body.decode(), "id": request.headers.get("x-request-id")})

    async def stream(self, request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            self._count()
            for number in range(3):
                yield f"data: {number}\n\n".encode()

        return StreamingResponse(pieces(), media_type="text/event-stream")

    def _count(self) -> None:
        tally = CURRENT.get()
        assert tally
        tally.works.append(
            SimpleNamespace(prompt_tokens=3, completion_tokens=2, first_token_at=tally.began_at + 0.25)
        )


@pytest.fixture
def keys(store: Store) -> Keys:
    return keys_in(store.root)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """The request log so far."""
    caplog.set_level(logging.INFO, "tandem.requests")
    return lambda: [json.loads(r.getMessage()) for r in caplog.records if r.name == "tandem.requests"]


@asynccontextmanager
async def opened(engine: Engine, keys: Keys | None, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a door around ``engine``, without a network."""
    keyring = None
    if keys is not None:
        keyring = Keyring(keys, refresh_s=60, ask_again_s=settings.pop("ask_again_s", 0))
        await keyring.start()
    given = {"limits": None, "max_ongoing_requests": 8, "max_queued_requests": 8, **settings}
    door = Door(engine.app, name="tiny", keyring=keyring, **given)
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(door), base_url="http://door") as client:
            yield client
    finally:
        if keyring:
            await keyring.stop()


def _bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


def _error(answer: httpx.Response) -> dict[str, Any]:
    ((name, error),) = answer.json().items()
    assert name == "error" and set(error) == {"message", "type", "param", "code"}
    return error


def test_without_a_key_it_is_401_in_openais_shape(keys: Keys):
    async def main() -> None:
        key = keys.create("ci").text
        wrong = key[:-1] + ("0" if key[-1] != "0" else "1")
        async with opened(Engine(), keys) as client:
            for headers in ({}, _bearer(wrong), _bearer("sk-1"), {"authorization": f"Basic {key}"}):
                answer = await client.post("/v1/completions", json=HELLO, headers=headers)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
                assert _error(answer)["code"] == "invalid_api_key"
                assert wrong not in answer.text
            for headers in (_bearer(key), {"authorization": f"bearer {key}"}, {"x-api-key": key}):
                answer = await client.post("/v1/completions", json=HELLO, headers=headers)
                assert json.loads(answer.json()["body"]) == HELLO

    asyncio.run(main())


def test_only_health_is_open_to_everybody(keys: Keys):
    async def main() -> None:
        async with opened(Engine(), keys) as client:
            found = {path: (await client.get(path)).status_code for path in PATHS}
            assert {path for path, status in found.items() if status != 401} == {"/health", "/ping"}
            asked = {"origin": "https://page.example", "access-control-request-method": "POST"}
            # A browser's question goes through to vLLM's CORS middleware; any other OPTIONS wants a key.
            assert (await client.options("/v1/models", headers=asked)).status_code == 405
            assert (await client.options("/v1/models")).status_code == 401

    asyncio.run(main())


def test_admin_routes_want_an_admins_key(keys: Keys):
    async def main() -> None:
        user, admin = keys.create("user").text, keys.create("boss", scopes=Scopes(permissions="admin")).text
        async with opened(Engine(), keys) as client:
            # /invocations: SageMaker's header there says the model, past the body that a scope looks at.
            for path in ("/sleep", "/v1/load_lora_adapter", "/invocations"):
                refused = await client.post(path, headers=_bearer(user))
                assert (refused.status_code, _error(refused)["code"]) == (403, "permission_denied")
                assert (await client.post(path, headers=_bearer(admin))).status_code == 200
            assert (await client.get("/metrics", headers=_bearer(user))).status_code == 200

    asyncio.run(main())


def test_a_restricted_key_opens_its_models_only_and_the_body_arrives_whole(keys: Keys):
    async def main() -> None:
        key = _bearer(keys.create("ci", scopes=Scopes(models=("poems", "tiny"))).text)
        long = {"model": "poems", "prompt": "x" * 300_000}
        async with opened(Engine(), keys) as client:
            for body in (long, {"prompt": "no model means the app's own"}):
                answer = await client.post("/v1/completions", json=body, headers=key)
                assert json.loads(answer.json()["body"]) == body
            for text in (
                '{"model": "other"}',
                '{"model": "poems", "model": "other"}',
                '{"model": ["poems"]}',
            ):
                refused = await client.post("/v1/completions", content=text, headers=key)
                assert (refused.status_code, _error(refused)["param"]) == (403, "model")
            broken = await client.post("/v1/completions", content="{", headers=key)
            assert (broken.status_code, _error(broken)["code"]) == (400, "invalid_body")

    asyncio.run(main())


def test_fresh_rotated_and_revoked_keys_are_seen_at_once_or_soon(keys: Keys):
    async def main() -> None:
        async with opened(Engine(), keys) as client:

            async def status(text: str) -> int:
                return (await client.post("/v1/completions", json=HELLO, headers=_bearer(text))).status_code

            fresh = keys.create("later")
            assert await status(fresh.text) == 200
            rotated = keys.rotate(fresh.record.id)
            assert await status(rotated.text) == 200
            assert await status(fresh.text) == 401
            keys.revoke(fresh.record.id)
            # A wrong key of the same id makes the folder be looked at, as the background does every 5 s.
            await status(fresh.text)
            assert await status(rotated.text) == 401

    asyncio.run(main())


def test_wrong_keys_do_not_become_requests_to_the_store(keys: Keys):
    async def main() -> None:
        async with opened(Engine(), keys, ask_again_s=60) as client:
            fresh = keys.create("later").text
            answer = await client.post("/v1/completions", json=HELLO, headers=_bearer(fresh))
            # Looked at when it started, less than 60 s ago.
            assert answer.status_code == 401

    asyncio.run(main())


def test_a_limit_is_429_with_retry_after(keys: Keys):
    async def main() -> None:
        new = keys.create("ci", requests_per_minute=100, tokens_per_minute=10)
        # Its clock stands still: all of it is within one minute, however long it takes.
        async with opened(Engine(), keys, limits=Limits(clock=lambda: 1000.0)) as client:
            answers = [
                await client.post("/v1/completions", json=HELLO, headers=_bearer(new.text)) for _ in range(3)
            ]
            # 5 tokens each.
            assert [answer.status_code for answer in answers] == [200, 200, 429]
            assert _error(answers[2])["code"] == "rate_limit_exceeded"
            assert answers[2].headers["retry-after"] == "62"
            assert (await client.get("/v1/models", headers=_bearer(new.text))).status_code == 200

    asyncio.run(main())


def test_requests_wait_in_order_and_those_beyond_the_queue_are_refused():
    async def main() -> None:
        engine = Engine()
        engine.may_answer.clear()
        async with opened(
            engine, None, max_ongoing_requests=1, max_queued_requests=2, retry_after_s=7
        ) as client:
            sent = []
            for name in ("a", "b", "c"):
                sent.append(asyncio.create_task(client.post("/v1/completions", content=name)))
                await asyncio.sleep(0)
                await _until(lambda: len(engine.order) == 1)
            door = client._transport.app  # type: ignore[attr-defined]
            await _until(lambda: door.admission.queued == 2)
            refused = await client.post("/v1/completions", content="d")
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "7")
            assert _error(refused)["code"] == "overloaded"
            engine.may_answer.set()
            answers = await asyncio.gather(*sent)
            assert [answer.json()["body"] for answer in answers] == engine.order == ["a", "b", "c"]
            assert (door.admission.ongoing, door.admission.queued) == (0, 0)

    asyncio.run(main())


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (the condition is in the door, which tells nobody)
            await asyncio.sleep(0.01)


def test_a_client_that_leaves_while_it_waits_frees_its_place(lines: Callable[[], list[dict[str, Any]]]):
    async def main() -> None:
        engine = Engine()
        engine.may_answer.clear()
        door = Door(
            engine.app, name="tiny", keyring=None, limits=None, max_ongoing_requests=1, max_queued_requests=1
        )
        async with served(door) as url, httpx.AsyncClient(base_url=url) as client:
            first = asyncio.create_task(client.post("/v1/completions", content="a"))
            await _until(lambda: engine.order == ["a"])
            leaving = asyncio.create_task(client.post("/v1/completions", content="b"))
            await _until(lambda: door.admission.queued == 1)
            leaving.cancel()
            await _until(lambda: door.admission.queued == 0)
            third = asyncio.create_task(client.post("/v1/completions", content="c"))
            await _until(lambda: door.admission.queued == 1)
            engine.may_answer.set()
            assert [(await task).status_code for task in (first, third)] == [200, 200]
            assert engine.order == ["a", "c"]
            await _until(lambda: door.admission.ongoing == 0)
        assert sorted(line["status"] for line in lines()) == [200, 200, 499]

    asyncio.run(main())


def test_a_client_that_left_is_499_even_where_the_application_answers_it(
    lines: Callable[[], list[dict[str, Any]]],
):
    """As vLLM does: its own look at the connection ends the work, and an empty 200 follows."""

    async def empty_200(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        await Response()(scope, receive, send)

    async def main() -> None:
        door = Door(
            empty_200, name="tiny", keyring=None, limits=None, max_ongoing_requests=1, max_queued_requests=0
        )
        async with served(door) as url, httpx.AsyncClient(base_url=url) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.post("/v1/completions", content="a", timeout=httpx.Timeout(5, read=0.2))
            await _until(lambda: bool(lines()))
        assert [line["status"] for line in lines()] == [499]

    asyncio.run(main())


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """The application behind a real server on a free port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await _until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


def test_one_line_tells_of_each_request_and_no_key_is_in_it(
    keys: Keys, lines: Callable[[], list[dict[str, Any]]], caplog: pytest.LogCaptureFixture
):
    async def main() -> None:
        new = keys.create("ci")
        traced = {**_bearer(new.text), "x-request-id": "r-1", "traceparent": "00-aa-bb-01"}
        async with opened(Engine(), keys) as client:
            streamed = await client.post("/v1/stream", json=HELLO, headers=traced)
            assert streamed.text == "data: 0\n\ndata: 1\n\ndata: 2\n\n"
            plain = await client.post("/v1/completions", json=HELLO, headers={"x-api-key": new.text})
            await client.post("/v1/completions", json=HELLO, headers=_bearer(new.text + "0"))
            await client.get("/health", headers=traced)
        stream, answer, refused = lines()
        assert stream == stream | {
            "key_id": new.record.id, "model": "tiny", "app": "tiny", "status": 200, "prompt_tokens": 3,
            "completion_tokens": 2, "ttft_s": 0.25, "request_id": "r-1", "traceparent": "00-aa-bb-01",
        }  # fmt: skip
        assert 0 <= stream["queued_s"] <= stream["latency_s"] < 10
        # Where the client gave none, application, answer and log have the same one.
        assert answer["request_id"] == plain.headers["x-request-id"] == plain.json()["id"]
        assert (refused["status"], refused["key_id"], refused["prompt_tokens"]) == (401, None, 0)
        assert new.text.rpartition("-")[2] not in caplog.text and "hello" not in caplog.text

    asyncio.run(main())


def test_prompts_are_logged_only_when_asked_for(lines: Callable[[], list[dict[str, Any]]]):
    async def main() -> None:
        async with opened(Engine(), None, log_prompts=True) as client:
            await client.post("/v1/completions", json=HELLO)
        async with opened(Engine(), None, log_requests=False) as client:
            await client.post("/v1/completions", json=HELLO)
        (line,) = lines()
        assert json.loads(line["prompt"]) == HELLO and line["key_id"] is None

    asyncio.run(main())


def test_usage_is_summed_over_replicas_by_day_key_and_model(store: Store):
    async def main() -> None:
        place = store.root / "usage"
        date = "2026-11-25"
        first, second = (Usage(place, app="tiny", today=lambda: date) for _ in range(2))
        async with opened(Engine(), None, usage=first) as client:
            await client.post("/v1/completions", json=HELLO)
            await client.post("/v1/stream", json=HELLO)
            await client.get("/v1/models")
        second.add("0123456789ab", "poems", prompt_tokens=10, completion_tokens=1)
        second.write()
        second.add("0123456789ab", "poems", prompt_tokens=20, completion_tokens=2)
        second.add(None, "tiny", prompt_tokens=100, completion_tokens=0)
        await first.stop()
        await second.stop()
        assert len((place / date).names()[1]) == 2
        assert read_usage(place) == [
            UsageRow(date, "0123456789ab", "poems", 2, 30, 3),
            UsageRow(date, "open", "tiny", 3, 106, 4),
        ]
        date = "2026-11-26"
        second.add(None, "tiny", prompt_tokens=1, completion_tokens=1)
        second.write()
        assert read_usage(place, since="2026-11-26") == [UsageRow(date, "open", "tiny", 1, 1, 1)]

    asyncio.run(main())
