"""Waiting in front of the engine: so many requests at a time, the others in order, not too many of them."""

from __future__ import annotations

import asyncio
from collections import deque

from serve_apps.refusal import ASGI, Refused


class ClientLeft(Exception):
    """The client closed the connection while it waited."""


class Replay:
    """An ASGI ``receive`` that first gives back what was taken from it already."""

    def __init__(self, receive: ASGI) -> None:
        self._receive = receive
        self._taken: deque[ASGI] = deque()
        self._pending: asyncio.Task[ASGI] | None = None

    async def __call__(self) -> ASGI:
        """The next message."""
        if self._taken:
            return self._taken.popleft()
        if self._pending is not None:
            pending, self._pending = self._pending, None
            return await pending
        return await self._receive()

    async def body(self) -> bytes:
        """The request's body; it is given again afterwards.

        Raises:
            ClientLeft: before all of it came.
        """
        messages: list[ASGI] = []
        while not messages or messages[-1].get("more_body"):
            message = await self()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            messages.append(message)
        self._taken.extend(messages)
        return b"".join(message.get("body", b"") for message in messages)

    async def until(self, turn: asyncio.Future[None]) -> None:
        """Return when it is our turn, listening meanwhile whether the client is still there.

        Raises:
            ClientLeft: it is not.
        """
        while not turn.done():
            # Kept when our turn comes: cancelling it could lose the message that it was about to return.
            if self._pending is None:
                self._pending = asyncio.ensure_future(self._receive())
            await asyncio.wait([turn, self._pending], return_when=asyncio.FIRST_COMPLETED)
            if self._pending.done():
                message, self._pending = self._pending.result(), None
                if message["type"].endswith(".disconnect"):
                    raise ClientLeft
                self._taken.append(message)

    def close(self) -> None:
        """Nobody asks any more."""
        if self._pending is not None:
            self._pending.cancel()


class Admission:
    """The places of one replica, and the queue before them."""

    def __init__(self, *, max_ongoing: int, max_queued: int, retry_after_s: float) -> None:
        self._max_ongoing, self._max_queued, self._retry_after_s = max_ongoing, max_queued, retry_after_s
        self._ongoing = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def ongoing(self) -> int:
        """Requests that have a place."""
        return self._ongoing

    @property
    def queued(self) -> int:
        """Requests that wait for one."""
        return len(self._queue)

    def check_room(self) -> None:
        """Refuse when even the queue is full.

        Raises:
            Refused: 429.
        """
        if self._ongoing >= self._max_ongoing and len(self._queue) >= self._max_queued:
            raise Refused(
                429,
                f"The model is overloaded: {self._ongoing} requests run and {len(self._queue)} wait. "
                f"Try again in {self._retry_after_s:g} s.",
                type="server_overloaded",
                code="overloaded",
                retry_after_s=self._retry_after_s,
            )

    async def enter(self, receive: ASGI) -> ASGI:
        """Take a place, waiting for it in turn. Every ``enter`` that returns wants one ``leave``.

        Returns:
            The ``receive`` to go on with.

        Raises:
            ClientLeft: while it waited; the place in the queue is free again.
        """
        if self._ongoing < self._max_ongoing:
            self._ongoing += 1
            return receive
        replay = receive if isinstance(receive, Replay) else Replay(receive)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await replay.until(turn)
        except BaseException:
            replay.close()
            if turn.done():
                self.leave()
            else:
                self._queue.remove(turn)
            raise
        return replay

    def leave(self) -> None:
        """Give the place to the next one, or back."""
        if self._queue:
            self._queue.popleft().set_result(None)
        else:
            self._ongoing -= 1
