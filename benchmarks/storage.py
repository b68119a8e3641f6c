"""How fast storage moves files, against raw clients on the same server in the same run.

    python benchmarks/storage.py [--size-mib 1024] [--pairs 5] [--only local|gs|s3|cache]
                                 [--raw-python PATH] [--json FILE]

Each round runs Tandem and every raw client once, in turn, each in a process of its own; a first round warms
up and is not counted. Connecting is not measured; listing a folder is (Tandem lists, raw clients are told the
names). The servers are the tests' stand-ins, in Python and on the same cores: they bound every client, and
say nothing of Google's or Amazon's speed. All files come from the page cache and go there.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

# This file is named as the package that it measures: the checkout must come before its own folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.storage_child import MIB, Job
from benchmarks.storage_report import Result, show, show_cache, show_noise
from benchmarks.storage_tandem import place_in_store
from storage.location import delete_all
from storage.store import open_store
from tests.servers.fixtures import ROOT, gcs_server, make_gs_bucket, make_s3_bucket, s3_server

STORES = ("local", "gs", "s3", "cache")
_BUCKET = "bench"
_MOTO_MIB = 64
"""moto copies the whole object for every GET and takes memory to match: beyond 100 MiB it is all one sees."""


def main() -> None:
    """Measure and print."""
    given = _arguments()
    console = Console(width=None if sys.stdout.isatty() else 140)
    loads = {"at the start": os.getloadavg()[0]}
    results: list[Result] = []
    openings: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as text:
        scratch = Path(text)
        _settle(scratch)
        for store in [given.only] if given.only else STORES:
            console.print(f"{store} ...", style="dim")
            if store == "cache":
                openings = _cache(scratch, given.size_mib, given.pairs)
            else:
                results += _transfers(store, scratch, given, console)
    loads["at the end"] = os.getloadavg()[0]
    if results:
        show(console, results)
    if openings:
        show_cache(console, given.size_mib * MIB, openings)
    show_noise(console, results, loads)
    if given.json:
        data = {"loads": loads, "operations": [result.to_data() for result in results], "cache": openings}
        given.json.write_text(json.dumps(data, indent=2))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure storage against raw clients.")
    parser.add_argument("--size-mib", type=int, default=1024, help="the large file; the folder is as large")
    parser.add_argument("--pairs", type=int, default=5, help="counted rounds, at least 3")
    parser.add_argument("--only", choices=STORES, help="one store")
    parser.add_argument(
        "--raw-python", default=sys.executable, help="the interpreter that has the raw clients"
    )
    parser.add_argument("--json", type=Path, help="write every figure there")
    given = parser.parse_args()
    if given.pairs < 3 or given.size_mib < 16:
        parser.error("--pairs must be 3 or more, and --size-mib 16 or more: less says nothing.")
    return given


def _settle(scratch: Path) -> None:
    """Nothing of this machine's own settings, journals or cache is used."""
    home = {"TANDEM_HOME": "home", "TANDEM_CACHE": "cache", "TANDEM_STORE": "store"}
    os.environ.update({name: str(scratch / folder) for name, folder in home.items()})
    os.environ.pop("TANDEM_CONFIG", None)
    os.environ.update(
        AWS_ACCESS_KEY_ID="bench", AWS_SECRET_ACCESS_KEY="bench", AWS_DEFAULT_REGION="us-east-1"
    )


def _transfers(store: str, scratch: Path, given: argparse.Namespace, console: Console) -> list[Result]:
    clients = _installed(store, given.raw_python, console)
    files = scratch / store
    with _served(store):
        results = []
        for is_folder, sizes_bytes in _contents(store, given.size_mib):
            made = files / ("folder" if is_folder else "file")
            _make_files(made, sizes_bytes)
            for direction in ("up",) if store == "local" else ("up", "down"):
                job = _job(store, direction, is_folder, sizes_bytes, made, files)
                results.append(_measure(job, clients, given))
            shutil.rmtree(made)
    return results


def _installed(store: str, raw_python: str, console: Console) -> dict[str, str]:
    """What a raw child is asked for, by the client's name; those that are missing are said."""
    asked = [raw_python, "-m", "benchmarks.storage_raw", "--installed"]
    found = json.loads(subprocess.run(asked, cwd=ROOT, check=True, capture_output=True).stdout)
    mine = {name.partition("/")[2]: name for name in found if name.startswith(f"{store}/")}
    for client, name in mine.items():
        version = found[name]
        console.print(
            f"  {client} {version}" if version else f"  {client} is not installed: left out", style="dim"
        )
    return {client: name for client, name in mine.items() if found[name]}


