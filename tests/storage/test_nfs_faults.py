"""Faults of a network mount: stale handles, lost answers, full and failing disks, and two nodes at once."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtime.core.errors import Conflict, NoSpace, StorageError, Unreachable
from storage.cache import node_cache
from storage.location import locate
from storage.manifest import MANIFEST_NAME
from storage.patience import patience
from storage.store import Store
from tests.servers.nfs_like import FAULTS, NfsLike, nfs_like

LARGE_BYTES = 17_000_003
"""Three parts of 8 MiB, the last one short."""
RACES = 10
WEIGHTS = "model.safetensors"


@pytest.fixture
def nfs(nfs_mount: NfsLike) -> Iterator[NfsLike]:
    """The mount, without faults before and after."""
    yield nfs_mount
    without_faults(nfs_mount)


def without_faults(mount: NfsLike) -> None:
    for fault in FAULTS:
        mount.set_fault(fault, times=0)


@pytest.fixture
def store(nfs: NfsLike) -> Store:
    """An empty store on the mount."""
    return Store(locate(str(nfs.path / f"store-{secrets.token_hex(4)}")))


@pytest.fixture
def other_nodes_store(store: Store, nfs: NfsLike, tmp_path: Path) -> Iterator[tuple[Store, NfsLike]]:
    """The same store through another mount, as another node sees it."""
    with nfs_like(nfs.backing, tmp_path / "other-node") as other:
        yield Store(locate(str(other.path / store.root.name))), other


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a large file, on a local disk."""
    return model_in(tmp_path_factory.mktemp("trained"), LARGE_BYTES)


def model_in(folder: Path, size_bytes: int) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"who": secrets.token_hex(8)}))
    (folder / WEIGHTS).write_bytes(os.urandom(size_bytes))
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def on_the_server(nfs: NfsLike, store: Store, folder: str) -> dict[str, bytes]:
    """Every file below a folder of the store, temporary ones too, without the mount."""
    return files_of(nfs.backing / store.root.name / folder)


def assert_version(nfs: NfsLike, store: Store, ref: str, source: Path) -> None:
    """It is there, whole and with nothing beside it, on the server and through the mount."""
    version = store.model(ref)
    assert version.manifest
    wanted = {f"{version.manifest.prefix}/{name}": data for name, data in files_of(source).items()}
    there = on_the_server(nfs, store, f"models/{ref}")
    assert json.loads(there.pop(MANIFEST_NAME))["attempt"] == version.manifest.attempt
    assert there == wanted
    with version.fetch() as folder:
        assert files_of(folder.path) == files_of(source)


@contextmanager
def suffering(nfs: NfsLike, fault: str, times: int, path_regex: str) -> Iterator[None]:
    """The fault, which must have happened that often by the end of the block."""
    before = nfs.fired(fault)
    nfs.set_fault(fault, times, path_regex)
    yield
    assert nfs.fired(fault) - before == times
    nfs.set_fault(fault, times=0)


# What passes, or only looks like a fault

PUBLISHING = {
    "the temporary file is stale when opened": ("estale_on_open", 3, rf"\.{WEIGHTS}\.tandem-"),
    "the temporary file is stale when looked at": ("estale_on_getattr", 2, rf"\.{WEIGHTS}\.tandem-"),
    "the store is stale when listed": ("estale_on_getattr", 4, r"/models/m$"),
    "the files are stale when verified": ("estale_on_getattr", 2, rf"/files-[0-9a-f]*/{WEIGHTS}$"),
    "the manifest is stale when looked at": ("estale_on_getattr", 1, rf"/{MANIFEST_NAME}$"),
    "the manifest is stale when read": ("estale_on_open", 2, rf"/{MANIFEST_NAME}$"),
    "the pointer is stale when looked at": ("estale_on_getattr", 1, r"/latest\.json$"),
    "the answer to a rename lost": ("rename_replayed", 2, rf"/({WEIGHTS}|config\.json)$"),
    "the answer to the pointer's rename lost": ("rename_replayed", 1, r"/latest\.json$"),
    "the answer to the manifest's link lost": ("link_replayed", 1, rf"/{MANIFEST_NAME}$"),
}


