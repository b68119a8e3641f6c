"""Clients that people have, against one running app."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.conftest import TestCluster
from tests.serve.clients import QUESTION, SCHEMA, TOOL, curl, vllm_bench

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

MODEL = "clients"


@pytest.fixture(scope="module")
def base_url(inputs: TestCluster) -> Iterator[str]:
    """Where the app answers, without ``/v1``."""
    app = inputs.tandem().serve(
        {
            "name": MODEL,
            "model": "docstrings-base",
            "auth": "none",
            "engine": {
                "enable_auto_tool_choice": True,
                "tool_call_parser": "hermes",
                # A model that knows nothing would write white space for ever.
                "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
            },
        }
    )
    app.wait(240)
    yield app.url
    app.stop()


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    http_client = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(
        base_url=f"{base_url}/v1", api_key="none", http_client=http_client, max_retries=0
    ) as client:
        yield client


def test_openai_answers_whole_and_streamed_alike(client: openai.OpenAI):
    create = client.chat.completions.create
    # Drawn by a seed: the untrained model's likeliest tokens have no text.
    whole = create(model=MODEL, messages=QUESTION, seed=7, max_tokens=12)
    pieces = list(
        create(
            model=MODEL, messages=QUESTION, seed=7, max_tokens=12,
            stream=True, stream_options={"include_usage": True},
        )
    )  # fmt: skip
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert whole.usage and pieces[-1].usage
    assert text and text == whole.choices[0].message.content
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens == 12
    assert MODEL in [model.id for model in client.models.list()]


def test_openai_async_has_many_in_flight(base_url: str):
    async def main() -> list[str | None]:
        http_client = openai.DefaultAsyncHttpxClient(trust_env=False)
        async with openai.AsyncOpenAI(
            base_url=f"{base_url}/v1", api_key="none", http_client=http_client
        ) as client:
            asked = [
                client.completions.create(model=MODEL, prompt="def", max_tokens=4, temperature=0)
                for _ in range(8)
            ]
            return [answer.choices[0].text for answer in await asyncio.gather(*asked)]

    answers = asyncio.run(main())
    assert len(answers) == 8 and len(set(answers)) == 1


def test_a_tool_that_is_asked_for_is_called_with_arguments_of_its_schema(client: openai.OpenAI):
    # An untrained model: only the grammar makes these arguments fit. It holds to no limit of white space,
    # hence the room; cut short, the call would be plain content.
    reply = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=400,
        seed=3,
        tools=[TOOL],  # type: ignore[list-item]
        tool_choice={"type": "function", "function": {"name": "look_up"}},
    )
    (call,) = reply.choices[0].message.tool_calls or []
    arguments = json.loads(call.function.arguments)  # type: ignore[union-attr]
    assert call.function.name == "look_up"  # type: ignore[union-attr]
    assert set(arguments) == {"module", "deep"} and arguments["module"] in ("os", "json")


def test_structured_output_follows_the_schema(client: openai.OpenAI):
    reply = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=64,
        response_format={"type": "json_schema", "json_schema": {"name": "found", "schema": SCHEMA}},
    )
    found = json.loads(reply.choices[0].message.content or "")
    assert found["kind"] in ("function", "class") and isinstance(found["is_pure"], bool)


def test_logprobs_come_for_every_token(client: openai.OpenAI):
    reply = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=4, logprobs=True, top_logprobs=3, temperature=0
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs and logprobs.content and len(logprobs.content) == 4
    for token in logprobs.content:
        assert len(token.top_logprobs) == 3 and token.logprob <= 0
        assert token.logprob == pytest.approx(max(other.logprob for other in token.top_logprobs))


def test_langchain_invokes_and_streams_alike(base_url: str):
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    chat = ChatOpenAI(
        model=MODEL,
        base_url=f"{base_url}/v1",
        api_key=SecretStr("none"),
        seed=7,
        max_completion_tokens=12,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )
    whole = chat.invoke("What does os.getcwd do?")
    assert whole.usage_metadata and whole.usage_metadata["output_tokens"] == 12
    pieces = [str(piece.content) for piece in chat.stream("What does os.getcwd do?")]
    assert len([piece for piece in pieces if piece]) > 1 and "".join(pieces) == whole.content


def test_anthropics_client_gets_a_message(base_url: str):
    import anthropic

    http_client = anthropic.DefaultHttpxClient(trust_env=False)
    with anthropic.Anthropic(base_url=base_url, api_key="none", http_client=http_client) as client:
        reply = client.messages.create(model=MODEL, max_tokens=12, messages=QUESTION)
        assert reply.role == "assistant" and reply.usage.output_tokens == 12
        assert reply.content[0].type == "text"
        with client.messages.stream(model=MODEL, max_tokens=12, messages=QUESTION) as stream:
            assert stream.get_final_message().usage.output_tokens > 0


def test_curl_reads_a_stream_to_its_end(base_url: str):
    body = {"model": MODEL, "prompt": "def main():", "max_tokens": 4, "ignore_eos": True, "stream": True}
    lines = [line for line in curl(f"{base_url}/v1/completions", body, "--no-buffer").splitlines() if line]
    assert lines[-1] == "data: [DONE]" and len(lines) == 5


def test_vllms_own_load_generator_is_served(base_url: str, inputs: TestCluster, tmp_path: Path):
    with inputs.store.model("docstrings-base").fetch() as model:
        result = vllm_bench(base_url, MODEL, model.path, tmp_path, requests=6)
    assert (result["completed"], result["total_output_tokens"]) == (6, 48)


def test_embeddings_of_a_model_without_them_are_refused(base_url: str):
    body = {"model": MODEL, "input": "os.getcwd"}
    reply = httpx.post(f"{base_url}/v1/embeddings", json=body, timeout=60, trust_env=False)
    assert reply.status_code == 404
