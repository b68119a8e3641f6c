"""``tandem doctor``: what is installed and running, and for every problem the remedy."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import environments, local, rest
from runtime.core.errors import TandemError
from runtime.core.places import cache_root
from storage.patience import patience
from storage.store import open_store

IMPORTS = {
    "core": ("ray", "fsspec", "openai"),
    "train": ("ray.train", "torch", "deepspeed", "llamafactory.hparams"),
    "serve": ("ray.serve", "torch", "vllm"),
}
"""What must import in each environment: the least that touches every engine's compiled parts."""

IMPORT_TIMEOUT_S = 180
OPEN_FILES_WANTED = 4096
"""Ray keeps a few descriptors per worker and actor; its own check warns below this."""
STORE_PATIENCE_S = 10.0
FREE_BYTES_WANTED = 2_000_000_000
SHM_BYTES_WANTED = 200_000_000
"""Ray's smallest useful object store. With less it falls back to the disk, many times slower."""


@dataclass(frozen=True)
class EnvironmentReport:
    """One environment, as far as it could be looked at."""

    name: str
    flavour: str
    interpreter: str | None = None
    python: str | None = None
    ray: str | None = None
    engines: dict[str, str] = field(default_factory=dict)
    import_s: float | None = None
    problem: str | None = None
    """Why it cannot be used, with the remedy. None: it can."""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU of this machine."""

    name: str
    memory_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Report:
    """Everything that ``tandem doctor`` shows, as plain data."""

    environments: list[EnvironmentReport]
    ray_address: str | None
    dashboard_url: str | None
    gpus: list[Gpu]
    disks: dict[str, dict[str, Any]]
    """``cache`` and ``store``: ``path`` and ``free_bytes``."""
    shm_bytes: int | None
    open_files: int
    problems: list[str]
    """What is broken, each with its remedy."""
    warnings: list[str]
    """What works but not well, each with its remedy."""


def collect() -> Report:
    """Look at everything once; the environments' imports run at the same time."""
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(_environment, environments.SHIPPED))
    address, dashboard_url, faults = _cluster(found)
    gpus, gpu_faults = _gpus()
    disks = {"cache": _disk(cache_root()), "store": _disk(_store_root())}
    shm_bytes, open_files = _shm_bytes(), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return Report(
        environments=found,
        ray_address=address,
        dashboard_url=dashboard_url,
        gpus=gpus,
        disks=disks,
        shm_bytes=shm_bytes,
        open_files=open_files,
        problems=[*_environment_faults(found), *faults, *gpu_faults, *_store_faults()],
        warnings=[*_disk_warnings(disks), *_limit_warnings(shm_bytes, open_files)],
    )


def _environment(name: str) -> EnvironmentReport:
    flavour = environments.flavour()
    try:
        found = environments.describe(name)
    except TandemError as error:
        return EnvironmentReport(name, flavour, problem=str(error))
    started = time.monotonic()
    problem = _import_fault(name, found.interpreter)
    seconds = round(time.monotonic() - started, 1)
    return EnvironmentReport(
        name, flavour, str(found.interpreter), found.python, found.ray, found.engines, seconds, problem
    )


def _import_fault(name: str, interpreter: Path) -> str | None:
    """Import the environment's engines in a process of its own; None when all import."""
    command = [str(interpreter), "-c", "import " + ", ".join(IMPORTS[name])]
    variables = {**os.environ, **environments.process_env(name)}
    remedy = f"Remove {interpreter.parent.parent} and run: make setup."
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=variables, timeout=IMPORT_TIMEOUT_S, cwd="/"
        )
    except subprocess.TimeoutExpired:
        return f"{name}: importing took over {IMPORT_TIMEOUT_S} s. Is the disk or the machine busy? {remedy}"
    except OSError as error:
        return f"{name}: {interpreter} does not start ({error.strerror}). {remedy}"
    if done.returncode == 0:
        return None
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return f"{name}: {last}. {remedy}"


def _environment_faults(found: list[EnvironmentReport]) -> list[str]:
    faults = [report.problem for report in found if report.problem]
    if all(report.interpreter for report in found):
        try:
            environments.check_pair()
        except TandemError as error:
            faults.append(str(error))
    return faults