@pytest.mark.parametrize("fault, times, path_regex", PUBLISHING.values(), ids=PUBLISHING.keys())
def test_publishing_survives(
    nfs: NfsLike, store: Store, trained: Path, fault: str, times: int, path_regex: str
):
    with suffering(nfs, fault, times, path_regex):
        store.publish_model(trained, "m", version="v1")
        assert store.model("m").ref == "m/v1"
    assert_version(nfs, store, "m/v1", trained)


FETCHING = {
    "stale when opened": ("estale_on_open", 3, WEIGHTS),
    "stale when read": ("estale_on_read", 2, WEIGHTS),
    "stale when looked at": ("estale_on_getattr", 2, "/files-"),
    "stale manifest": ("estale_on_getattr", 1, MANIFEST_NAME),
    "stale manifest when opened": ("estale_on_open", 2, MANIFEST_NAME),
}


@pytest.mark.parametrize("fault, times, path_regex", FETCHING.values(), ids=FETCHING.keys())
def test_fetching_survives(
    nfs: NfsLike, store: Store, trained: Path, fault: str, times: int, path_regex: str
):
    # By another client, so that this one's kernel has nothing in its page cache.
    Store(locate(str(nfs.backing / store.root.name))).publish_model(trained, "m", version="v1")
    with suffering(nfs, fault, times, path_regex), store.model("m/v1").fetch() as folder:
        assert files_of(folder.path) == files_of(trained)


def test_a_listing_leaves_nothing_out_that_is_stale_for_a_moment(nfs: NfsLike, store: Store, tmp_path: Path):
    source = model_in(tmp_path / "source", 1000)
    for _ in range(3):
        store.publish_model(source, "m")
    for times in range(1, 4):
        with suffering(nfs, "estale_on_getattr", times, "/models/m/v2"):
            assert [version.ref for version in store.models()] == ["m/v1", "m/v2", "m/v3"]


class Interrupted(Exception):
    """Somebody pressed a key."""


class InterruptedAfter:
    """A progress that ends the transfer when so many bytes have been moved."""

    def __init__(self, size_bytes: int) -> None:
        self._left_bytes = size_bytes

    def total(self, size_bytes: int) -> None:
        return

    def advance(self, size_bytes: int) -> None:
        self._left_bytes -= size_bytes
        if self._left_bytes < 0:
            raise Interrupted


@pytest.mark.parametrize("fault", ["estale_on_open", "estale_on_read", "estale_on_getattr"])
def test_an_interrupted_upload_goes_on_though_its_file_is_stale(
    nfs: NfsLike, store: Store, trained: Path, fault: str
):
    with pytest.raises(Interrupted):
        store.publish_model(trained, "m", version="v1", progress=InterruptedAfter(9_000_000))
    assert store.models() == []
    assert any(".tmp" in name for name in on_the_server(nfs, store, "models"))
    with suffering(nfs, fault, 2, rf"\.{WEIGHTS}\.tandem-"):
        store.publish_model(trained, "m", version="v1")
    assert_version(nfs, store, "m/v1", trained)


def test_what_a_server_lost_of_an_interrupted_upload_is_sent_again(nfs: NfsLike, store: Store, trained: Path):
    with pytest.raises(Interrupted):
        store.publish_model(trained, "m", version="v1", progress=InterruptedAfter(9_000_000))
    # It said that it had the bytes, lost its power, and has the length only.
    (begun,) = (nfs.backing / store.root.name).rglob(f".{WEIGHTS}.tandem-*")
    begun.write_bytes(bytes(begun.stat().st_size))
    store.publish_model(trained, "m", version="v1")
    assert_version(nfs, store, "m/v1", trained)


def test_a_run_begins_though_the_answer_to_its_record_was_lost(nfs: NfsLike, store: Store):
    with suffering(nfs, "link_replayed", 1, r"/run\.json"):
        run = store.new_run("r", '{"name": "r"}')
    assert [found.run_id for found in store.runs()] == [run.run_id] and run.spec_json() == '{"name": "r"}'


# What does not pass

FAILING = {
    "no room for a file": ("enospc_on_write", WEIGHTS, NoSpace, "is full .*Free some room there, and try"),
    "no room for the manifest": ("enospc_on_write", MANIFEST_NAME, NoSpace, "is full .*Free some room there"),
    "a small file is not made durable": (
        "eio_on_fsync",
        "config.json",
        StorageError,
        "Input/output error. Check the disk or the mount",
    ),
    "a large file is not made durable": (
        "eio_on_fsync",
        WEIGHTS,
        StorageError,
        "Input/output error. Check the disk or the mount",
    ),
    "the manifest is not made durable": (
        "eio_on_fsync",
        rf"\.{MANIFEST_NAME}\.",
        StorageError,
        "Input/output error. Check the disk or the mount",
    ),
}


