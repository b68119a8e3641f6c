"""What is looked at before a machine is part of a plain cluster: versions, token, store, group, ports."""

from __future__ import annotations

import json
import socket
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster.auth import auth_headers, make_token, token_from
from cluster.cluster_spec import ClusterSpec
from cluster.plain import checks, state
from cluster.plain.head import HeadSpec, up_head
from cluster.plain.join import JoinSpec, join
from cluster.plain.machine import machine_options
from cluster.plain.record import Record, this_machine
from cluster.processes import free_port
from runtime.core.config import load_spec
from runtime.core.errors import ClusterError, ConfigError, EnvironmentFault
from storage.store import open_store

GROUP = {"name": "small", "count": 2, "cpus": 1, "memory": "1GiB", "labels": {"zone": "a"}}


def spec(**group: object) -> ClusterSpec:
    fields = {"name": "ours", "node_groups": [GROUP | group], "store": {"uri": "gs://bucket/store"}}
    return load_spec(ClusterSpec, fields)


@pytest.fixture
def old_head() -> Iterator[int]:
    """The port of a stand-in for a head's dashboard, which runs another Ray."""

    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"version": "4", "ray_version": "2.51.0"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_another_ray_on_the_head_is_told_before_anything_starts(old_head: int, own_home: Path):
    wanted = JoinSpec(address=f"127.0.0.1:{old_head}", dashboard_port=old_head, metrics_port=free_port())
    with pytest.raises(EnvironmentFault, match=r"runs Ray 2\.51\.0, but this machine's .* have Ray 2\.60"):
        join(wanted)
    assert state.current() is None
    assert not (own_home / "supervisor.json").exists()


def test_a_head_that_nobody_answers_for_is_told(own_home: Path):
    port, metrics_port = free_port(), free_port()
    with pytest.raises(ClusterError, match=rf"nothing answers at 127\.0\.0\.1:{port}.*tandem up --head"):
        join(JoinSpec(address=f"127.0.0.1:{port}", metrics_port=metrics_port))


def test_a_dashboard_at_another_port_is_told_with_its_option(old_head: int, own_home: Path):
    port = free_port()
    wanted = JoinSpec(address=f"127.0.0.1:{old_head}", dashboard_port=port, metrics_port=free_port())
    with pytest.raises(
        ClusterError, match=rf"dashboard does not answer at .*:{port} .*another --dashboard-port"
    ):
        join(wanted)


@pytest.mark.parametrize(
    "address", ["http://head:8265", "10.0.0.1", "10.0.0.1:99999", "10.0.0.1:0", "head:²", ":6379"]
)
def test_an_address_without_host_and_port_is_refused(own_home: Path, address: str):
    with pytest.raises(ConfigError, match=rf"--join is '{address}'"):
        join(JoinSpec(address=address))


def test_ipv6_is_refused_by_its_name(own_home: Path):
    with pytest.raises(ConfigError, match=r"--join is '\[::1\]:6379'.*IPv4"):
        join(JoinSpec(address="[::1]:6379"))
    for start in (
        lambda: join(JoinSpec(address="10.0.0.1:6379", node_ip_address="::1")),
        lambda: up_head(HeadSpec(node_ip_address="::1")),
    ):
        with pytest.raises(ConfigError, match="--node-ip-address is '::1', which is an IPv6 address"):
            start()
    with pytest.raises(ConfigError, match="--node-ip-address is 'head', which is no address"):
        up_head(HeadSpec(node_ip_address="head"))


def test_a_token_is_made_once_and_only_its_owner_reads_it(tmp_path: Path):
    file = tmp_path / "deep" / "token"
    make_token(file)
    token = file.read_text()
    assert len(token) >= 43
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    make_token(file)
    assert file.read_text() == token
    with token_from(file):
        assert auth_headers() == {"Authorization": f"Bearer {token}"}


def test_the_token_is_found_as_ray_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert auth_headers() == {}
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(ConfigError, match="there is no token: RAY_AUTH_TOKEN and RAY_AUTH_TOKEN_PATH"):
        auth_headers()
    own = tmp_path / ".ray" / "auth_token"
    own.parent.mkdir()
    own.write_text("of-the-account\n")
    own.chmod(0o600)
    assert auth_headers() == {"Authorization": "Bearer of-the-account"}
    (tmp_path / "file").write_text("of-the-file")
    (tmp_path / "file").chmod(0o600)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file"))
    assert auth_headers() == {"Authorization": "Bearer of-the-file"}
    monkeypatch.setenv("RAY_AUTH_TOKEN", "itself")
    assert auth_headers() == {"Authorization": "Bearer itself"}
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert auth_headers() == {}


def test_the_store_must_be_the_very_same_one(tmp_path: Path):
    store = open_store(str(tmp_path / "store"))
    (store.root / "clusters/ours/mark").write_bytes(b"first")
    there = Record(
        name="ours",
        machine=this_machine(),
        store=store.uri,
        mark="clusters/ours/mark",
        mark_content="first",
        http_port=8000,
        has_token=True,
        spec=None,
    )
    checks.check_store(there, None)
    checks.check_store(there, str(tmp_path / "store"))
    with pytest.raises(ConfigError, match="but the cluster's store is"):
        checks.check_store(there, "/elsewhere")
    with pytest.raises(ClusterError, match="another store lies here"):
        checks.check_store(there.model_copy(update={"mark_content": "second"}), None)
    with pytest.raises(ClusterError, match=r"there is no such folder here. Mount the same folder"):
        checks.check_store(there.model_copy(update={"store": str(tmp_path / "missing")}), None)