def _cluster(found: list[EnvironmentReport]) -> tuple[str | None, str | None, list[str]]:
    """Address and dashboard of the local cluster, and what is wrong with it."""
    running = local.current()
    if running is None:
        return None, None, []
    try:
        version = rest.ray_version(running.dashboard_url)
    except TandemError as error:
        return running.address, running.dashboard_url, [f"{error} Or run: tandem down, then: tandem up."]
    ours = next(report.ray for report in found if report.name == "core")
    faults = []
    if ours and ours != version:
        faults.append(
            f"The cluster at {running.dashboard_url} runs Ray {version} but the core environment has {ours}. "
            "Run: tandem down, then: tandem up."
        )
    return running.address, running.dashboard_url, faults


def _gpus() -> tuple[list[Gpu], list[str]]:
    """The GPUs that the driver shows, asked through nvidia-smi, which comes with it."""
    if environments.flavour() == "cpu":
        return [], []
    query = "--query-gpu=name,memory.total,memory.free"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], [
            f"nvidia-smi does not run ({error}). Install the NVIDIA driver or set TANDEM_FLAVOUR=cpu."
        ]
    if done.returncode:
        said = (done.stdout + done.stderr).strip()
        return [], [f"nvidia-smi: {said}. Repair the NVIDIA driver or set TANDEM_FLAVOUR=cpu."]
    return [_gpu(line) for line in done.stdout.splitlines() if line.strip()], []


def _gpu(line: str) -> Gpu:
    name, total, free = (part.strip() for part in line.rsplit(",", 2))
    return Gpu(name, _mebibytes(total), _mebibytes(free))


def _mebibytes(text: str) -> int:
    """Bytes; 0 where the driver says ``[N/A]``, as it does for unified memory."""
    return int(text) * 2**20 if text.isdigit() else 0


def _store_root() -> Path | str:
    try:
        return open_store().uri
    except TandemError as error:
        return str(error)


def _store_faults() -> list[str]:
    """What keeps the store from being read, with the remedy."""
    try:
        with patience(STORE_PATIENCE_S):
            open_store().root.names()
    except TandemError as error:
        return [f"The store: {error}"]
    return []


def _disk(place: Path | str) -> dict[str, Any]:
    """Free bytes where ``place`` is or will be; None for a store that is not a local folder."""
    path = Path(str(place).removeprefix("file://"))
    if not path.is_absolute():
        return {"path": str(place), "free_bytes": None}
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return {"path": str(path), "free_bytes": shutil.disk_usage(existing).free}


def _disk_warnings(disks: dict[str, dict[str, Any]]) -> list[str]:
    variables = {"cache": "TANDEM_CACHE", "store": "TANDEM_STORE"}
    return [
        f"The {name} ({disk['path']}) has only {size(disk['free_bytes'])} free. Free some room, or set "
        f"{variables[name]} to a folder on another disk."
        for name, disk in disks.items()
        if disk["free_bytes"] is not None and disk["free_bytes"] < FREE_BYTES_WANTED
    ]


def _shm_bytes() -> int | None:
    shm = Path("/dev/shm")
    return shutil.disk_usage(shm).total if shm.exists() else None


def size(bytes_: int | None) -> str:
    """Bytes for people, in GB."""
    return "unknown" if bytes_ is None else f"{bytes_ / 1e9:.1f} GB"


def _limit_warnings(shm_bytes: int | None, open_files: int) -> list[str]:
    warnings = []
    if shm_bytes is not None and shm_bytes < SHM_BYTES_WANTED:
        warnings.append(
            f"/dev/shm is {size(shm_bytes)}; Ray's object store wants {size(SHM_BYTES_WANTED)} or more and "
            "falls back to the disk. In a container: docker run --shm-size=2g, or a memory emptyDir."
        )
    if open_files < OPEN_FILES_WANTED:
        warnings.append(
            f"The open-file limit is {open_files}; Ray wants {OPEN_FILES_WANTED} or more. "
            f"Run: ulimit -n {OPEN_FILES_WANTED}."
        )
    return warnings
