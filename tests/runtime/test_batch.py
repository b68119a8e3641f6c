"""Batches against a small real server that fails on purpose now and then."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from click.testing import CliRunner
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from cluster.processes import free_port
from runtime.batch import BatchResult, run_batch
from runtime.batch_file import has_failed
from runtime.cli_batch import batch
from runtime.core.errors import ConfigError, ServeError
from tests.conftest import ROOT, wait_for

KEY = "tdm-0123-secret-of-this-test"


class Server:
    """Echoes the prompt. ``faults`` holds answers by prompt, each given once, before the good one."""

    def __init__(self) -> None:
        self.url = ""
        self.faults: dict[str, list[Response]] = {}
        self.asked: Counter[str] = Counter()
        self.keys: set[str | None] = set()
        self.flying = self.most_flying = 0

    async def models(self, request: Request) -> Response:
        if request.headers.get("authorization") == "Bearer wrong":
            return JSONResponse({"error": {}}, status_code=401)
        return JSONResponse({"data": [{"id": "tiny"}, {"id": "poems"}]})

    async def answer(self, request: Request) -> Response:
        self.keys.add(request.headers.get("authorization"))
        body = await request.json()
        prompt = body["prompt"]
        self.asked[prompt] += 1
        self.flying += 1
        self.most_flying = max(self.flying, self.most_flying)
        await asyncio.sleep(0.002)
        self.flying -= 1
        if self.faults.get(prompt):
            return self.faults[prompt].pop(0)
        usage = {"prompt_tokens": 3, "completion_tokens": 2}
        return JSONResponse({"id": "cmpl-1", "model": body["model"], "text": prompt, "usage": usage})


@pytest.fixture
def server() -> Iterator[Server]:
    serving = Server()
    routes = [
        Route("/v1/models", serving.models),
        Route("/v1/completions", serving.answer, methods=["POST"]),
    ]
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    serving.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    running = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="warning", lifespan="off"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    wait_for(lambda: running.started, "the server listens", 20)
    yield serving
    running.should_exit = True
    thread.join()


def line(name: str, **fields: Any) -> dict[str, Any]:
    body = {"prompt": name, **fields.pop("body", {})}
    return {"custom_id": name, "method": "POST", "url": "/v1/completions", "body": body, **fields}


def write(file: Path, lines: list[Any]) -> Path:
    file.write_text("".join(text if isinstance(text, str) else json.dumps(text) + "\n" for text in lines))
    return file


def read(file: Path) -> dict[str, dict[str, Any]]:
    """Answers by custom_id; no custom_id comes twice."""
    answers = [json.loads(text) for text in file.read_text().splitlines()]
    found = {answer["custom_id"]: answer for answer in answers}
    assert len(found) == len(answers)
    return found


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return write(tmp_path / "in.jsonl", [line(f"r{number}") for number in range(200)])


def send(source: Path, output: Path, server: Server, **options: Any) -> BatchResult:
    return run_batch(source, output, endpoint=server.url, **{"model": "tiny", **options})


def test_every_request_is_answered_in_openais_format_and_few_fly_at_a_time(
    server: Server, many: Path, tmp_path: Path
):
    out = tmp_path / "out.jsonl"
    result = send(many, out, server, concurrency=7, api_key=KEY)
    assert (result.total, result.sent, result.failed, result.skipped) == (200, 200, 0, 0)
    assert (result.prompt_tokens, result.completion_tokens) == (600, 400)
    answers = read(out)
    assert set(answers) == {f"r{number}" for number in range(200)}
    one = answers["r17"]
    assert one["id"].startswith("batch_req_") and one["error"] is None
    response = one["response"]
    assert (response["status_code"], response["request_id"]) == (200, "cmpl-1")
    assert (response["body"]["text"], response["body"]["model"]) == ("r17", "tiny")
    assert 1 < server.most_flying <= 7
    assert server.keys == {f"Bearer {KEY}"} and KEY not in out.read_text()


def test_busy_failing_and_lost_answers_are_asked_again_and_a_refusal_is_kept(
    server: Server, many: Path, tmp_path: Path
):
    busy = JSONResponse({"error": {"message": "queue"}}, status_code=429, headers={"retry-after": "1"})
    server.faults = {
        "r1": [busy],
        "r2": [JSONResponse({"error": {}}, status_code=code) for code in (500, 502, 503)],
        "r3": [JSONResponse({"error": {"message": "too long"}}, status_code=400)],
        "r4": [PlainTextResponse("<html>", status_code=403)],
        "r5": [JSONResponse({"error": {}}, status_code=500)] * 9,
        # Promises more than it sends: the connection ends within the answer.
        "r6": [Response(b"{", headers={"content-length": "9"})],
    }
    out = tmp_path / "out.jsonl"
    result = send(many, out, server)
    answers = read(out)
    assert {name for name, answer in answers.items() if has_failed(answer)} == {"r3", "r4", "r5"}
    assert result.failed == 3 and result.seconds >= 1
    assert {name: server.asked[name] for name in ("r1", "r2", "r3", "r5", "r6")} == {
        "r1": 2, "r2": 4, "r3": 1, "r5": 4, "r6": 2,
    }  # fmt: skip
    assert answers["r3"]["response"]["body"]["error"]["message"] == "too long"
    assert answers["r4"]["response"] is None and "403: <html>" in answers["r4"]["error"]["message"]

    server.asked.clear()
    again = send(many, out, server)
    assert (again.sent, again.skipped, again.failed) == (0, 200, 3) and not server.asked
    server.faults = {}
    repaired = send(many, out, server, retry_failed=True)
    assert (repaired.sent, repaired.skipped, repaired.failed) == (3, 197, 0)
    assert set(server.asked) == {"r3", "r4", "r5"} and len(read(out)) == 200


def test_a_second_call_goes_on_behind_a_line_that_was_cut(server: Server, many: Path, tmp_path: Path):
    out = tmp_path / "out.jsonl"
    send(many, out, server)
    text = out.read_bytes()
    kept = text[: text.index(b"\n", len(text) // 2) + 20]
    out.write_bytes(kept)
    done = kept.count(b"\n")
    server.asked.clear()
    result = send(many, out, server)
    assert (result.skipped, result.sent) == (done, 200 - done)
    assert sum(server.asked.values()) == 200 - done and len(read(out)) == 200


def test_an_endpoint_that_goes_away_ends_the_batch_without_failures(many: Path, tmp_path: Path):
    out = tmp_path / "out.jsonl"
    with pytest.raises(ServeError, match=r"has not answered for 0\.5 s.*goes on from here"):
        run_batch(many, out, endpoint=f"http://127.0.0.1:{free_port()}", model="tiny", patience_s=0.5)
    assert not out.exists()


def test_every_fault_of_the_input_is_named_before_anything_is_sent(server: Server, tmp_path: Path):
    source = write(
        tmp_path / "in.jsonl",
        [
            line("a", body={"model": "tiny"}),
            line("b"),
            "{no json\n",
            line("a", body={"model": "tiny"}),
            line("c", method="GET", body={"model": "tiny"}),
            {"custom_id": "d", "url": "v1/completions", "body": {"model": "tiny"}, "priority": 1},
            line("e", body={"model": "tiny", "stream": True}),
        ],
    )
    with pytest.raises(ConfigError) as caught:
        send(source, tmp_path / "out.jsonl", server, model=None)
    said = str(caught.value)
    for words in (
        "line 2, body.model: is None. Name a served model there, or for all lines: --model.",
        "line 3, (whole line): is no JSON",
        "line 4, custom_id: is 'a', as in line 1.",
        "line 5, method: is 'GET'",
        "line 6, url: is 'v1/completions'",
        "line 6, priority: no such field",
        "line 7, body.stream: is true",
    ):
        assert words in said
    assert not server.asked and not (tmp_path / "out.jsonl").exists()


def test_a_model_that_nobody_serves_a_wrong_key_and_anothers_output_are_refused(
    server: Server, many: Path, tmp_path: Path
):
    out = tmp_path / "out.jsonl"
    with pytest.raises(ConfigError, match=r"line 1, body\.model: is 'poem', .*Did you mean 'poems'"):
        send(many, out, server, model="poem")
    with pytest.raises(ServeError, match="refuses the API key") as caught:
        send(many, out, server, api_key="wrong")
    assert "wrong" not in str(caught.value)
    write(out, [{"custom_id": "of-another", "response": None, "error": {}}])
    with pytest.raises(ConfigError, match=r"line 1: custom_id is 'of-another'.*another batch's output"):
        send(many, out, server)
    assert not server.asked


def test_input_and_output_may_lie_in_a_store(server: Server, many: Path, tmp_path: Path):
    from storage.location import locate

    root = locate("memory://batches")
    (root / "in.jsonl").write_bytes(many.read_bytes())
    address = (root / "out.jsonl").uri
    assert run_batch(f"{root}/in.jsonl", address, endpoint=f"{server.url}/v1", model="tiny").sent == 200
    half = b"".join((root / "out.jsonl").read_bytes().splitlines(True)[:120])
    (root / "out.jsonl").write_bytes(half)
    result = run_batch(f"{root}/in.jsonl", address, endpoint=server.url, model="tiny")
    assert (result.skipped, result.sent) == (120, 80)
    (tmp_path / "copy.jsonl").write_bytes((root / "out.jsonl").read_bytes())
    assert len(read(tmp_path / "copy.jsonl")) == 200


def test_it_runs_within_a_loop_that_runs_already(server: Server, many: Path, tmp_path: Path):
    async def notebook() -> int:
        return send(many, tmp_path / "out.jsonl", server).sent

    assert asyncio.run(notebook()) == 200


def test_the_command_says_how_it_went_and_shows_no_key(
    server: Server, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TANDEM_API_KEY", "not-this-one")
    (tmp_path / "key").write_text(KEY + "\n")
    out = tmp_path / "out.jsonl"
    server.faults = {"r3": [JSONResponse({"error": {}}, status_code=400)]}
    words = [str(many), str(out), "--model", "tiny", "--url", server.url, "--api-key-file"]
    first = CliRunner().invoke(batch, [*words, str(tmp_path / "key")])
    assert first.exit_code == 1
    assert first.stdout.startswith("200 requests: 199 answered, 1 failed (again: --retry-failed); 995 tokens")
    assert server.keys == {f"Bearer {KEY}"}
    second = CliRunner().invoke(batch, [*words, str(tmp_path / "key"), "--retry-failed", "--json"])
    assert second.exit_code == 0 and json.loads(second.stdout)["sent"] == 1
    assert KEY not in first.output + second.output + out.read_text()


def test_a_job_does_not_carry_a_key_into_the_dashboard(many: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TANDEM_API_KEY", KEY)
    refused = CliRunner().invoke(batch, [str(many), "out.jsonl", "--job", "--model", "tiny"])
    assert isinstance(refused.exception, ConfigError)
    assert "--api-key-file" in str(refused.exception) and KEY not in str(refused.exception)


@pytest.mark.parametrize("file", sorted((ROOT / "examples/batch").glob("*.jsonl")), ids=lambda f: f.name)
def test_the_examples_are_valid(file: Path):
    from runtime.batch_file import check_input

    assert len(check_input(file, str(file), "docstrings").custom_ids) == 3
