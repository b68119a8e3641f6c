"""Local ports that lead to pods: each new connection looks for the pod again, so it outlives any of them."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.names import PART_LABEL, ROLE_LABEL
from cluster.kubernetes.owned import selector
from cluster.kubernetes.scaling import running_cluster
from cluster.kubernetes.status import is_ready
from cluster.kubernetes.workloads import Manifest
from runtime.core.errors import ClusterError
from runtime.core.log import get_logger

DASHBOARD_PORT = 8265
SERVE_PORT = 8000
_CHUNK_BYTES = 64 * 1024
_LOG = get_logger(__name__)


def head_pod(kubernetes: Kubernetes, spec: ClusterSpec) -> str:
    """The pod of the head that serves, else of the cluster for all.

    Raises:
        ClusterError: none runs.
    """
    return _chosen(kubernetes, spec, lambda pod: _label(pod, ROLE_LABEL) == "head", "head")


def serving_pod(kubernetes: Kubernetes, spec: ClusterSpec) -> str:
    """A pod where ``/v1`` answers: a worker that is ready; the head of a cluster for all.

    Raises:
        ClusterError: none is ready.
    """

    def serves(pod: Manifest) -> bool:
        role = "worker" if _label(pod, PART_LABEL) == "serving" else "head"
        return _label(pod, ROLE_LABEL) == role and is_ready(pod)

    return _chosen(kubernetes, spec, serves, "pod that serves")


def _chosen(kubernetes: Kubernetes, spec: ClusterSpec, fits: Callable[[Manifest], bool], what: str) -> str:
    """The best running pod that fits: of the RayService's running cluster, of its next one, of another."""
    services = kubernetes.list("ray.io/v1", "RayService", spec.in_namespace, selector(spec))
    active = {running_cluster(service) for service in services}
    pods = kubernetes.list(
        "v1", "Pod", spec.in_namespace, f"{selector(spec)},{PART_LABEL} in (serving,shared)"
    )
    running = [pod for pod in pods if (pod.get("status") or {}).get("phase") == "Running" and fits(pod)]
    if not running:
        raise ClusterError(
            f"no {what} of {spec.name} runs in namespace {spec.in_namespace}. See what it waits for: tandem "
            "cluster status CLUSTER.yaml."
        )
    order = sorted(
        running,
        key=lambda pod: (
            _label(pod, "ray.io/cluster") not in active,
            _label(pod, PART_LABEL) != "serving",
            pod["metadata"]["name"],
        ),
    )
    return str(order[0]["metadata"]["name"])


def _label(pod: Manifest, name: str) -> str | None:
    return (pod["metadata"].get("labels") or {}).get(name)


class LocalPort:
    """A port on 127.0.0.1 whose connections go to a pod, until ``close``.

    Args:
        kubernetes: Whose API server forwards.
        namespace: Of the pods.
        find: Names the pod, for each connection anew.
        pod_port: The port in the pod.
        port: The port here; 0: any free one.

    Raises:
        ClusterError: the port is taken.
    """

    def __init__(
        self, kubernetes: Kubernetes, namespace: str, find: Callable[[], str], *, pod_port: int, port: int
    ) -> None:
        self._kubernetes, self._namespace = kubernetes, namespace
        self._find, self._pod_port = find, pod_port
        try:
            self._listening = socket.create_server(("127.0.0.1", port))
        except OSError as error:
            raise ClusterError(
                f"port {port} of this machine cannot be used ({error.strerror}). Name another, or 0 for any."
            ) from None
        self.port = int(self._listening.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, name=f"to pods' {pod_port}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more connections; those that are there end with the process or their peers."""
        with contextlib.suppress(OSError):
            # Wakes the thread that waits in accept.
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()

    def __enter__(self) -> LocalPort:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                forwarded = self._kubernetes.forward(self._find(), self._namespace, self._pod_port)
            except ClusterError as error:
                _LOG.warning("connection refused: %s", error)
                return
            far = forwarded.socket(self._pod_port)
            try:
                _join(client, far)
            except OSError:
                # One of the two went away in the middle; the other is told by the close.
                _LOG.debug("a forwarded connection broke")
            finally:
                forwarded.close()
            if told := forwarded.error(self._pod_port):
                _LOG.warning("pod's port %d: %s", self._pod_port, told)


def _join(near: socket.socket, far: Any) -> None:
    """Carry bytes both ways until one side ends."""
    with selectors.DefaultSelector() as ready:
        ready.register(near, selectors.EVENT_READ, far)
        ready.register(far, selectors.EVENT_READ, near)
        while True:
            for key, _ in ready.select():
                source: Any = near if key.fd == near.fileno() else far
                data = source.recv(_CHUNK_BYTES)
                if not data:
                    return
                key.data.sendall(data)


def ports(
    kubernetes: Kubernetes, spec: ClusterSpec, *, dashboard_port: int, http_port: int
) -> Sequence[LocalPort]:
    """The dashboard's and the endpoint's local ports, open.

    Raises:
        ClusterError: no head runs, or a port is taken.
    """
    # Now, so that who starts it is told; whoever connects later finds the pod of then.
    head_pod(kubernetes, spec)
    namespace = spec.in_namespace
    dashboard = LocalPort(
        kubernetes,
        namespace,
        lambda: head_pod(kubernetes, spec),
        pod_port=DASHBOARD_PORT,
        port=dashboard_port,
    )
    try:
        endpoint = LocalPort(
            kubernetes,
            namespace,
            lambda: serving_pod(kubernetes, spec),
            pod_port=SERVE_PORT,
            port=http_port,
        )
    except ClusterError:
        dashboard.close()
        raise
    return dashboard, endpoint
