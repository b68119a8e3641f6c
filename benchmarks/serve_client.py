"""The load of benchmarks/serve.py: streaming completions on raw asyncio connections, in a process of its own.

    python benchmarks/serve_client.py JOB.json        # prints one JSON object

Raw protocols on uvloop and not aiohttp or vLLM's bench module: the client shares the two cores with
what it measures, and a client
that parses every event would take more of them. Here a
chunk costs one
count of `data: {`; the client's own CPU time is part of the report. Tokens are not counted from the stream (a
busy server puts several into one event): `ignore_eos` fixes them.
"""

import asyncio
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

_EVENT = b"data: {"
_LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True)
class Job:
    """What one client does."""

    url: str
    """Where completions are asked for."""
    bodies: list[str]
    """The requests, as JSON."""
    concurrency: int
    """Connections, each with one request in flight at a time."""
    idle_connections: int = 0
    """Further connections that are open and say nothing after one request of theirs."""
    headers: dict[str, str] = field(default_factory=dict)
    """Beside those that HTTP wants."""
    hold_s: float = 0
    """How long the idle connections stay before the load begins."""


class _Connection(asyncio.Protocol):
    """One kept-alive connection; times the events of one response after the other."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.done: asyncio.Future[None] | None = None
        self.event_times_s: list[float] = []
        self._tail = b""
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_exception(exc or ConnectionError(f"closed within a response: {self._head[:200]!r}"))

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter()
        if self.done is None:
            return
        if len(self._head) < 400:
            self._head += data[:400]
        text = self._tail + data
        if text.count(_EVENT):
            self.event_times_s.append(now_s)
        # An event's mark may be cut in two; a whole one must not count twice.
        self._tail = text[-(len(_EVENT) - 1) :]
        if text.endswith(_LAST_CHUNK) and not self.done.done():
            if self._head.startswith(b"HTTP/1.1 200"):
                self.done.set_result(None)
            else:
                self.done.set_exception(ConnectionError(f"refused: {self._head[:400]!r}"))

    @property
    def is_last(self) -> bool:
        """Whether the server announced that it closes after this response, as HAProxy does at a reload."""
        return b"\r\nconnection: close\r\n" in self._head.lower()

    async def ask(self, request: bytes) -> tuple[float, list[float]]:
        """When it was sent, and when the events came."""
        self.event_times_s, self._tail, self._head = [], b"", b""
        self.done = asyncio.get_running_loop().create_future()
        sent_s = time.perf_counter()
        self.transport.write(request)
        await self.done
        self.done = None
        return sent_s, self.event_times_s


async def _run(job: Job) -> dict[str, Any]:
    parts = urlsplit(job.url)
    head = _head(parts.netloc, parts.path, job.headers)
    connect = _connector(parts.hostname or "127.0.0.1", parts.port or 80)
    idle = [await connect() for _ in range(job.idle_connections)]
    models = parts.path.removesuffix("/completions") + "/models"
    looks = f"GET {models} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n"
    for connection in idle:
        connection.transport.write(looks.encode())
    await asyncio.sleep(job.hold_s)
    requests = iter([head(body) for body in job.bodies])
    taken: list[tuple[float, list[float], float]] = []

    async def one_client() -> None:
        connection = await connect()
        for request in requests:
            sent_s, events_s = await connection.ask(request)
            taken.append((sent_s, events_s, time.perf_counter()))
            if connection.is_last:
                connection = await connect()
        connection.transport.close()

    before = resource.getrusage(resource.RUSAGE_SELF)
    began_s = time.perf_counter()
    await asyncio.gather(*(one_client() for _ in range(job.concurrency)))
    wall_s = time.perf_counter() - began_s
    after = resource.getrusage(resource.RUSAGE_SELF)
    closed = sum(connection.transport.is_closing() for connection in idle)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return _figures(taken, wall_s) | {"client_cpu_s": cpu_s, "idle_closed": closed}


def _head(host: str, path: str, headers: dict[str, str]) -> Callable[[str], bytes]:
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json"]
    start = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items())])

    def request(body: str) -> bytes:
        return f"{start}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()

    return request


def _connector(host: str, port: int) -> Callable[[], Any]:
    async def connect() -> _Connection:
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, host, port)
        return connection

    return connect


def _figures(taken: list[tuple[float, list[float], float]], wall_s: float) -> dict[str, Any]:
    first_ms = [(events[0] - sent) * 1000 for sent, events, _ in taken]
    gaps_ms = [(b - a) * 1000 for _, events, _ in taken for a, b in pairwise(events)]
    return {
        "requests": len(taken),
        "wall_s": wall_s,
        "requests_per_s": len(taken) / wall_s,
        "ttft_p50_ms": statistics.median(first_ms),
        "ttft_p99_ms": _quantile(first_ms, 0.99),
        "itl_p50_ms": statistics.median(gaps_ms) if gaps_ms else 0.0,
        "itl_p99_ms": _quantile(gaps_ms, 0.99) if gaps_ms else 0.0,
        "latency_p50_ms": statistics.median((end - sent) * 1000 for sent, _, end in taken),
    }


def _quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    """Read the job, run it, print its figures."""
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    print(json.dumps(uvloop.run(_run(job))))


if __name__ == "__main__":
    main()