@contextmanager
def _served(store: str) -> Iterator[None]:
    """The store's server with a bucket, where this process and its children look for it."""
    if store == "gs":
        with gcs_server() as url:
            make_gs_bucket(url, _BUCKET)
            os.environ["STORAGE_EMULATOR_HOST"] = url
            os.environ["TANDEM_STORAGE_OPTIONS"] = json.dumps({"gs://": {"anonymous": True}})
            yield
    elif store == "s3":
        with s3_server() as url:
            make_s3_bucket(url, _BUCKET)
            os.environ["AWS_ENDPOINT_URL"] = url
            yield
    else:
        yield


def _contents(store: str, size_mib: int) -> list[tuple[bool, dict[str, int]]]:
    """Whether it is a folder, and its files: one large, and many of one part or less, as large together."""
    many, each_mib = size_mib // 5, 5
    if store == "s3":
        many, each_mib = min(40, size_mib // 2), 2
        size_mib = min(size_mib, _MOTO_MIB)
    each = {f"part-{number:04d}.bin": each_mib * MIB for number in range(min(many, 200))}
    return [(False, {"large.bin": size_mib * MIB}), (True, each)]


def _make_files(folder: Path, sizes_bytes: dict[str, int]) -> None:
    folder.mkdir(parents=True)
    for name, size in sizes_bytes.items():
        with (folder / name).open("wb") as file:
            for start in range(0, size, MIB):
                file.write(os.urandom(min(MIB, size - start)))


def _job(
    store: str, direction: str, is_folder: bool, sizes_bytes: dict[str, int], made: Path, files: Path
) -> Job:
    bucket = "" if store == "local" else _BUCKET
    prefix = str(files / "target") if store == "local" else f"{direction}-{made.name}"
    job = Job(store, direction, is_folder, sizes_bytes, str(made), bucket, prefix)
    if direction == "up":
        return job
    # What is downloaded is brought there first, by an upload that nobody measures.
    _run_tandem(Job(store, "up", is_folder, sizes_bytes, str(made), bucket, prefix))
    return Job(store, direction, is_folder, sizes_bytes, str(files / "target"), bucket, prefix)


def _measure(job: Job, clients: dict[str, str], given: argparse.Namespace) -> Result:
    runs: dict[str, Callable[[], dict[str, float]]] = {"Tandem": lambda: _run_tandem(job)}
    for client, name in clients.items():
        # The floor only downloads.
        if client != "requests" or job.direction == "down":
            runs[client] = lambda name=name: _run(
                [given.raw_python, "-m", "benchmarks.storage_raw", name], job
            )
    taken: dict[str, list[dict[str, float]]] = {client: [] for client in runs}
    for round_number in range(given.pairs + 1):
        # To and fro, so that what drifts does not always meet the same client.
        for client in list(runs)[:: -1 if round_number % 2 else 1]:
            with _fresh_target(job, client):
                figures = runs[client]()
            if round_number:
                taken[client].append(figures)
    what = f"{len(job.names)} x {job.total_bytes // len(job.names) // MIB:,} MiB"
    way = "copy" if job.store == "local" else job.direction
    return Result(f"{job.store}, {what}, {way}", job.total_bytes, taken.pop("Tandem"), taken)


def _run_tandem(job: Job) -> dict[str, float]:
    return _run([sys.executable, "-m", "benchmarks.storage_tandem", "copy"], job)


def _run(command: list[str], job: Job) -> dict[str, float]:
    done = subprocess.run([*command, job.to_json()], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


@contextmanager
def _fresh_target(job: Job, client: str) -> Iterator[None]:
    """An empty target; in the end all must be there, and is removed. Neither is measured."""
    is_here = job.store == "local" or job.direction == "down"
    place = place_in_store(job)
    folder = Path(job.prefix if job.store == "local" else job.folder)
    if is_here:
        folder.mkdir()
    yield
    if is_here:
        found = {path.name: path.stat().st_size for path in folder.iterdir()}
    else:
        found = {place.relative(entry): entry.size_bytes for entry in place.find()}
    if found != job.sizes_bytes:
        raise SystemExit(f"{client}: {job.direction}load of {len(job.names)} files is not whole: {found}")
    if is_here:
        shutil.rmtree(folder)
    else:
        delete_all(place.at(entry) for entry in place.find())


def _cache(scratch: Path, size_mib: int, pairs: int) -> list[dict[str, Any]]:
    """A model is published to a store on this disk, and opened through a fresh cache in each round."""
    model, store = scratch / "model", str(scratch / "model-store")
    _make_files(model, {"model.safetensors": size_mib * MIB})
    (model / "config.json").write_text("{}")
    open_store(store).publish_model(model, "bench")
    shutil.rmtree(model)
    openings = []
    for _ in range(pairs):
        command = [sys.executable, "-m", "benchmarks.storage_tandem", "--opens", store, "bench"]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
        openings.append(json.loads(done.stdout))
        shutil.rmtree(os.environ["TANDEM_CACHE"])
    return openings


if __name__ == "__main__":
    main()
