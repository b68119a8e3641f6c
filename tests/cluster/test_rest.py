"""What answers at a dashboard's address may be another program's server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cluster.rest import cluster_resources, inventory, ray_version
from runtime.core.errors import ClusterError


@pytest.fixture(params=[b'{"version": "4"}', b'["8265"]', b'{"data": {"result": null}}'])
def another_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a server that answers everything with JSON of its own."""

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(request.param)))
            self.end_headers()
            self.wfile.write(request.param)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_json_of_another_server_is_no_dashboards(another_server: str):
    for ask in (ray_version, cluster_resources, inventory):
        with pytest.raises(
            ClusterError, match=rf"{another_server} answers, but not as Ray's .*dashboard-port"
        ):
            ask(another_server)
