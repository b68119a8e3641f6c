"""What benchmarks/serve.py measures: servers with the same engine, each started once and asked in turn."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from cluster import local
from cluster.environments import interpreter, process_env
from cluster.haproxy import haproxy_env
from cluster.processes import descendants, die_with_parent, free_port
from runtime.sdk import Tandem
from serve_apps.plan import ServePlan
from serve_apps.spec import ServeSpec
from storage.store import Store

ROOT = Path(__file__).resolve().parents[1]
MODEL = "docstrings-base"
ENGINE: dict[str, Any] = {"max_model_len": 256, "max_num_seqs": 64}


@dataclass(frozen=True)
class Target:
    """One server under load."""

    name: str
    url: str
    """Up to ``/v1``."""
    model: str
    """What clients send as ``model``."""
    root_pid: int
    """All of its processes are this one and its descendants."""

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Its living processes by their part."""
        found: dict[str, list[psutil.Process]] = {}
        for process in [psutil.Process(self.root_pid), *descendants(self.root_pid)]:
            try:
                found.setdefault(_part(process), []).append(process)
            except psutil.Error:
                continue
        return found


_PARTS = {
    "EngineCore": "engine core",
    "ServeReplica": "replica",
    "haproxy": "HAProxy",
    "HAProxyManager": "HAProxy's manager",
    "ServeController": "controller",
    "ProxyActor": "Serve's proxy",
    "api_server": "api server",
    "raylet": "raylet",
    "gcs_server": "GCS",
    "dashboard": "dashboard and agents",
    "runtime_env": "dashboard and agents",
}


def _part(process: psutil.Process) -> str:
    words = process.cmdline()
    title = words[0] if words else process.name()
    if title.startswith("ray::ServeReplica:tandem-front"):
        return "front"
    if "HAProxyManager" in title:
        return "HAProxy's manager"
    line = " ".join(words[:6]) + " " + process.name()
    if Path(title).name == "haproxy" or process.name() == "haproxy":
        return "HAProxy"
    return next((part for mark, part in _PARTS.items() if mark in line), "others")


def spec(name: str, **fields: Any) -> dict[str, Any]:
    """The serve spec of a benchmark's app."""
    return {
        "name": name,
        "model": MODEL,
        "auth": "none",
        "engine": ENGINE,
        "resources": {"cpus": 0.5, "gpus": 0},
        "autoscaling": {"min_replicas": 1, "max_replicas": 1},
        **fields,
    }


@contextmanager
def tandem_cluster(scratch: Path) -> Iterator[local.LocalCluster]:
    """A cluster of its own for the apps."""
    os.environ |= {
        "TANDEM_HOME": str(scratch),
        "TANDEM_STORE": str(scratch / "store"),
        "TANDEM_FILE_CACHE": str(scratch / "files"),
        "PYTHONPATH": str(ROOT),
    }
    try:
        yield local.up(local.LocalClusterSpec(num_cpus=4, num_gpus=0, dashboard_port=0, http_port=0))
    finally:
        local.down()


def tandem_app(store: Store, cluster: local.LocalCluster, name: str, **fields: Any) -> Target:
    """A deployed app, asked below its own prefix."""
    app = Tandem(store=store.uri).serve(spec(name, **fields)).wait(timeout_s=300)
    target = Target("Tandem, app's prefix", f"{app.url}/v1", name, cluster.pid)
    _until_answers(target)
    return target


def through_front(target: Target, cluster: local.LocalCluster) -> Target:
    """The same app, found by the ``model`` of the request."""
    target = Target("Tandem, /v1", f"{cluster.http_url}/v1", target.model, cluster.pid)
    _until_answers(target)
    return target


def renamed(target: Target, name: str) -> Target:
    """The same server under another name in the tables."""
    return replace(target, name=name)


def stop(store: Store, target: Target) -> None:
    """End the app behind a target."""
    Tandem(store=store.uri).app(target.model).stop()


def memory_mb(target: Target) -> float:
    """Resident memory of all its processes, pages that they share counted for each."""
    found = [process for processes in target.processes().values() for process in processes]
    return sum(process.memory_info().rss for process in found if process.is_running()) / 1e6


def plan_of(store: Store) -> ServePlan:
    """Tandem's plan, from which the others take engine arguments and variables."""
    return Tandem(store=store.uri).plan_serve(ServeSpec(**spec("bench")))


@contextmanager
def raw_vllm(plan: ServePlan, store: Store, log: Path, name: str = "vLLM") -> Iterator[Target]:
    """vLLM's own API server with the arguments and variables of the plan."""
    port = free_port()
    with ExitStack() as stack:
        model = stack.enter_context(store.model(plan.spec.model).fetch())
        module = "vllm.entrypoints.openai.api_server"
        command = [str(interpreter("serve")), "-m", module, "--model", str(model.path)]
        command += ["--served-model-name", plan.spec.name, "--host", "127.0.0.1", "--port", str(port)]
        for argument, value in plan.engine.items():
            flag = "--" + argument.replace("_", "-")
            command += (
                [flag] if value is True else [flag, value if isinstance(value, str) else json.dumps(value)]
            )
        process = stack.enter_context(_started(command, plan.env_vars, log))
        target = Target(name, f"http://127.0.0.1:{port}/v1", plan.spec.name, process.pid)
        _until_answers(target, process, log)
        yield target


