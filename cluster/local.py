"""The embedded local cluster: one Ray head on this machine that outlives the command that started it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import psutil
from pydantic import Field

from cluster.code import code_snapshot
from cluster.environments import interpreter
from cluster.gpus import find
from cluster.haproxy import FOLDER_BYTES, haproxy_env
from cluster.inventory import Card, Inventory
from cluster.lock import locked
from cluster.nodes import node_of
from cluster.nvml import read_cards
from cluster.processes import descendants, free_port, is_alive, kill_all, port_is_free
from cluster.rest import answers, checked_url, cluster_resources, head_ip
from runtime.core.config import ConfigModel, load_spec
from runtime.core.errors import ClusterError, ConfigError
from runtime.core.places import cache_root, file_cache, home
from storage.local_files import write_json
from storage.store import open_store

_RAYS_SHARE = 0.7
"""Of the memory that is free, Ray hands out so much; the rest is its object store's."""
_SOCKET_PATH_BYTES = 107
"""Longest UNIX socket path; Ray's own part below the temp folder takes about 65 of it."""


class LocalClusterSpec(ConfigModel):
    """What ``tandem up`` starts on this machine."""

    num_cpus: int = Field(default_factory=lambda: max(2, len(os.sched_getaffinity(0))), ge=1)
    """CPUs that Ray may hand out. Default: this machine's, at least 2."""

    num_gpus: int | None = Field(None, ge=0)
    """GPUs that Ray may hand out. Default: those that Ray finds."""

    dashboard_port: int = Field(8265, ge=0, le=65535)
    """Port of Ray's dashboard, job and Serve API. 0: any free one."""

    http_port: int = Field(8000, ge=0, le=65535)
    """Port of the serving endpoint. 0: any free one."""

    store: str | None = None
    """Store of jobs and apps that name none. Default: ``$TANDEM_STORE``, else ``~/.tandem/store``."""

    start_timeout_s: float = Field(120, gt=0)
    """How long to wait for Ray before giving up."""


class LocalCluster(ConfigModel):
    """A running local cluster, as its state file tells."""

    pid: int
    """The supervisor, of which every process of the cluster is a descendant."""

    create_time: float
    """When the supervisor began, in seconds since 1970."""

    address: str
    """Ray's own address, ``ip:port``."""

    dashboard_url: str
    """Dashboard, Ray's job API and Serve's REST API."""

    http_url: str
    """Where serve apps answer once there is one."""

    temp_dir: str
    """Ray's folder: sessions and logs."""

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return is_alive(self.pid, self.create_time)


def current() -> LocalCluster | None:
    """The running local cluster, or None. A state file left by a crash counts for nothing."""
    try:
        cluster = load_spec(LocalCluster, _cluster_file())
    except ConfigError:
        return None
    return cluster if cluster.alive else None


def expected(spec: LocalClusterSpec) -> Inventory:
    """What a cluster of this spec would have."""
    cards = read_cards()
    count = len(cards) if spec.num_gpus is None else spec.num_gpus
    memory_bytes = int(_RAYS_SHARE * psutil.virtual_memory().available)
    resources = {"CPU": spec.num_cpus, "GPU": count, "memory": memory_bytes}
    if cards and count:
        gpu = find(cards[0].product)
        resources[f"accelerator_type:{gpu.ray if gpu else cards[0].product}"] = 1
    node = node_of("local", resources)
    if cards and len(node.cards) <= len(cards):
        # A MIG device has less than the product that Ray names.
        seen = zip(node.cards, cards, strict=False)
        node = replace(
            node,
            cards=tuple(Card(one.index, card.memory_bytes, card.product, card.uuid) for one, card in seen),
        )
    return Inventory.of([node])


def dashboard_of(address: str | None) -> str | None:
    """The dashboard at ``address``, or of the local cluster, or None when no local cluster runs.

    Raises:
        ConfigError: ``address`` is no http URL.
    """
    running = current()
    return checked_url(address) if address else running.dashboard_url if running else None


