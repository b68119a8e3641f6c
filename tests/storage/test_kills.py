"""Processes that are killed at any moment, and that race: what is visible is whole, and one of two wins."""

from __future__ import annotations

import getpass
import itertools
import json
import os
import random
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from runtime.core.errors import TandemError

# Whatever a child needs, so that the process it is forked from has it already.
from storage.backends import gs, s3  # noqa: F401
from storage.cache import NodeCache, node_cache
from storage.local_files import sha256_of
from storage.location import Location
from storage.manifest import MANIFEST_NAME
from storage.store import Store, open_store
from tests.servers.fixtures import ROOT
from tests.storage.conftest import PlaceOf

KILLS = 25
"""With each of two stores: 50 uploads and 50 downloads are killed."""
RACES = 20
LARGE_BYTES = 20_000_003
DEADLINE_S = 60.0
KINDS = ["local", "gs", "s3"]


# The process that forks: it has imported everything and is connected to nothing


def publish(store: str, folder: str, version: str, run: str | None = None) -> dict[str, Any]:
    """Publish one version of ``m``."""
    found = open_store(store).publish_model(Path(folder), "m", version=version, run=run)
    return {"version": found.version}


def publish_until_stopped(store: str, folders: list[str], stop: str) -> dict[str, Any]:
    """Publish one version after the other until somebody makes the file ``stop``."""
    for number in range(1000):
        if Path(stop).exists():
            return {"versions": number}
        open_store(store).publish_model(Path(folders[number % len(folders)]), "m")
    raise TimeoutError("nobody stopped it")


def fetch(store: str, version: str) -> dict[str, Any]:
    """Bring a version of ``m`` to this node."""
    with open_store(store).model(f"m/{version}").fetch() as folder:
        return {"path": str(folder.path)}


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    job.__name__: job for job in (publish, publish_until_stopped, fetch)
}


CHANGES = {"os.link", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.utime"}
"""Besides opening a file to write; as Python's audit events are called."""


def serve() -> None:
    """Answer every line of standard input: start its jobs at the same moment, kill what takes too long."""
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_run(request["jobs"], request["kill_after_s"])), flush=True)


def _run(jobs: list[dict[str, Any]], kill_after_s: float) -> list[dict[str, Any] | None]:
    gate, opener = os.pipe()
    children = [_fork(job, gate, opener) for job in jobs]
    os.close(gate)
    os.close(opener)
    deadline = time.monotonic() + kill_after_s
    return [_result(pid, answer, deadline) for pid, answer in children]


def _fork(job: dict[str, Any], gate: int, opener: int) -> tuple[int, int]:
    """A child that waits for the gate, does the job, and answers through a pipe."""
    answer, answering = os.pipe()
    pid = os.fork()
    if pid:
        os.close(answering)
        return pid, answer
    os.close(opener)
    os.environ.update(job["environment"])
    if job["dies_at"]:
        sys.addaudithook(_dying_at(job["dies_at"]))
    # At its end when the last opener is closed.
    os.read(gate, 1)
    try:
        result = JOBS[job["job"]](**job["arguments"])
    except TandemError as error:
        result = {"error": type(error).__name__, "message": str(error)}
    os.write(answering, json.dumps(result).encode())
    os._exit(0)


def _dying_at(step: int) -> Callable[[str, tuple[Any, ...]], None]:
    """Kills this process just before so many-th change of files."""
    steps = itertools.count(1)

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return look


def _result(pid: int, answer: int, deadline: float) -> dict[str, Any] | None:
    """What the child answered; None: it was killed."""
    watched = os.pidfd_open(pid)
    ended, _, _ = select.select([watched], [], [], max(0.0, deadline - time.monotonic()))
    if not ended:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(answer, "rb") as pipe:
        text = pipe.read()
    os.close(watched)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    return json.loads(text) if text else {"error": "died", "message": f"wait status {status}"}


@dataclass
class Forker:
    """The process that forks, as a test sees it."""

    process: subprocess.Popen[str]
    environment: dict[str, str]

    def job(self, name: str, *, dies_at: int = 0, **arguments: object) -> dict[str, Any]:
        """A job with the settings that hold now, as ``run`` takes it.

        Args:
            name: One of ``JOBS``.
            dies_at: Before which change of files it is killed; 0: before none.
            arguments: The job's.
        """
        ours = {key: value for key, value in os.environ.items() if key.startswith(("TANDEM_", "AWS_", "NO_"))}
        environment = ours | self.environment
        return {"job": name, "arguments": arguments, "environment": environment, "dies_at": dies_at}

    def start(self, *jobs: dict[str, Any], kill_after_s: float = DEADLINE_S) -> None:
        """Start the jobs together; ``results`` waits for them."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"jobs": jobs, "kill_after_s": kill_after_s}) + "\n")
        self.process.stdin.flush()

    def results(self) -> list[dict[str, Any] | None]:
        """What each job returned; None where it was killed."""
        assert self.process.stdout
        found: list[dict[str, Any] | None] = json.loads(self.process.stdout.readline())
        assert not [one for one in found if one and one.get("error") == "died"]
        return found

    def run(self, *jobs: dict[str, Any], kill_after_s: float = DEADLINE_S) -> list[dict[str, Any] | None]:
        self.start(*jobs, kill_after_s=kill_after_s)
        return self.results()


@pytest.fixture(scope="module")
def forking() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", "from tests.storage.test_kills import serve; serve()"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        assert process.stdin
        yield process
        process.stdin.close()
        process.wait(DEADLINE_S)


@pytest.fixture
def forker(forking: subprocess.Popen[str]) -> Forker:
    return Forker(forking, {})


# What is checked


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 20 MB: three parts, and a small file."""
    return model_in(tmp_path_factory.mktemp("trained"), LARGE_BYTES)


