"""Local ports that lead to pods, through the official client's port-forward and a websocket."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.kubernetes.apply import apply
from cluster.kubernetes.client import Kubernetes
from cluster.kubernetes.connect import head_pod, ports, serving_pod
from cluster.kubernetes.render import render
from cluster.kubernetes.token import read_token, write_token
from runtime.core.errors import ClusterError
from tests.conftest import ROOT, wait_for
from tests.kubernetes.running import PLACE, QUIET, pod
from tests.kubernetes.specs import app, spec
from tests.servers.kubernetes_api import Cluster

LARGE = b"0123456789abcdef" * 64 * 1024


class Pod:
    """What listens in a pod: says its name, echoes what is posted."""

    def __init__(self, name: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(name.encode())

            def do_POST(self) -> None:
                self._answer(self.rfile.read(int(self.headers["Content-Length"])))

            def _answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing: tests read what is asserted."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def running(kubernetes: Kubernetes, kubernetes_api: Cluster) -> Iterator[Cluster]:
    """An applied cluster with a head and a worker that is ready; both listen."""
    one = spec(**QUIET)
    apply(kubernetes, one, render(one, apps=[app()]))
    serves = {"activeServiceStatus": {"rayClusterName": "lab-serve-x7k2p"}}
    kubernetes_api.set_status("RayService", "lab-serve", serves, namespace=PLACE)
    pods = [Pod("head-1"), Pod("worker-1")]
    kubernetes_api.put(pod("head-1", role="head", group=None))
    kubernetes_api.put(pod("worker-1"))
    kubernetes_api.put(pod("worker-0", ready=False))
    for name, one_pod in zip(("head-1", "worker-1"), pods, strict=True):
        kubernetes_api.ports[PLACE, name] = one_pod.port
    yield kubernetes_api
    for one_pod in pods:
        one_pod.close()


def test_the_dashboards_port_leads_to_the_head_and_the_endpoints_to_a_worker_that_is_ready(
    kubernetes: Kubernetes, running: Cluster
) -> None:
    dashboard, endpoint = ports(kubernetes, spec(**QUIET), dashboard_port=0, http_port=0)
    with dashboard, endpoint:
        assert httpx.get(f"http://127.0.0.1:{dashboard.port}", timeout=60).text == "head-1"
        assert httpx.get(f"http://127.0.0.1:{endpoint.port}", timeout=60).text == "worker-1"


def test_a_megabyte_there_and_back_over_connections_side_by_side(
    kubernetes: Kubernetes, running: Cluster
) -> None:
    dashboard, endpoint = ports(kubernetes, spec(**QUIET), dashboard_port=0, http_port=0)
    with dashboard, endpoint, httpx.Client() as one, httpx.Client() as other:
        for client in (one, other, one):
            answer = client.post(f"http://127.0.0.1:{endpoint.port}", content=LARGE, timeout=60)
            assert answer.content == LARGE


def test_when_the_head_goes_the_next_connection_finds_the_new_one(
    kubernetes: Kubernetes, running: Cluster
) -> None:
    dashboard, endpoint = ports(kubernetes, spec(**QUIET), dashboard_port=0, http_port=0)
    with dashboard, endpoint:
        url = f"http://127.0.0.1:{dashboard.port}"
        assert httpx.get(url, timeout=60).text == "head-1"
        running.delete("Pod", "head-1", namespace=PLACE)
        with pytest.raises(httpx.HTTPError):
            httpx.get(url, timeout=60)
        successor = Pod("head-2")
        running.put(pod("head-2", role="head", group=None))
        running.ports[PLACE, "head-2"] = successor.port
        assert httpx.get(url, timeout=60).text == "head-2"
        successor.close()


def test_the_cluster_that_serves_comes_before_the_one_that_takes_its_place(
    kubernetes: Kubernetes, running: Cluster
) -> None:
    running.put(pod("a-newer-head", role="head", group=None, ray_cluster="lab-serve-newer"))
    running.put(pod("a-newer-worker", ray_cluster="lab-serve-newer"))
    assert head_pod(kubernetes, spec(**QUIET)) == "head-1"
    assert serving_pod(kubernetes, spec(**QUIET)) == "worker-1"


def test_without_a_head_it_says_where_to_look(kubernetes: Kubernetes) -> None:
    with pytest.raises(ClusterError, match="no head of lab runs in namespace tandem-lab.*cluster status"):
        ports(kubernetes, spec(**QUIET), dashboard_port=0, http_port=0)


def test_a_port_that_is_taken_is_named(kubernetes: Kubernetes, running: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=f"port {port} of this machine cannot be used"):
            ports(kubernetes, spec(**QUIET), dashboard_port=0, http_port=port)


def test_the_token_is_written_where_only_its_user_reads_it(
    kubernetes: Kubernetes, running: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path))
    path = write_token(kubernetes, spec(**QUIET))
    assert path.parent == tmp_path / "tokens"
    # Another cluster of the same name has a file of its own.
    assert path.name.startswith("lab-")
    assert path.read_text() == read_token(kubernetes, spec(**QUIET))
    path.chmod(0o644)
    assert stat.S_IMODE(write_token(kubernetes, spec(**QUIET)).stat().st_mode) == 0o600


def connected(running: Cluster, tmp_path: Path, **changes: Any) -> tuple[str, str]:
    """The dashboard's URL and all that `tandem cluster connect` prints until Ctrl-C."""
    file = tmp_path / "cluster.yaml"
    fields = spec(**QUIET, **changes).model_dump(mode="json", exclude_unset=True)
    file.write_text(json.dumps(fields), encoding="utf-8")
    environment = os.environ | {
        "KUBECONFIG": str(running.kubeconfig(tmp_path / "kubeconfig")),
        "TANDEM_HOME": str(tmp_path),
        "PYTHONUNBUFFERED": "1",
    }
    command = [
        sys.executable,
        "-c",
        "from runtime.cli_cluster import cluster; cluster()",
        "connect",
        str(file),
    ]
    output = tmp_path / "output"
    with output.open("w") as sink:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=sink, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: "Ctrl-C ends" in output.read_text(), "the addresses", 60)
        url = output.read_text().split()[1]
        assert httpx.get(url, timeout=60).text == "head-1"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
    return url, output.read_text()


def test_the_command_prints_how_to_use_it_and_ends_with_ctrl_c(
    kubernetes: Kubernetes, running: Cluster, tmp_path: Path
) -> None:
    url, printed = connected(running, tmp_path)
    # The laptop's own store is no folder of the pods: what goes there names the cluster's.
    assert f'Tandem("{url}", store="gs://team/tandem")' in printed
    assert "  export TANDEM_STORE=gs://team/tandem\n" in printed
    assert f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={tmp_path / 'tokens' / 'lab'}" in printed
    token = read_token(kubernetes, spec(**QUIET))
    assert token is not None and token not in printed


def test_where_the_store_is_on_a_volume_the_command_says_how_specs_get_there(
    running: Cluster, tmp_path: Path
) -> None:
    url, printed = connected(running, tmp_path, store={"nfs": {"server": "10.0.0.9", "path": "/export"}})
    assert f'Tandem("{url}")' in printed
    # A laptop has no such folder: to export it would make one that no pod knows.
    assert "TANDEM_STORE" not in printed
    assert f"  tandem cluster apply {tmp_path / 'cluster.yaml'} SPEC.yaml\n" in printed
    assert "where the volume is mounted at /mnt/tandem, too: --store /mnt/tandem/store" in printed