def up(spec: LocalClusterSpec | None = None) -> LocalCluster:
    """The running local cluster, started when there is none.

    Raises:
        ClusterError: a port is taken, or Ray did not come up in ``start_timeout_s``; nothing is left.
        EnvironmentFault: the core environment is not built.
    """
    with _lock():
        found = current()
        if found:
            return found
        # What a supervisor that was killed left behind goes first: Ray would be found twice.
        _down()
        return _start(spec or LocalClusterSpec())


def down() -> bool:
    """End the local cluster and every process of it; whether there was one."""
    with _lock():
        return _down()


def _down() -> bool:
    try:
        state = json.loads(_supervisor_file().read_text())
    except FileNotFoundError:
        _cluster_file().unlink(missing_ok=True)
        return False
    alive = is_alive(state["pid"], state["create_time"])
    if alive:
        os.kill(state["pid"], signal.SIGTERM)
        _wait_until_gone(state["pid"], state["create_time"], timeout_s=60)
    elif is_alive(state["head_pid"], state["head_create_time"]):
        # Somebody killed the supervisor. Ray's head is ending by itself; we do not wait for it.
        kill_all([psutil.Process(state["head_pid"]), *descendants(state["head_pid"])])
        _wait_until_gone(state["head_pid"], state["head_create_time"], timeout_s=60)
        alive = True
    _supervisor_file().unlink(missing_ok=True)
    _cluster_file().unlink(missing_ok=True)
    return alive