@contextmanager
def bare_serve_llm(plan: ServePlan, store: Store, scratch: Path, *, direct: bool) -> Iterator[Target]:
    """``ray.serve.llm`` in a cluster of its own: its defaults, or HAProxy with direct streaming."""
    name = "ray.serve.llm, direct" if direct else "ray.serve.llm"
    folder = scratch / ("llm-direct" if direct else "llm")
    folder.mkdir()
    ports = {"gcs": free_port(), "http": free_port(), "dashboard": free_port()}
    variables = dict(plan.env_vars) | {"PYTHONPATH": str(ROOT)}
    if direct:
        variables |= haproxy_env(folder / "ha") | {"RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1"}
    ray = str(interpreter("serve").with_name("ray"))
    options = f"--port={ports['gcs']} --num-cpus=4 --num-gpus=0 --dashboard-host=127.0.0.1"
    free = " ".join(f"--{o}={free_port()}" for o in ("dashboard-agent-listen-port", "ray-client-server-port"))
    start = [ray, "start", "--head", "--block", "--disable-usage-stats", *options.split(), *free.split()]
    start += [
        f"--dashboard-port={ports['dashboard']}",
        f"--temp-dir=/tmp/tdm-bench-{os.getpid()}-{int(direct)}",
    ]
    with ExitStack() as stack:
        model = stack.enter_context(store.model(plan.spec.model).fetch())
        head = stack.enter_context(_started(start, variables, folder / "ray.log"))
        job = folder / "app.json"
        app = {"model": str(model.path), "name": plan.spec.name, "engine": plan.engine, "env": plan.env_vars}
        job.write_text(json.dumps(app | {"port": ports["http"], "address": f"127.0.0.1:{ports['gcs']}"}))
        command = [str(interpreter("serve")), str(ROOT / "benchmarks" / "serve_llm.py"), str(job)]
        log = folder / "app.log"
        with log.open("w") as output:
            subprocess.run(
                command,
                env=_env() | variables,
                check=True,
                stdout=output,
                stderr=output,
                timeout=400,
            )
        target = Target(name, f"http://127.0.0.1:{ports['http']}/v1", plan.spec.name, head.pid)
        _until_answers(target, head, log)
        yield target


@contextmanager
def _started(command: list[str], variables: Any, log: Path) -> Iterator[psutil.Popen]:
    with log.open("w") as output:
        process = psutil.Popen(
            command,
            env=_env() | dict(variables),
            stdout=output,
            stderr=output,
            preexec_fn=die_with_parent,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        below = descendants(process.pid)
        process.terminate()
        _, left = psutil.wait_procs([process, *below], timeout=20)
        for one in left:
            one.kill()


def _env() -> dict[str, str]:
    dropped = ("RAY_", "PYTHON", "VIRTUAL_ENV")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    return kept | process_env("serve") | {"RAY_AUTH_MODE": "disabled"}


def _until_answers(
    target: Target, process: psutil.Popen | None = None, log: Path | None = None, timeout_s: float = 240
) -> None:
    deadline_s = time.monotonic() + timeout_s
    body = {"model": target.model, "prompt": [5, 6, 7], "max_tokens": 8, "ignore_eos": True}
    while True:
        try:
            answer = ask(target, body)
            if answer["usage"]["completion_tokens"] != 8:
                raise SystemExit(f"{target.name} does not keep to max_tokens: {answer}")
            return
        except OSError as error:
            if time.monotonic() > deadline_s or (process is not None and process.poll() is not None):
                said = log.read_text()[-2000:] if log else ""
                raise SystemExit(f"{target.name} does not answer at {target.url}: {error}\n{said}") from None
            time.sleep(0.3)


def ask(target: Target, body: dict[str, Any]) -> Any:
    """One completion, not streamed."""
    request = urllib.request.Request(
        f"{target.url}/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def run_client(job: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """The load of one job, in a process of its own."""
    file = scratch / "job.json"
    file.write_text(json.dumps(job))
    command = [sys.executable, str(ROOT / "benchmarks" / "serve_client.py"), str(file)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=300)
    return json.loads(done.stdout)


def cpu_s(target: Target) -> dict[tuple[str, int], float]:
    """User and system seconds of every process, by part and process id."""
    found = {}
    for part, processes in target.processes().items():
        for process in processes:
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            found[part, process.pid] = times.user + times.system
    return found


def measured(target: Target, load: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Figures of a load, with the CPU milliseconds per request that each part of the target used."""
    before = cpu_s(target)
    figures = load()
    used: dict[str, float] = {}
    for (part, pid), total_s in cpu_s(target).items():
        used[part] = used.get(part, 0) + (total_s - before.get((part, pid), 0)) * 1000 / figures["requests"]
    figures["cpu_ms"] = {part: ms for part, ms in used.items() if ms > 0.005}
    return figures
