"""The one seam to a Kubernetes API server: plain dicts in and out, errors in our words.

Over the official client's dynamic part, which finds out by itself what kinds a cluster has. Import it inside
functions: the official client takes a third of a second to load.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from kubernetes.client import ApiClient, CoreV1Api
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic.exceptions import NotFoundError

from cluster.kubernetes.connection import TIMEOUT_S, Connection
from cluster.kubernetes.workloads import Manifest

MANAGER = "tandem"
"""Field manager of all that we apply, patch and create."""

_WATCH_GRACE_S = 10
_PATCHES = {"merge": "application/merge-patch+json", "json": "application/json-patch+json"}


class Kubernetes(Connection):
    """An API server, as one account: what one may read there, change and end."""

    def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Manifest | None:
        """The object, or None where there is none.

        Raises:
            NoSuchKind: the cluster does not know the kind.
            ClusterError: the API server refuses or does not answer.
        """
        resource = self._resource(api_version, kind)
        with self._in_our_words("read", f"{kind} {name}"):
            try:
                return self._json(resource.get(name=name, namespace=namespace, **self._plain()))
            except NotFoundError:
                return None

    def list(
        self, api_version: str, kind: str, namespace: str | None = None, label_selector: str | None = None
    ) -> list[Manifest]:
        """All objects of a kind, in all namespaces where none is named; each with apiVersion and kind.

        Raises:
            NoSuchKind: the cluster does not know the kind.
            ClusterError: the API server refuses or does not answer.
        """
        resource = self._resource(api_version, kind)
        with self._in_our_words("list", f"{kind}s"):
            found = self._json(
                resource.get(namespace=namespace, label_selector=label_selector, **self._plain())
            )
        # The items of a list leave out what the list says already.
        return [{"apiVersion": api_version, "kind": kind, **item} for item in found["items"]]

    def apply(self, manifest: Manifest, *, force: bool = False, dry_run: bool = False) -> Manifest:
        """Server-side apply as field manager ``tandem``; what the object is, or would be, after it.

        Args:
            force: Take over fields that others own.
            dry_run: Only ask: admission and defaults included, nothing is kept.

        Raises:
            Conflicted: others own fields that would change.
            Invalid: the API server does not take the object.
            NoSuchKind, ClusterError: as ``get`` does.
        """
        resource = self._resource(manifest["apiVersion"], manifest["kind"])
        with self._in_our_words("apply", _name(manifest)):
            return self._json(
                resource.server_side_apply(
                    body=manifest,
                    name=manifest["metadata"]["name"],
                    namespace=manifest["metadata"].get("namespace"),
                    field_manager=MANAGER,
                    force_conflicts="true" if force else None,
                    dry_run="All" if dry_run else None,
                    **self._plain(),
                )
            )

    def patch(
        self,
        api_version: str,
        kind: str,
        name: str,
        body: Any,
        *,
        namespace: str | None = None,
        kind_of_patch: str = "merge",
    ) -> Manifest:
        """Change fields of an object; what it is afterwards.

        Args:
            body: For ``merge`` an object, in which null removes a field and ``metadata.resourceVersion`` is
                a condition; for ``json`` a list of operations.

        Raises:
            Changed: it is no longer at that resourceVersion.
            Invalid, NoSuchKind, ClusterError: as ``apply`` does.
        """
        resource = self._resource(api_version, kind)
        with self._in_our_words("patch", f"{kind} {name}"):
            return self._json(
                resource.patch(
                    body=body,
                    name=name,
                    namespace=namespace,
                    content_type=_PATCHES[kind_of_patch],
                    field_manager=MANAGER,
                    **self._plain(),
                )
            )

    def create(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """A new object, as the server keeps it.

        Args:
            dry_run: Only ask: nothing is kept.

        Raises:
            AlreadyThere: there is one of this name.
            Invalid, NoSuchKind, ClusterError: as ``apply`` does.
        """
        resource = self._resource(manifest["apiVersion"], manifest["kind"])
        with self._in_our_words("create", _name(manifest)):
            return self._json(
                resource.create(
                    body=manifest,
                    namespace=manifest["metadata"].get("namespace"),
                    field_manager=MANAGER,
                    dry_run="All" if dry_run else None,
                    **self._plain(),
                )
            )

    def delete(
        self,
        api_version: str,
        kind: str,
        name: str,
        namespace: str | None = None,
        *,
        propagation: str = "Background",
    ) -> bool:
        """Ask for an object's end; whether it was there. It may stay a while: finalizers, pods that drain."""
        resource = self._resource(api_version, kind)
        with self._in_our_words("delete", f"{kind} {name}"):
            try:
                resource.delete(
                    name=name, namespace=namespace, propagation_policy=propagation, **self._plain()
                )
            except NotFoundError:
                return False
        return True

    def evict(self, pod_name: str, namespace: str) -> None:
        """End a pod as a drain does, which PodDisruptionBudgets may refuse; one that is gone is fine.

        Raises:
            Blocked: a budget keeps it for now.
        """
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod_name, "namespace": namespace},
        }
        path = f"/api/v1/namespaces/{namespace}/pods/{pod_name}/eviction"
        with self._in_our_words("evict", f"Pod {pod_name}"):
            try:
                self._dynamic.request("post", path, body=body, **self._plain())
            except NotFoundError:
                return

    def watch(
        self,
        api_version: str,
        kind: str,
        *,
        namespace: str | None = None,
        name: str | None = None,
        timeout_s: float,
    ) -> Iterator[dict[str, Any]]:
        """Events, ``{"type": "ADDED", "object": {...}}``, beginning with what is there, for so long at most.

        Raises:
            NoSuchKind, ClusterError: as ``get`` does.
        """
        resource = self._resource(api_version, kind)
        with self._in_our_words("watch", f"{kind}s"):
            answer = resource.get(
                namespace=namespace,
                field_selector=f"metadata.name={name}" if name else None,
                watch="true",
                timeout_seconds=max(1, round(timeout_s)),
                serialize=False,
                _request_timeout=(TIMEOUT_S[0], timeout_s + _WATCH_GRACE_S),
            )
            try:
                for line in answer:
                    yield json.loads(line)
            finally:
                answer.release_conn()
                answer.close()

    def logs(self, pod_name: str, namespace: str, *, container: str, lines: int, previous: bool) -> str:
        """The last lines of a container; of the one before its restart where ``previous``. Empty: none."""
        query = f"container={container}&tailLines={lines}&previous={str(previous).lower()}"
        path = f"/api/v1/namespaces/{namespace}/pods/{pod_name}/log?{query}"
        with self._in_our_words("read the log of", f"Pod {pod_name}"):
            try:
                return str(
                    self._dynamic.request("get", path, **self._plain()).data.decode("utf-8", "replace")
                )
            except ApiException as error:
                # The container has not begun yet (400), or its log is gone with its pod or node (404, 500).
                if error.status in (400, 404, 500):
                    return ""
                raise

    def forward(self, pod_name: str, namespace: str, port: int) -> Any:
        """A connection to a pod's port: the official client's PortForward, whose ``socket(port)`` it is.

        Raises:
            ClusterError: there is no such pod, or it does not run.
        """
        from kubernetes.stream import portforward

        # Its own client: the call replaces the client's transport while it lasts.
        api = CoreV1Api(ApiClient(self._configuration))
        with self._in_our_words("forward to", f"Pod {pod_name}"):
            return portforward(
                api.connect_get_namespaced_pod_portforward, pod_name, namespace, ports=str(port)
            )


def _name(manifest: Manifest) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"