def _start(spec: LocalClusterSpec) -> LocalCluster:
    ports = {
        "dashboard": _port(spec.dashboard_port, "dashboard_port"),
        "http": _port(spec.http_port, "http_port"),
        "gcs": free_port(),
    }
    temp_dir = _temp_dir()
    log = home() / "logs" / "cluster.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = _ray_start(spec, ports, temp_dir)
    with log.open("wb") as output:
        supervisor = subprocess.Popen(
            [str(interpreter("core")), "-m", "cluster.supervisor", str(_supervisor_file()), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(spec, temp_dir),
            cwd=home(),
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{ports['dashboard']}"
    try:
        _wait_until_up(supervisor, url, spec.start_timeout_s, log)
        state = json.loads(_supervisor_file().read_text())
        cluster = LocalCluster(
            pid=state["pid"],
            create_time=state["create_time"],
            address=f"{head_ip(url)}:{ports['gcs']}",
            dashboard_url=url,
            http_url=f"http://127.0.0.1:{ports['http']}",
            temp_dir=str(temp_dir),
        )
        write_json(_cluster_file(), cluster.model_dump())
        return cluster
    except BaseException:
        # Ctrl-C too: a cluster that nobody knows of must not stay.
        supervisor.terminate()
        supervisor.wait()
        _supervisor_file().unlink(missing_ok=True)
        raise


def _ray_start(spec: LocalClusterSpec, ports: dict[str, int], temp_dir: Path) -> list[str]:
    """Ray's head. Ports that Ray would fix are free ones, for the sake of a second cluster."""
    gpus = [] if spec.num_gpus is None else [f"--num-gpus={spec.num_gpus}"]
    return [
        str(interpreter("core").with_name("ray")),
        "start",
        "--head",
        "--block",
        f"--port={ports['gcs']}",
        f"--num-cpus={spec.num_cpus}",
        *gpus,
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={ports['dashboard']}",
        f"--dashboard-agent-listen-port={free_port()}",
        f"--ray-client-server-port={free_port()}",
        f"--temp-dir={temp_dir}",
        "--disable-usage-stats",
    ]


def _environment(spec: LocalClusterSpec, temp_dir: Path) -> dict[str, str]:
    """The head's environment, which every worker of the cluster inherits."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHON", "VIRTUAL_ENV"))}
    core_bin = str(interpreter("core").parent)
    return inherited | {
        # `python` in a plain `ray job submit -- python -m train_jobs ...` is the core environment's.
        "PATH": core_bin + os.pathsep + os.environ.get("PATH", ""),
        "PYTHONPATH": str(code_snapshot()),
        "PYTHONUNBUFFERED": "1",
        # Absolute: workers run in folders of their own.
        "TANDEM_HOME": str(home()),
        "TANDEM_CACHE": str(cache_root()),
        "TANDEM_FILE_CACHE": str(file_cache()),
        "TANDEM_STORE": open_store(spec.store).uri,
        **_config_file(),
        # Ray 2.60 turns token authentication on as soon as the account has a token file; this cluster
        # listens on 127.0.0.1 only (docs/decisions/local-cluster-without-token.md).
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        # How long `ray job stop` leaves a job for its last checkpoint; Ray's default is 3 s.
        "RAY_JOB_STOP_WAIT_TIME_S": "300",
        # Ray makes all of its workers nice (15): replicas and HAProxy would give way to whatever else the
        # machine does. Here only training gives way (train_jobs/engine/worker.py).
        "RAY_worker_niceness": "0",
        # How often Serve's controller looks at everything. Ray's 0.1 s is 4% of a core on a laptop that only
        # serves; what is decided in that loop takes seconds anyway.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.4",
        # How often each of Serve's actors hands its counts to Ray's metrics, which leave every 5 s.
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
        **haproxy_env(_haproxy_dir(temp_dir)),
    }


def _config_file() -> dict[str, str]:
    given = os.environ.get("TANDEM_CONFIG")
    return {"TANDEM_CONFIG": str(Path(given).expanduser().absolute())} if given else {}


def _wait_until_up(process: subprocess.Popen[bytes], url: str, timeout_s: float, log: Path) -> None:
    deadline = time.monotonic() + timeout_s
    # The dashboard answers before the node has joined; a job sent in between would find no CPU.
    while not (answers(f"{url}/api/version") and _has_joined(url)):
        if process.poll() is not None:
            raise ClusterError(f"Ray ended while starting. Last lines of {log}:\n{_tail(log)}")
        if time.monotonic() > deadline:
            raise ClusterError(
                f"Ray did not answer at {url} within {timeout_s:.0f} s. Last lines of {log}:\n{_tail(log)}"
            )
        time.sleep(0.1)


def _has_joined(url: str) -> bool:
    try:
        return cluster_resources(url)["CPU"] > 0
    except ClusterError:
        return False  # the dashboard's other parts are still starting


def _wait_until_gone(pid: int, create_time: float, *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while is_alive(pid, create_time):
        if time.monotonic() > deadline:
            raise ClusterError(
                f"process {pid} did not end within {timeout_s:.0f} s. End it with kill -9 {pid}."
            )
        time.sleep(0.05)


def _port(port: int, field: str) -> int:
    if port and not port_is_free(port):
        option = "--" + field.replace("_", "-")
        raise ClusterError(
            f"{field} is {port}, which another program listens on. End that program, or choose another: "
            f"tandem up {option} 0 takes any free one."
        )
    return port or free_port()


def _temp_dir() -> Path:
    """Ray's folder below our own, or a short one where the sockets' paths would become too long."""
    folder = home() / "ray"
    if len(str(folder)) + 65 > _SOCKET_PATH_BYTES:
        folder = _short_dir()
    folder.mkdir(parents=True, exist_ok=True)
    _drop_old_sessions(folder)
    return folder


def _haproxy_dir(temp_dir: Path) -> Path:
    """HAProxy's folder below Ray's own, or a short one: its sockets' paths may be shorter still."""
    folder = temp_dir / "haproxy"
    return folder if len(str(folder)) <= FOLDER_BYTES else _short_dir() / "haproxy"


def _short_dir() -> Path:
    """A folder of this user with a short path, for this TANDEM_HOME."""
    mark = hashlib.sha256(str(home()).encode()).hexdigest()[:8]
    folder = Path(tempfile.gettempdir()) / f"tandem-{os.getuid()}-{mark}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ClusterError(f"{folder} belongs to somebody else. Set TANDEM_HOME to a shorter path.")
    return folder


def _drop_old_sessions(folder: Path, keep: int = 3) -> None:
    """Keep the logs of the last sessions; Ray never removes any."""
    sessions = sorted(path for path in folder.glob("session_2*") if path.is_dir())
    for path in sessions[:-keep]:
        shutil.rmtree(path, ignore_errors=True)


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _supervisor_file() -> Path:
    return home() / "supervisor.json"


def _cluster_file() -> Path:
    return home() / "cluster.json"


def _lock() -> AbstractContextManager[int]:
    """One ``up`` or ``down`` at a time. The kernel drops it when the holder dies."""
    return locked(home() / "cluster.lock", waiting_for="it starts or ends the local cluster")