def test_a_machine_with_other_code_or_python_is_told_which():
    ours = this_machine()
    checks.check_machine(ours, ours)
    with pytest.raises(
        EnvironmentFault, match=r"Python is 3\.11\.\d+ on this machine and 3\.12\.1 on the head"
    ):
        checks.check_machine(ours, ours.model_copy(update={"python": "3.12.1"}))
    with pytest.raises(EnvironmentFault, match="Tandem's code is .* and /code/other on the head"):
        checks.check_machine(ours, ours.model_copy(update={"code": "/code/other"}))


def test_a_machine_gives_ray_what_its_group_says():
    options = machine_options(None, None, "small", spec())
    assert "--num-cpus=1" in options
    assert "--num-gpus=0" in options
    assert f"--memory={int(0.7 * 2**30)}" in options
    assert "--labels=tandem.dev/group=small,zone=a" in options
    assert "--num-cpus=3" in machine_options(3, None, None, None)


def test_a_machine_that_has_less_than_its_group_promises_is_refused():
    with pytest.raises(
        ConfigError, match=r"group 'small' promises cpus: 5000, but this machine has \d+ CPUs"
    ):
        machine_options(None, None, "small", spec(cpus=5000))
    with pytest.raises(ConfigError, match=r"promises memory: 99999\.0 GiB, but this machine has"):
        machine_options(None, None, "small", spec(memory="99999GiB"))
    with pytest.raises(ConfigError, match=r"cpus: 0\.5, but Ray hands out a whole number"):
        machine_options(None, None, "small", spec(cpus=0.5))
    with pytest.raises(ConfigError, match=r"'big', which cluster ours does not have. It has: small"):
        machine_options(None, None, "big", spec())
    with pytest.raises(ConfigError, match="the head was started without a cluster spec"):
        machine_options(None, None, "small", None)
    with pytest.raises(ConfigError, match=r"Leave out: --num-cpus=2"):
        machine_options(2, None, "small", spec())


def test_a_machine_with_other_gpus_than_its_group_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one = {"uuid": "GPU-1", "memory_bytes": 24 * 2**30, "used_bytes": 0, "used_by": {}}
    reading = tmp_path / "nvml.json"
    reading.write_text(json.dumps([one | {"product": "NVIDIA L4"}]))
    monkeypatch.setenv("TANDEM_NVML_READING", str(reading))
    assert "--num-gpus=1" in machine_options(None, None, "small", spec(gpus=1, accelerator_type="NVIDIA-L4"))
    for wrong in (
        {"gpus": 2, "accelerator_type": "NVIDIA-L4"},
        {"gpus": 1, "accelerator_type": "NVIDIA-H200"},
    ):
        with pytest.raises(
            ConfigError, match=r"promises gpus: \d of NVIDIA-\w+, but this machine has NVIDIA L4"
        ):
            machine_options(None, None, "small", spec(**wrong))


@pytest.mark.parametrize(
    ("word", "is_of_it"), [("A100", True), ("NVIDIA-A100-SXM4-80GB", True), ("NVIDIA-A100-SXM4-40GB", False)]
)
def test_a_word_of_several_products_is_each_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, is_of_it: bool
):
    card = {"uuid": "GPU-1", "memory_bytes": 80 * 2**30, "used_bytes": 0, "used_by": {}}
    reading = tmp_path / "nvml.json"
    reading.write_text(json.dumps([card | {"product": "NVIDIA A100-SXM4-80GB"}]))
    monkeypatch.setenv("TANDEM_NVML_READING", str(reading))
    group = spec(gpus=1, accelerator_type=word)
    if is_of_it:
        assert "--num-gpus=1" in machine_options(None, None, "small", group)
    else:
        with pytest.raises(
            ConfigError, match=f"promises gpus: 1 of {word}, but this machine has NVIDIA A100"
        ):
            machine_options(None, None, "small", group)


def test_a_head_needs_an_address_that_others_reach_free_ports_and_the_specs_store(own_home: Path):
    with pytest.raises(ConfigError, match=r"this machine's address is 127\.0\.0\.1.*--node-ip-address"):
        up_head(HeadSpec(node_ip_address="127.0.0.1"))
    ip = checks.own_address("192.0.2.1", 9)
    with pytest.raises(
        ConfigError, match=r"is /elsewhere, but the cluster spec's store is gs://bucket/store"
    ):
        up_head(HeadSpec(node_ip_address=ip, store="/elsewhere"), spec())
    with socket.socket() as other:
        other.bind((ip, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ClusterError, match=rf"--port is {port}, which cannot be listened on at {ip}"):
            up_head(HeadSpec(node_ip_address=ip, port=port))
    assert not (own_home / "ray-token").exists()
