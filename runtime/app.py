"""One serve app, as its owner sees it: where it answers, how it stands, and a client for it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cluster import applications
from cluster.ledger.shown import picture
from cluster.rest import is_remote
from runtime.core.errors import ClusterError, ServeError, TandemError, WaitTimeout
from runtime.show import table_html
from serve_apps.live_stats import read_stats
from serve_apps.plan import IMPORT_PATH
from serve_apps.status import why
from storage import attached
from storage.location import side_by_side
from storage.patience import patience
from storage.store import open_store

if TYPE_CHECKING:
    from openai import OpenAI

_POLL_S = 0.5
_STATS = ("running", "waiting", "tokens_per_s", "ttft_s", "kv_cache_usage")
_FORGET_S = 5.0


class App:
    """A deployed serve app. Get one from ``Tandem.serve``, ``Tandem.app`` or ``Tandem.apps``."""

    def __init__(self, dashboard_url: str, name: str) -> None:
        self.dashboard_url, self.name = dashboard_url, name

    @property
    def status(self) -> str:
        """Serve's word: ``DEPLOYING``, ``RUNNING``, ``DEPLOY_FAILED``, ``UNHEALTHY``, ``NOT_STARTED``, ..."""
        return str(self.describe()["status"])

    @property
    def url(self) -> str:
        """Where it alone answers, without ``/v1``."""
        return str(self.describe()["url"]).removesuffix("/v1")

    @property
    def endpoint(self) -> str:
        """``http://host:port/v1``, where all apps answer by the request's ``model``."""
        return str(self.describe()["endpoint"])

    @property
    def model(self) -> str | None:
        """The model version that it serves."""
        return self.describe()["model"]

    @property
    def message(self) -> str:
        """The cause of the status, without tracebacks; empty when all is well."""
        return self.describe()["message"] or ""

    def wait(self, timeout_s: float = 600) -> App:
        """Return when it answers.

        Raises:
            ServeError: it failed to deploy; holds the replica's own message. Or it is gone.
            WaitTimeout: it does not answer after ``timeout_s``; it is left alone.
        """
        deadline = time.monotonic() + timeout_s
        while (status := self.status) != "RUNNING":
            if status in ("DEPLOY_FAILED", "NOT_STARTED", "DELETING"):
                raise ServeError(f"app {self.name} is {status}: {self.message or 'it is not deployed'}")
            if time.monotonic() > deadline:
                why_still = f": {self.message}" if self.message else ""
                raise WaitTimeout(f"app {self.name} is still {status} after {timeout_s:.0f} s{why_still}")
            time.sleep(_POLL_S)
        return self

    def openai(self) -> OpenAI:
        """An ``openai`` client for this app, with the key in ``$TANDEM_API_KEY``. Waits until it answers."""
        from openai import DefaultHttpxClient, OpenAI

        self.wait()
        # A proxy from the environment is for other machines, never for this one.
        endpoint = self.endpoint
        http_client = DefaultHttpxClient(trust_env=is_remote(endpoint))
        # The client insists on a key; an app with `auth: none` looks at none.
        key = os.environ.get("TANDEM_API_KEY") or "none"
        return OpenAI(base_url=endpoint, api_key=key, timeout=600, http_client=http_client)

    def chat(self, messages: str | Iterable[Mapping[str, Any]], **parameters: Any) -> str:
        """The model's reply to a question, or to a list of chat messages.

        Args:
            messages: A user's text, or messages in OpenAI's form.
            parameters: More fields of a chat completion (``temperature``, ``max_tokens``, ...).
        """
        asked = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        with self.openai() as client:
            create: Any = client.chat.completions.create
            reply = create(model=self.name, messages=asked, **parameters)
        return str(reply.choices[0].message.content)

    def stop(self, timeout_s: float = 120) -> None:
        """Delete the app and return when its replicas have ended.

        Raises:
            WaitTimeout: replicas still run after ``timeout_s``.
        """
        deployed = applications.applications(self.dashboard_url).get(self.name, {})
        applications.delete(self.dashboard_url, self.name)
        deadline = time.monotonic() + timeout_s
        while self.status != "NOT_STARTED":
            if time.monotonic() > deadline:
                raise WaitTimeout(f"app {self.name} still has replicas after {timeout_s:.0f} s")
            time.sleep(_POLL_S)
        _forget_adapters(deployed.get("deployed_app_config") or {})

    def describe(self) -> dict[str, Any]:
        """The app as plain data, for tables and ``--json``: one look at Serve.

        Raises:
            ClusterError: the cluster does not answer.
        """
        serve = applications.details(self.dashboard_url)
        details = (serve.get("applications") or {}).get(self.name, {})
        port = (serve.get("http_options") or {}).get("port", 8000)
        host = urlsplit(self.dashboard_url).hostname
        prefix = str(details.get("route_prefix") or "/").rstrip("/")
        return {
            "name": self.name,
            "status": details.get("status", "NOT_STARTED"),
            "model": (details.get("deployed_app_config") or {}).get("args", {}).get("model"),
            "url": f"http://{host}:{port}{prefix}/v1",
            # Somebody's own Serve app may be at the root instead of the front.
            "endpoint": f"http://{host}:{port}{'' if _has_front(serve) else prefix}/v1",
            "message": why(details) or self._queued(details) or None,
        }

    def _queued(self, details: Mapping[str, Any]) -> str:
        """Its place among those that wait for room; empty where it does not."""
        if details.get("status") != "DEPLOYING":
            return ""
        waiting = (one for one in picture(self.dashboard_url)["waiting"] if one["name"] == self.name)
        one = next(waiting, None)
        return f"number {one['position']} in the queue: {one['reason']}" if one else ""

    def replicas(self) -> list[dict[str, Any]]:
        """One row a replica as it is now: ``state`` (Serve's word), node, process, what its engine does.

        ``running`` and ``waiting`` requests, ``tokens_per_s`` generated and ``ttft_s`` (90th percentile; None
        without a first token) in the last 10 s, ``kv_cache_usage`` from 0 to 1. These are None while it
        starts.
        """
        details = applications.applications(self.dashboard_url).get(self.name, {})
        deployments = (details.get("deployments") or {}).values()
        found = [replica for deployment in deployments for replica in deployment["replicas"]]
        return side_by_side(self._replica, found)

    def _replica(self, details: Mapping[str, Any]) -> dict[str, Any]:
        stats: dict[str, float] = {}
        if details["state"] == "RUNNING":
            stats = read_stats(self.dashboard_url, details["node_id"], details["replica_id"])
        return {
            "app": self.name,
            "replica_id": details["replica_id"],
            "state": details["state"],
            # None until Ray has a place for it.
            "node_ip": details.get("node_ip"),
            "pid": details.get("pid"),
            **{name: stats.get(name) for name in _STATS},
            "ttft_s": stats.get("ttft_s") or None,
        }

    def __repr__(self) -> str:
        shown = self._shown()
        return f"App({self.name!r}, status={shown['status']!r}, url={shown.get('url')!r})"

    def _repr_html_(self) -> str:
        return table_html([self._shown()])

    def _shown(self) -> dict[str, Any]:
        """What to show; a notebook outlives its cluster, and looking at a cell must not fail."""
        try:
            return self.describe()
        except ClusterError:
            return {"name": self.name, "status": "UNREACHABLE"}


def _has_front(serve: Mapping[str, Any]) -> bool:
    front = (serve.get("applications") or {}).get(applications.FRONT, {})
    return front.get("status") in ("RUNNING", "DEPLOYING")


def _forget_adapters(config: Mapping[str, Any]) -> None:
    """What was attached to an app ends with it: another one of its name begins with its own spec."""
    store = config.get("args", {}).get("store")
    if config.get("import_path") == IMPORT_PATH and store:
        with suppress(TandemError), patience(_FORGET_S):  # the app is gone all the same
            attached.clear(open_store(store), config["args"]["name"])
