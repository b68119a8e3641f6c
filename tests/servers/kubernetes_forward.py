"""A pod's port-forward in the Kubernetes stand-in: ``v4.channel.k8s.io`` over a websocket, to a local port.

Each port has a data channel and an error channel; both begin with the port's number, two bytes, low first.
"""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import WSMsgType, web

_READ_BYTES = 64 * 1024


async def forward(request: web.BaseRequest, local_port: int) -> web.StreamResponse:
    """Joins the websocket with a connection to ``local_port``, until one of them ends."""
    port = int(request.query["ports"])
    answer = web.WebSocketResponse(protocols=["v4.channel.k8s.io"])
    await answer.prepare(request)
    number = port.to_bytes(2, "little")
    await answer.send_bytes(b"\x00" + number)
    await answer.send_bytes(b"\x01" + number)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", local_port)
    except OSError as error:
        await answer.send_bytes(b"\x01" + f"connection refused: {error}".encode())
        await answer.close()
        return answer
    back = asyncio.create_task(_back(reader, answer))
    try:
        async for message in answer:
            if message.type == WSMsgType.BINARY and message.data[0] == 0:
                writer.write(message.data[1:])
                await writer.drain()
    finally:
        back.cancel()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return answer


async def _back(reader: asyncio.StreamReader, answer: web.WebSocketResponse) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(_READ_BYTES):
            await answer.send_bytes(b"\x00" + data)
    await answer.close()