@pytest.mark.parametrize("fault, path_regex, kind, remedy", FAILING.values(), ids=FAILING.keys())
def test_publishing_that_fails_leaves_nothing_visible_and_succeeds_afterwards(
    nfs: NfsLike,
    store: Store,
    trained: Path,
    fault: str,
    path_regex: str,
    kind: type[StorageError],
    remedy: str,
):
    with suffering(nfs, fault, 1, path_regex), pytest.raises(kind, match=remedy) as caught:
        store.publish_model(trained, "m", version="v1")
    assert store.uri in str(caught.value) and type(caught.value) is kind
    assert store.models() == [] and (store.locate("models/m/v1") / MANIFEST_NAME).stat() is None
    store.publish_model(trained, "m", version="v1")
    assert_version(nfs, store, "m/v1", trained)


def test_a_pointer_that_cannot_be_moved_is_told_and_the_version_is_there(
    nfs: NfsLike, store: Store, tmp_path: Path
):
    old, new = (model_in(tmp_path / name, 1000) for name in ("old", "new"))
    store.publish_model(old, "m")
    with (
        suffering(nfs, "enospc_on_write", 1, r"latest\.json"),
        pytest.raises(NoSpace, match=r"/models/m/latest\.json: .*Free some room there"),
    ):
        store.publish_model(new, "m")
    assert_version(nfs, store, "m/v1", old)
    assert_version(nfs, store, "m/v2", new)
    assert store.model("m").ref == "m/v1"
    assert store.publish_model(new, "m").ref == "m/v3" == store.model("m").ref


def test_a_mount_that_stays_stale_is_told_in_time(nfs: NfsLike, store: Store, trained: Path):
    store.publish_model(trained, "m", version="v1")
    nfs.set_fault("estale_on_open", 1000, MANIFEST_NAME)
    remedy = r"Stale file handle \(tried .*\)\. Check the address and the network, or give it more time"
    with patience(0.5), pytest.raises(Unreachable, match=remedy) as caught:
        store.models()
    assert store.uri in str(caught.value)
    without_faults(nfs)
    assert_version(nfs, store, "m/v1", trained)


def test_who_loses_is_told_to_whom_and_changes_nothing(nfs: NfsLike, store: Store, tmp_path: Path):
    first, second = (model_in(tmp_path / name, 1000) for name in ("first", "second"))
    store.publish_model(first, "m", version="v1", run="r-1")
    with pytest.raises(Conflict, match=r"committed by .*@.* from run r-1\. Choose another name or version"):
        store.publish_model(second, "m", version="v1")
    assert_version(nfs, store, "m/v1", first)


# Metrics, and the node cache


def test_metrics_are_neither_lost_nor_doubled_nor_half_written(nfs: NfsLike, store: Store):
    run = store.new_run("r", "{}")
    log = run.metrics_log()
    lines = [{"step": step, "loss": 1 / (step + 1)} for step in range(8)]
    log.append(lines[0])
    for line, (fault, times) in zip(
        lines[1:5],
        [("estale_on_open", 2), ("estale_on_getattr", 1), ("enospc_on_write", 1), ("estale_on_open", 1)],
        strict=True,
    ):
        with suffering(nfs, fault, times, "metrics.jsonl"):
            log.append(line)
    log.append(lines[5])
    assert run.metrics() == lines[:6]
    with suffering(nfs, "rename_replayed", 1, "metrics.jsonl"):
        log.forget_after(3)
    log.append(lines[6])
    log.close()
    assert run.metrics() == [*lines[:4], lines[6]]
    with suffering(nfs, "estale_on_read", 1, "metrics.jsonl"):
        assert run.metrics() == [*lines[:4], lines[6]]


def test_a_run_that_goes_on_writes_after_what_a_killed_writer_left(nfs: NfsLike, store: Store):
    run = store.new_run("r", "{}")
    log = run.metrics_log()
    log.append({"step": 1})
    folder = nfs.backing / store.root.name / Path(run.uri).relative_to(store.uri)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    again = run.metrics_log()
    again.append({"step": 2})
    assert run.metrics() == [{"step": 1}, {"step": 2}]


