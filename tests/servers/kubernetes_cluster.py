"""A test's handle on the Kubernetes stand-in: what users, operators, schedulers and kubelets did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.servers import kubernetes_fields as fields
from tests.servers import kubernetes_status as status
from tests.servers.kubernetes_kinds import CUSTOM
from tests.servers.kubernetes_state import State

Json = dict[str, Any]


class Cluster:
    """The cluster behind one server."""

    def __init__(self, token: str | None) -> None:
        self.url = ""
        """The API server's."""
        self.token = token
        self.version = "v1.36.1"
        self.requests: list[tuple[str, str]] = []
        """(method, path) of every request."""
        self.forbidden: set[tuple[str, str]] = set()
        """(verb, plural) that the account may not."""
        self.only_in: str | None = None
        """The only namespace in which the account may do anything, as with a RoleBinding; None: in all."""
        self.outage = 0
        """So many requests more are answered 503, as while an API server is upgraded."""
        self.ports: dict[tuple[str, str], int] = {}
        """The local port to which port-forwards of (namespace, pod) lead."""
        self.logs: dict[tuple[str, str], str] = {}
        """The log of (namespace, pod)."""
        self.state = State()
        for name in ("default", "kube-system"):
            self.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    def install(self, *projects: str) -> None:
        """Add the kinds of projects: kuberay, prometheus, gpu-operator, gateway, kueue."""
        with self.state.lock:
            for project in projects:
                self.state.kinds += [kind for kind in CUSTOM[project] if kind not in self.state.kinds]

    def put(self, manifest: Json, *, manager: str = "kubectl") -> Json:
        """The object as it is from now on, created or replaced, with its status."""
        kind = self.state.named(manifest["kind"])
        metadata = manifest["metadata"]
        with self.state.lock:
            key = (kind.name, metadata.get("namespace") if kind.namespaced else None, metadata["name"])
            stored = self.state.objects.get(key)
            if stored is None:
                return self.state.create(kind, metadata.get("namespace"), manifest, manager, dry_run=False)
            return self.state.patch(
                stored, lambda old: {**manifest, "metadata": old["metadata"] | metadata}, manager
            )

    def change(
        self, kind: str, name: str, body: Json, *, namespace: str | None = None, manager: str = "kubectl"
    ) -> Json:
        """Merge patch, as a person or an operator does."""
        with self.state.lock:
            stored = self.state.get(self.state.named(kind), namespace, name)
            return self.state.patch(stored, lambda old: fields.merged(old, body), manager)

    def set_status(self, kind: str, name: str, body: Json, *, namespace: str | None = None) -> Json:
        """Merge into the status, as the operator does."""
        with self.state.lock:
            stored = self.state.get(self.state.named(kind), namespace, name)
            merged = {"status": body}
            return self.state.patch(
                stored, lambda old: fields.merged(old, merged), "kuberay-operator", subresource="status"
            )

    def get(self, kind: str, name: str, *, namespace: str | None = None) -> Json | None:
        """The object, if there is one."""
        with self.state.lock:
            try:
                return self.state.get(self.state.named(kind), namespace, name).shown()
            except status.Refusal:
                return None

    def delete(self, kind: str, name: str, *, namespace: str | None = None) -> None:
        """End it, dependents included."""
        with self.state.lock:
            self.state.delete(self.state.get(self.state.named(kind), namespace, name))

    def refuse(self, kind: str, name: str, message: str) -> None:
        """An admission webhook denies every write of this object from now on."""
        self.state.refusals[kind, name] = message

    def names(self, kind: str, *, namespace: str | None = None) -> list[str]:
        """The names of all objects of a kind."""
        with self.state.lock:
            found = self.state.all(self.state.named(kind), namespace)
            return [one.body["metadata"]["name"] for one in found]

    def asked(self, method: str, part: str) -> int:
        """How many requests there were with this method and this in their path."""
        return sum(1 for one, path in self.requests if one == method and part in path)

    def port_of(self, namespace: str | None, pod: str) -> int:
        """Where a port-forward to the pod leads."""
        self.state.get(self.state.named("Pod"), namespace, pod)
        return self.ports[str(namespace), pod]

    def log_of(self, namespace: str | None, pod: str) -> str:
        """A pod's log."""
        return self.logs.get((str(namespace), pod), "")

    def kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig that names the server, its context ``stand-in``."""
        user = {"token": self.token} if self.token else {}
        named = {"cluster": {"server": self.url}, "name": "stand-in"}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [named],
            "users": [{"name": "tester", "user": user}],
            "contexts": [{"name": "stand-in", "context": {"cluster": "stand-in", "user": "tester"}}],
            "current-context": "stand-in",
        }
        path.write_text(json.dumps(content), encoding="utf-8")
        return path
