"""The HTTP side of a batch: one request, tried again while that may help."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import tenacity

from cluster.rest import is_remote
from runtime.batch_file import BatchRequest
from runtime.core.errors import ServeError

_FIRST_PATIENCE_S = 20.0
"""For the first look at the endpoint: a wrong port should not take minutes to be told."""
_MOST_500 = 4
"""An engine that fails on a request will fail again; the tries are for one that died of another's."""
_BUSY_OR_AWAY = (408, 429, 502, 503, 504)
_MOST_WAIT_S = 30.0
_backoff = tenacity.wait_random_exponential(multiplier=0.25, max=_MOST_WAIT_S)


class Client:
    """Asks one endpoint.

    Args:
        endpoint: ``http://host:8000``, with or without ``/v1``.
        concurrency: Connections at most.
        patience_s: How long one request is tried again.
        timeout_s: How long one answer may take.
    """

    def __init__(
        self, endpoint: str, *, api_key: str | None, concurrency: int, patience_s: float, timeout_s: float
    ) -> None:
        self.endpoint = endpoint.rstrip("/").removesuffix("/v1")
        self._patience_s = patience_s
        self._settings = {
            "headers": {"authorization": f"Bearer {api_key}"} if api_key else {},
            "limits": httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            "timeout": httpx.Timeout(timeout_s, connect=10, pool=None),
            # A proxy from the environment is for other machines, never for this one.
            "trust_env": is_remote(endpoint),
        }

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Keep connections within the block."""
        async with httpx.AsyncClient(**self._settings) as self._http:  # type: ignore[arg-type]
            yield

    async def models(self) -> list[str] | None:
        """Names that are served; None where the endpoint does not tell.

        Raises:
            ServeError: it cannot be reached, or refuses the key.
        """
        response = await self._patiently("GET", "/v1/models", None, min(self._patience_s, _FIRST_PATIENCE_S))
        try:
            cards = response.json()["data"]
            # The front lists an app once, and answers to its version too.
            return [str(name) for card in cards for name in (card["id"], card.get("version")) if name]
        except (ValueError, KeyError, TypeError):
            return None

    async def ask(self, request: BatchRequest) -> httpx.Response:
        """The answer to one request, be it a refusal.

        Raises:
            ServeError: the endpoint was away for all of our patience, or refuses the key: the others would
                fare no better.
        """
        return await self._patiently(request.method, request.url, request.body, self._patience_s)

    async def _patiently(
        self, method: str, path: str, body: dict[str, object] | None, patience_s: float
    ) -> httpx.Response:
        def is_over(state: tenacity.RetryCallState) -> bool:
            status = _status(state)
            tries_left = status in (None, *_BUSY_OR_AWAY) or state.attempt_number < _MOST_500
            return (state.seconds_since_start or 0) + state.upcoming_sleep > patience_s or not tries_left

        attempts = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(httpx.TransportError)
            | tenacity.retry_if_result(lambda answer: answer.status_code in (500, *_BUSY_OR_AWAY)),
            wait=_wait,
            stop=is_over,
            # The last answer, be it a failure; the last exception as it is.
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
        )
        try:
            answer: httpx.Response = await attempts(
                self._http.request, method, self.endpoint + path, json=body
            )
        except httpx.TransportError as error:
            raise ServeError(
                f"{self.endpoint} has not answered for {patience_s:g} s ({type(error).__name__}: {error}). "
                "Check that it is served (tandem status); the same command then goes on from here."
            ) from None
        if answer.status_code == 401:
            raise ServeError(
                f"{self.endpoint} refuses the API key. Put a valid one into TANDEM_API_KEY or a file for "
                "--api-key-file (a new one: tandem keys create NAME); the same command goes on from here."
            )
        return answer


def _status(state: tenacity.RetryCallState) -> int | None:
    outcome = state.outcome
    return None if outcome is None or outcome.failed else int(outcome.result().status_code)


def _wait(state: tenacity.RetryCallState) -> float:
    """What the server asks for, else longer and longer."""
    outcome = state.outcome
    asked = "" if outcome is None or outcome.failed else outcome.result().headers.get("retry-after", "")
    # Spread out: all that were refused together would come back together.
    return float(asked) + _backoff(state) if asked.isdigit() else _backoff(state)