def test_a_node_cache_on_a_mount_without_locks_says_where_else_to_put_it(
    nfs: NfsLike, store: Store, trained: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TANDEM_FILE_CACHE", str(nfs.path / "cache"))
    # Without a lock there is no journal, and nothing else that publishing needs.
    version = store.publish_model(trained, "m", version="v1")
    with pytest.raises(StorageError, match=r"cannot be locked \(No locks .*Set TANDEM_FILE_CACHE to"):
        version.fetch()
    assert str(node_cache().root) == str(nfs.path / "cache")
    monkeypatch.delenv("TANDEM_FILE_CACHE")
    assert_version(nfs, store, "m/v1", trained)


# Two nodes


def was_asked_about(node: Store, nfs: NfsLike, version: str) -> None:
    """The node's kernel knows that there is no manifest yet: a publisher has begun."""
    place = node.locate(f"models/m/{version}")
    (nfs.backing / node.root.name / "models" / "m" / version).mkdir(parents=True, exist_ok=True)
    assert (place / MANIFEST_NAME).stat() is None


def test_another_node_sees_a_version_late_but_whole(
    nfs: NfsLike, store: Store, other_nodes_store: tuple[Store, NfsLike], trained: Path
):
    other, mount = other_nodes_store
    was_asked_about(other, nfs, "v1")
    assert other.models() == []
    mount.set_fault("stale_getattr", 1, MANIFEST_NAME, duration_s=60)
    store.publish_model(trained, "m", version="v1")
    # Its kernel still says that there is nothing.
    assert other.models() == []
    assert mount.fired("stale_getattr") == 1
    without_faults(mount)
    with other.model("m").fetch() as folder:
        assert files_of(folder.path) == files_of(trained)


def test_another_node_follows_a_pointer_late_and_not_astray(
    nfs: NfsLike, store: Store, other_nodes_store: tuple[Store, NfsLike], tmp_path: Path
):
    other, mount = other_nodes_store
    source = model_in(tmp_path / "source", 1000)
    store.publish_model(source, "m", version="v9")
    assert other.model("m").ref == "m/v9"
    mount.set_fault("stale_getattr", 1, r"latest\.json", duration_s=60)
    store.publish_model(source, "m", version="x9")
    assert other.model("m").ref in ("m/v9", "m/x9")
    assert mount.fired("stale_getattr") == 1
    without_faults(mount)
    assert other.model("m").ref == "m/x9"


@pytest.mark.parametrize("is_stale", [False, True], ids=["fresh", "stale"])
def test_of_two_nodes_that_publish_one_version_one_wins(
    nfs: NfsLike,
    store: Store,
    other_nodes_store: tuple[Store, NfsLike],
    tmp_path: Path,
    is_stale: bool,
):
    other, mount = other_nodes_store
    sources = [model_in(tmp_path / name, 500_000) for name in ("one", "other")]

    def publish(node: Store, source: Path, version: str, run: str) -> str | Conflict:
        try:
            return node.publish_model(source, "m", version=version, run=run).ref
        except Conflict as error:
            return error

    for number in range(RACES):
        version = f"v{number}"
        if is_stale:
            was_asked_about(other, nfs, version)
            mount.set_fault("stale_getattr", 3, rf"m/{version}/{MANIFEST_NAME}", duration_s=0.3)
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(publish, (store, other), sources, [version] * 2, ("r-0", "r-1")))
        winners = [at for at, result in enumerate(results) if result == f"m/{version}"]
        assert len(winners) == 1, results
        lost = str(results[1 - winners[0]])
        assert f"models/m/{version}" in lost and "hoose another name or version" in lost
        without_faults(mount)
        assert_version(nfs, store, f"m/{version}", sources[winners[0]])
    assert [found.version for found in other.models("m")] == [f"v{number}" for number in range(RACES)]


def test_two_nodes_that_publish_without_a_version_each_get_one(
    nfs: NfsLike, store: Store, other_nodes_store: tuple[Store, NfsLike], tmp_path: Path
):
    other, _ = other_nodes_store
    source = model_in(tmp_path / "source", 10_000)
    with ThreadPoolExecutor(4) as pool:
        published = list(pool.map(lambda node: node.publish_model(source, "m").ref, [store, other] * 4))
    assert sorted(published) == [f"m/v{number}" for number in range(1, 9)]
    assert store.model("m").ref == other.model("m").ref
