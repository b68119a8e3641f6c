"""vLLM's engine client, telling the tally of an HTTP request which of the engine's requests are for it.

vLLM keeps each request's state while it runs; the tally looks there when it is asked. So no stream is parsed,
no token costs anything, and what is broken off or still runs counts too.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import RequestOutputCollector, RequestState

from serve_apps.engine.adapters import for_engine
from serve_apps.tally import CURRENT


class CountingLLM(AsyncLLM):
    """An :class:`AsyncLLM` whose requests are counted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The one place that every request passes, each of several choices too.
        self._note = self.output_processor.add_request
        self.output_processor.add_request = self._noted

    async def add_request(
        self, request_id: str, prompt: Any, params: Any, *args: Any, lora_request: Any = None, **kwargs: Any
    ) -> RequestOutputCollector:
        """As vLLM's own, under the name that its worker knows the adapter's version by."""
        tally = CURRENT.get()
        if lora_request is not None and tally is not None:
            tally.model = lora_request.lora_name
        adapter = for_engine(lora_request)
        return await super().add_request(request_id, prompt, params, *args, lora_request=adapter, **kwargs)

    def _noted(
        self,
        request: EngineCoreRequest,
        prompt: str | None,
        parent_req: Any = None,
        request_index: int = 0,
        queue: RequestOutputCollector | None = None,
    ) -> None:
        states = self.output_processor.request_states
        known = request.request_id in states
        self._note(request, prompt, parent_req, request_index, queue)
        tally = CURRENT.get()
        if tally is not None and not known:
            # Choices share their prompt.
            tally.works.append(_Work(states[request.request_id], counts_prompt=request_index == 0))


class _Work:
    """A request of the engine's, read from vLLM's own state of it."""

    def __init__(self, state: RequestState, *, counts_prompt: bool) -> None:
        self._state, self._began_at = state, time.monotonic()
        self.prompt_tokens = state.prompt_len if counts_prompt else 0

    @property
    def completion_tokens(self) -> int:
        # A pooling request generates nothing.
        return self._state.detokenizer.num_output_tokens() if self._state.detokenizer else 0

    @property
    def first_token_at(self) -> float | None:
        latency_s = self._state.stats.first_token_latency if self._state.stats else 0.0
        return self._began_at + latency_s if latency_s else None