@pytest.fixture(scope="module")
def trained_less(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose large file has two parts."""
    return model_in(tmp_path_factory.mktemp("less"), 9_000_000)


def model_in(folder: Path, size_bytes: int) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"who": secrets.token_hex(8)}))
    (folder / "model.safetensors").write_bytes(os.urandom(size_bytes))
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def stored(place: Location) -> dict[str, bytes]:
    return {place.relative(entry): place.at(entry).read_bytes() for entry in place.find()}


class Killing:
    """Kills at any moment of the time it takes when nobody does; ``TANDEM_TEST_SEED`` sets the moments."""

    def __init__(self) -> None:
        seed = int(os.environ.get("TANDEM_TEST_SEED") or secrets.randbits(32))
        print(f"TANDEM_TEST_SEED={seed}")
        self._chance = random.Random(seed)
        self._usual_s = DEADLINE_S
        self.killed = 0

    def run(self, forker: Forker, job: dict[str, Any]) -> dict[str, Any] | None:
        """What the job returned, or None where it was killed; the first time it is not."""
        limit_s = self._chance.uniform(0, self._usual_s) if self._usual_s < DEADLINE_S else DEADLINE_S
        began_s = time.monotonic()
        (result,) = forker.run(job, kill_after_s=limit_s)
        if result is None:
            self.killed += 1
        else:
            # As busy as the machine is now.
            self._usual_s = time.monotonic() - began_s
        return result


@pytest.mark.parametrize("kind", ["gs", "s3"])
def test_an_upload_that_is_killed_at_any_moment_leaves_no_partial_version(
    forker: Forker, place_of: PlaceOf, trained: Path, kind: str
):
    store = Store(place_of(kind))
    source = files_of(trained)

    def job(number: int) -> dict[str, Any]:
        return forker.job("publish", store=store.uri, folder=str(trained), version=f"v{number}")

    killing = Killing()
    assert killing.run(forker, job(1))
    committed = 1
    for _ in range(KILLS):
        result = killing.run(forker, job(committed + 1))
        # First the latest: the server may still be at the last request of one that was killed.
        latest = store.model("m").version
        versions = {version.version: version for version in store.models("m")}
        # Killed after the manifest, it is committed all the same.
        new = versions.get(f"v{committed + 1}")
        committed += new is not None
        assert set(versions) == {f"v{number}" for number in range(1, committed + 1)}
        assert latest in versions and (result is None or new is not None)
        if new:
            assert stored(new.files) == source
    assert killing.killed >= KILLS / 4
    # A version that none of those that were killed can have committed in its last moment.
    assert forker.run(job(committed + 2)) == [{"version": f"v{committed + 2}"}]
    assert store.model("m").version == f"v{committed + 2}"
    assert all(stored(version.files) == source for version in store.models("m"))


@pytest.mark.parametrize("kind", ["gs", "s3"])
def test_a_download_that_is_killed_at_any_moment_leaves_nothing_that_counts(
    forker: Forker, place_of: PlaceOf, trained: Path, tmp_path: Path, kind: str
):
    store, source = Store(place_of(kind)), files_of(trained)
    store.publish_model(trained, "m", version="v1")

    def job(cache: int) -> dict[str, Any]:
        into = replace(forker, environment={"TANDEM_FILE_CACHE": str(tmp_path / f"cache-{cache}")})
        return into.job("fetch", store=store.uri, version="v1")

    killing = Killing()
    assert killing.run(forker, job(0))
    number = 1
    for _ in range(KILLS):
        result = killing.run(forker, job(number))
        cache = NodeCache(tmp_path / f"cache-{number}")
        held = cache.held()
        assert all(files_of(folder.path) == source for folder in held) and not any(f.in_use for f in held)
        assert all(sha256_of(blob) == blob.name for blob in cache.root.glob("blobs/*/*"))
        # The next one goes on where this one was cut, until one has it all.
        number += bool(held)
        assert result is None or held
    assert killing.killed >= KILLS / 4
    (result,) = forker.run(job(number))
    assert result and files_of(Path(result["path"])) == source


@pytest.mark.parametrize("kind", ["local", "gs"])
def test_a_download_that_is_killed_at_every_step_leaves_nothing_that_counts(
    forker: Forker, place_of: PlaceOf, trained_less: Path, tmp_path: Path, kind: str
):
    store, source = Store(place_of(kind)), files_of(trained_less)
    store.publish_model(trained_less, "m", version="v1")
    for step in itertools.count(1):
        root = tmp_path / f"cache-{step}"
        into = replace(forker, environment={"TANDEM_FILE_CACHE": str(root)})
        (result,) = into.run(into.job("fetch", store=store.uri, version="v1", dies_at=step))
        assert all(files_of(held.path) == source for held in NodeCache(root).held())
        assert all(sha256_of(blob) == blob.name for blob in root.glob("blobs/*/*"))
        (again,) = into.run(into.job("fetch", store=store.uri, version="v1"))
        assert again and files_of(Path(again["path"])) == source
        shutil.rmtree(root)
        if result:
            break
    assert step > 10


def test_publishing_on_a_file_system_that_is_killed_at_every_step_shows_nothing_half(
    forker: Forker, place_of: PlaceOf, trained_less: Path
):
    store, source = Store(place_of("local")), files_of(trained_less)
    for step in itertools.count(1):
        how = {"store": store.uri, "folder": str(trained_less), "version": f"v{step}"}
        (result,) = forker.run(forker.job("publish", dies_at=step, **how))
        visible = [version for version in store.models("m") if version.version == how["version"]]
        assert all(stored(version.files) == source for version in visible)
        if result:
            break
        (again,) = forker.run(forker.job("publish", **how))
        assert again and ("error" in again) == bool(visible)
        assert stored(store.model(f"m/v{step}").files) == source
    assert step > 10


# Races


@pytest.mark.parametrize("kind", KINDS)
def test_of_two_publishers_of_one_version_one_wins_and_the_other_is_told_who(
    forker: Forker, place_of: PlaceOf, tmp_path: Path, kind: str
):
    store = Store(place_of(kind))
    one, other = (model_in(tmp_path / name, 300_000) for name in ("one", "other"))
    for number in range(RACES):
        # Every fourth time both have the same content.
        folders = [one, one if number % 4 == 3 else other]
        about = {"store": store.uri, "version": f"v{number}"}
        jobs = [
            forker.job("publish", folder=str(folder), run=f"r-{at}", **about)
            for at, folder in enumerate(folders)
        ]
        results = forker.run(*jobs)
        winners = [at for at, result in enumerate(results) if result and "error" not in result]
        assert len(winners) == 1, results
        winner, loser = winners[0], results[1 - winners[0]]
        assert loser and loser["error"] == "Conflict"
        place = store.locate(f"models/m/v{number}")
        assert str(place) in loser["message"]
        assert f"it was committed by {getpass.getuser()}@{socket.gethostname()} at " in loser["message"]
        assert f"from run r-{winner}. Choose another name or version." in loser["message"]
        found = store.model(f"m/v{number}")
        assert found.manifest and found.manifest.run == f"r-{winner}"
        wanted = {f"{found.manifest.prefix}/{name}": data for name, data in files_of(folders[winner]).items()}
        there = stored(place)
        del there[MANIFEST_NAME]
        assert there == wanted
        assert list(place.backend.unfinished(place.key)) == []
        if kind == "local":
            assert set(files_of(Path(place.key))) == {*wanted, MANIFEST_NAME}
            assert [path.name for path in Path(place.key).iterdir() if path.is_dir()] == [
                found.manifest.prefix
            ]
    assert store.model("m").version == f"v{RACES - 1}"


@pytest.mark.parametrize("kind", KINDS)
def test_who_reads_while_others_publish_sees_whole_versions_only(
    forker: Forker, place_of: PlaceOf, tmp_path: Path, kind: str
):
    store, stop = Store(place_of(kind)), tmp_path / "stop"
    # Two parts in the large file, so that uploads take a while; no version is like the one before.
    folders = [model_in(tmp_path / f"source-{number}", 9_000_000) for number in range(3)]
    sources = [files_of(folder) for folder in folders]
    forker.start(
        forker.job(
            "publish_until_stopped", store=store.uri, folders=[str(f) for f in folders], stop=str(stop)
        )
    )
    try:
        deadline, seen = time.monotonic() + DEADLINE_S / 2, set[str]()
        while len(seen) < 5:
            assert time.monotonic() < deadline, f"only {seen} were published in time"
            for version in store.models("m"):
                assert version.manifest and version.version
                with version.fetch() as folder:
                    for file in version.manifest.files:
                        assert sha256_of(folder.path / file.path) == file.sha256
                    assert files_of(folder.path) in sources
                seen.add(version.version)
            if seen:
                assert store.model("m").manifest is not None
            node_cache().trim(0)
    finally:
        stop.touch()
        (result,) = forker.results()
    assert result and [version.version for version in store.models("m")] == [
        f"v{number}" for number in range(1, result["versions"] + 1)
    ]
