"""A small stand-in for a Kubernetes API server over HTTP, for tests. It is not Kubernetes.

It speaks as much of the API as Tandem uses, as Kubernetes documents it: discovery, get, list, watch, create,
server-side apply, merge and JSON patch, delete, dry run, eviction, a pod's log and port-forward. No
controller, operator, scheduler or kubelet runs: what they would write, a test writes through ``Cluster``. It
checks no schemas, fills in no defaults and has one account; what passes here can still fail at a real API
server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from aiohttp import web

from tests.servers import kubernetes_fields as fields
from tests.servers import kubernetes_kinds as kinds
from tests.servers import kubernetes_status as status
from tests.servers.kubernetes_cluster import Cluster
from tests.servers.kubernetes_forward import forward
from tests.servers.kubernetes_kinds import Kind
from tests.servers.kubernetes_select import evict, selected

_VERBS = {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}
_START_S = 30.0


@contextlib.contextmanager
def kubernetes_api(*, token: str | None = None) -> Iterator[Cluster]:
    """A server on 127.0.0.1 and a free port, with the namespaces default and kube-system.

    Args:
        token: Refuse requests without this bearer token.
    """
    cluster = Cluster(token)
    server = _Server(cluster)
    thread = threading.Thread(target=lambda: asyncio.run(server.run()), name="kubernetes-api", daemon=True)
    thread.start()
    assert server.started.wait(_START_S), "the stand-in did not start"
    try:
        yield cluster
    finally:
        server.end()
        thread.join(_START_S)


class _Server:
    """Answers every request out of the cluster's state."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.state = cluster, cluster.state
        self.started = threading.Event()
        self.watches: set[asyncio.Event] = set()
        """One for each watch that is open: set when there may be news."""

    async def run(self) -> None:
        """Answer requests until ``end``."""
        self.loop, self.over = asyncio.get_running_loop(), asyncio.Event()
        runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.cluster.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self.state.listeners.append(lambda: self.loop.call_soon_threadsafe(self._wake))
        self.started.set()
        await self.over.wait()
        self.state.listeners.clear()
        await runner.cleanup()

    def end(self) -> None:
        """From another thread: stop, whoever is connected."""
        self.loop.call_soon_threadsafe(self.over.set)

    def _wake(self) -> None:
        for watch in self.watches:
            watch.set()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.cluster.requests.append((request.method, request.path))
        try:
            if self.cluster.outage:
                self.cluster.outage -= 1
                raise status.Refusal(503, "ServiceUnavailable", "the server is currently unable to answer")
            token = self.cluster.token
            if token is not None and request.headers.get("Authorization") != f"Bearer {token}":
                raise status.unauthorized()
            return await self._answer(request, request.path.strip("/").split("/"))
        except status.Refusal as refusal:
            return web.json_response(refusal.status(), status=refusal.code)

    async def _answer(self, request: web.BaseRequest, way: list[str]) -> web.StreamResponse:
        if way == ["version"]:
            return web.json_response({"major": "1", "minor": "36", "gitVersion": self.cluster.version})
        if way == ["apis"]:
            return web.json_response(kinds.groups(self.state.kinds))
        api_version, way = (way[1], way[2:]) if way[0] == "api" else ("/".join(way[1:3]), way[3:])
        if not way:
            found = kinds.resources(self.state.kinds, api_version)
            if found is None:
                raise status.no_page()
            return web.json_response(found)
        namespace = None
        if way[0] == "namespaces" and len(way) > 2:
            namespace, way = way[1], way[2:]
        return await self._of_kind(request, self.state.kind(api_version, way[0]), namespace, way[1:])

    async def _of_kind(
        self, request: web.BaseRequest, kind: Kind, namespace: str | None, way: list[str]
    ) -> web.StreamResponse:
        self._authorize(request, kind, namespace, way)
        if way[1:] == ["portforward"]:
            return await forward(request, self.cluster.port_of(namespace, way[0]))
        if not way and request.query.get("watch"):
            return await self._watch(request, kind, namespace)
        body = json.loads(await request.read() or b"null")
        with self.state.lock:
            if way[1:] == ["log"]:
                return web.Response(text=self.cluster.log_of(namespace, way[0]))
            if way[1:] == ["eviction"]:
                evict(self.state, namespace, way[0])
                return web.json_response(
                    {"kind": "Status", "apiVersion": "v1", "status": "Success"}, status=201
                )
            if not way:
                return self._collection(request, kind, namespace, body)
            return self._object(request, kind, namespace, way[0], body)

    def _authorize(self, request: web.BaseRequest, kind: Kind, namespace: str | None, way: list[str]) -> None:
        verb = "list" if request.method == "GET" and not way else _VERBS[request.method]
        if kind.name == "Namespace" and verb == "get":
            # The API server takes it for a request in that namespace.
            namespace = way[0]
        outside = self.cluster.only_in not in (None, namespace)
        if outside or (verb, kind.plural) in self.cluster.forbidden:
            raise status.forbidden(verb, kind.plural)

    def _collection(
        self, request: web.BaseRequest, kind: Kind, namespace: str | None, body: Any
    ) -> web.Response:
        if request.method == "POST":
            made = self.state.create(kind, namespace, body, _manager(request), dry_run=_dry(request))
            return web.json_response(made, status=201)
        items = [one.shown() for one in self.state.all(kind, namespace) if selected(one.body, request.query)]
        metadata = {"resourceVersion": str(self.state.version)}
        words = {"kind": f"{kind.name}List", "apiVersion": kind.api_version, "metadata": metadata}
        for item in items:
            del item["kind"], item["apiVersion"]
        return web.json_response({**words, "items": items})

    def _object(
        self, request: web.BaseRequest, kind: Kind, namespace: str | None, name: str, body: Any
    ) -> web.Response:
        if request.content_type == "application/apply-patch+yaml":
            force = request.query.get("force") == "true"
            found = self.state.apply(
                kind, namespace, body, request.query["fieldManager"], force=force, dry_run=_dry(request)
            )
            return web.json_response(found)
        stored = self.state.get(kind, namespace, name)
        if request.method == "PATCH":
            found = self.state.patch(
                stored, _change(request.content_type, body), _manager(request), dry_run=_dry(request)
            )
            return web.json_response(found)
        shown = stored.shown()
        if request.method == "DELETE" and not _dry(request):
            self.state.delete(stored, propagation=request.query.get("propagationPolicy", "Background"))
        return web.json_response(shown)

    async def _watch(self, request: web.BaseRequest, kind: Kind, namespace: str | None) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        deadline = self.loop.time() + float(request.query.get("timeoutSeconds", "60"))
        seen = int(request.query.get("resourceVersion") or 0)
        if not seen:
            with self.state.lock:
                there, seen = list(self.state.all(kind, namespace)), self.state.version
            await _send(
                response, [("ADDED", one.shown()) for one in there if selected(one.body, request.query)]
            )
        news = asyncio.Event()
        self.watches.add(news)
        try:
            while (left := deadline - self.loop.time()) > 0:
                news.clear()
                seen = await self._send_news(response, request.query, kind, namespace, seen)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), left)
        finally:
            self.watches.discard(news)
        await response.write_eof()
        return response

    async def _send_news(
        self,
        response: web.StreamResponse,
        query: Mapping[str, str],
        kind: Kind,
        namespace: str | None,
        seen: int,
    ) -> int:
        """Sends what is newer than ``seen``; the newest version."""
        with self.state.lock:
            news = [one for one in self.state.events if one.version > seen and one.key[0] == kind.name]
            seen = self.state.version
        mine = [one for one in news if namespace in (None, one.key[1]) and selected(one.body, query)]
        await _send(response, [(one.type, one.body) for one in mine])
        return seen


async def _send(response: web.StreamResponse, events: list[tuple[str, Any]]) -> None:
    for type_, body in events:
        await response.write(json.dumps({"type": type_, "object": body}).encode() + b"\n")


def _change(content_type: str, body: Any) -> Any:
    if content_type == "application/json-patch+json":
        return lambda old: fields.json_patched(old, body)
    return lambda old: fields.merged(old, body)


def _manager(request: web.BaseRequest) -> str:
    return str(request.query.get("fieldManager") or request.headers.get("User-Agent", "?").partition("/")[0])


def _dry(request: web.BaseRequest) -> bool:
    return request.query.get("dryRun") == "All"
