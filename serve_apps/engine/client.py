"""vLLM's engine client, counting each request's tokens where they pass anyway: no stream is parsed for it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM

from serve_apps.engine.adapters import for_engine
from serve_apps.tally import CURRENT, Tally


class CountingLLM(AsyncLLM):
    """An :class:`AsyncLLM` that adds every request's tokens to the tally of the HTTP request behind it.

    One HTTP request may become several of the engine's (a list of prompts, ``n`` beams): they share a tally.
    """

    async def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[RequestOutput, None]:
        """As vLLM's own."""
        tally = CURRENT.get()
        if adapter := kwargs.get("lora_request"):
            kwargs["lora_request"] = for_engine(adapter)
            if tally is not None:
                tally.model = adapter.lora_name
        # Closed with us: one that is only dropped aborts its request when the collector comes by.
        async with aclosing(super().generate(*args, **kwargs)) as outputs:
            if tally is None:
                async for output in outputs:
                    yield output
                return
            seen = _Seen(tally)
            async for output in outputs:
                seen.add(output)
                yield output

    async def encode(self, *args: Any, **kwargs: Any) -> AsyncGenerator[PoolingRequestOutput, None]:
        """As vLLM's own."""
        tally = CURRENT.get()
        if adapter := kwargs.get("lora_request"):
            kwargs["lora_request"] = for_engine(adapter)
        async with aclosing(super().encode(*args, **kwargs)) as outputs:
            async for output in outputs:
                if tally is not None and output.finished:
                    tally.prompt_tokens += len(output.prompt_token_ids)
                yield output


class _Seen:
    """What of one engine request has been counted."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._prompt_counted = False

    def add(self, output: RequestOutput) -> None:
        tally = self._tally
        if not self._prompt_counted and output.prompt_token_ids is not None:
            self._prompt_counted = True
            tally.prompt_tokens += len(output.prompt_token_ids)
        # The server asks for deltas (streams) or for the final output alone, so nothing is counted twice.
        new = sum(len(completion.token_ids) for completion in output.outputs)
        if new and tally.first_token_at is None:
            tally.first_token_at = time.monotonic()
        tally.completion_tokens += new
