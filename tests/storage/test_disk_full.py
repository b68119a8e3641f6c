"""Full disks: said before anything is written where that can be known, and nothing half is left where not."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from runtime.core.errors import NoSpace
from storage.cache import node_cache
from storage.location import locate
from storage.store import Store, open_store
from storage.transfer import copy_file
from tests.servers.proxy import Fault, FaultProxy
from tests.servers.small_disk import small_disk
from tests.storage.conftest import BUCKET, PlaceOf

DISK_BYTES = 24 << 20
TOO_LARGE_BYTES = 30_000_000
LARGE_BYTES = 18_000_000
"""Three parts, and most of the disk."""
SMALL_BYTES = 7_000_000
SIZES = {False: [SMALL_BYTES, SMALL_BYTES], True: [LARGE_BYTES]}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MiB."""
    with small_disk(tmp_path / "disk", size_bytes=DISK_BYTES) as folder:
        yield folder


def free_bytes(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def fill(disk: Path) -> Path:
    """A file that takes all the room that is left."""
    path = disk / "filling"
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
    with path.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert free_bytes(disk) == 0
    return path


class FillingUp:
    """A progress that fills the disk: before the first byte comes, or ``late``, after the first part."""

    def __init__(self, disk: Path, *, late: bool) -> None:
        self._disk = disk
        self._late = late
        self._lock = threading.Lock()
        self._filling: Path | None = None

    def total(self, size_bytes: int) -> None:
        if not self._late:
            self._filling = fill(self._disk)

    def advance(self, size_bytes: int) -> None:
        with self._lock:
            self._filling = self._filling or fill(self._disk)

    def undo(self) -> None:
        """Make the room again."""
        assert self._filling
        self._filling.unlink()


def model(folder: Path, *sizes_bytes: int) -> Path:
    """A model whose weights are files of these sizes."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for number, size_bytes in enumerate(sizes_bytes):
        (folder / f"part-{number}.safetensors").write_bytes(os.urandom(size_bytes))
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


# The node cache


@pytest.fixture
def cache(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node cache that may use the whole disk."""
    settings = tmp_path / "config.yaml"
    settings.write_text(json.dumps({"cache": {"max_bytes": DISK_BYTES}}))
    monkeypatch.setenv("TANDEM_CONFIG", str(settings))
    monkeypatch.setenv("TANDEM_FILE_CACHE", str(disk / "cache"))
    return disk / "cache"


@pytest.fixture(params=["local", "gs", "s3"])
def store(request: pytest.FixtureRequest, place_of: PlaceOf) -> Store:
    """A store with room, elsewhere."""
    return Store(place_of(request.param))


def test_a_model_that_cannot_fit_is_refused_before_a_byte_is_moved(store: Store, cache: Path, tmp_path: Path):
    large = store.publish_model(model(tmp_path / "large", TOO_LARGE_BYTES), "large")
    small = store.publish_model(model(tmp_path / "small", SMALL_BYTES), "small")
    with pytest.raises(NoSpace) as caught:
        large.fetch()
    assert f"the node cache {cache} has no room for" in str(caught.value)
    assert f"its disk has {free_bytes(cache):,} free" in str(caught.value)
    assert "Free some room, raise cache.max_bytes in the workspace config, or set TANDEM_FILE_CACHE" in str(
        caught.value
    )
    assert node_cache().held() == [] and free_bytes(cache) > DISK_BYTES - 500_000
    with small.fetch() as folder:
        assert files_of(folder.path) == files_of(tmp_path / "small")


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """On one processor, parts of local files are copied one after the other."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.parametrize("late", [False, True], ids=["whole files", "in parts"])
@pytest.mark.parametrize("kind", ["local", "gs"])
def test_a_disk_that_fills_up_meanwhile_keeps_nothing_of_the_download(
    place_of: PlaceOf, gs_proxy: FaultProxy, cache: Path, tmp_path: Path, one_cpu: None, kind: str, late: bool
):
    store = Store(place_of("local") if kind == "local" else locate(f"gs://{BUCKET}/{tmp_path.name}"))
    version = store.publish_model(model(tmp_path / "model", *SIZES[late]), "m")
    small = store.publish_model(model(tmp_path / "small", SMALL_BYTES), "small")
    filling_up = FillingUp(cache.parent, late=late)
    # Of parts that come side by side, one comes a second after the others.
    gs_proxy.add(Fault("status", status=503, retry_after_s=1, min_body_bytes=5_000_000))
    with pytest.raises(NoSpace, match=rf"{cache}/incoming/.*is full .*Free some room there, and try again"):
        version.fetch(progress=filling_up)
    assert node_cache().held() == [] and list(cache.glob("blobs/*/*")) == []
    filling_up.undo()
    with small.fetch() as folder:
        assert files_of(folder.path) == files_of(tmp_path / "small")
    small_file = node_cache().held()[0].size_bytes
    assert free_bytes(cache) > DISK_BYTES - small_file - 500_000
    with version.fetch() as folder:
        assert files_of(folder.path) == files_of(tmp_path / "model")


def test_what_nobody_uses_makes_way_on_a_disk_that_others_have_filled(
    store: Store, cache: Path, tmp_path: Path
):
    for name, size_bytes in (("old", SMALL_BYTES), ("new", SMALL_BYTES // 2)):
        store.publish_model(model(tmp_path / name, size_bytes), name)
    store.model("old").fetch().close()
    new = store.model("new")
    fill(cache.parent)
    with new.fetch() as folder:
        assert files_of(folder.path) == files_of(tmp_path / "new")
    assert [held.label for held in node_cache().held()] == ["new/v1"]


def test_what_is_used_stays_on_a_disk_that_others_have_filled(store: Store, cache: Path, tmp_path: Path):
    for name in ("used", "new"):
        store.publish_model(model(tmp_path / name, SMALL_BYTES), name)
    new = store.model("new")
    with store.model("used").fetch() as folder:
        fill(cache.parent)
        with pytest.raises(NoSpace, match=rf"the node cache {cache} .*stays \(used/v1\).*TANDEM_FILE_CACHE"):
            new.fetch()
        assert files_of(folder.path) == files_of(tmp_path / "used")


def test_publishing_and_asking_need_no_room_on_this_nodes_disk(store: Store, cache: Path, tmp_path: Path):
    source = model(tmp_path / "model", LARGE_BYTES)
    cache.mkdir()
    fill(cache.parent)
    published = store.publish_model(source, "m")
    assert store.model("m") == published == store.models()[0]
    there = {published.files.relative(e): published.files.at(e).read_bytes() for e in published.files.find()}
    assert there == files_of(source)
    target = locate(str(tmp_path / "copied"))
    copy_file(published.files / "part-0.safetensors", target)
    assert target.read_bytes() == (source / "part-0.safetensors").read_bytes()


# A store on the disk


@pytest.fixture
def full_store(disk: Path) -> Store:
    return open_store(str(disk / "store"))


def test_a_model_that_is_too_large_for_the_store_is_refused_at_once(
    full_store: Store, disk: Path, tmp_path: Path
):
    place = full_store.locate("models/m/v1")
    with pytest.raises(NoSpace, match=rf"{place}/files-.*is full .*Free some room there, and try again"):
        full_store.publish_model(model(tmp_path / "large", TOO_LARGE_BYTES), "m")
    assert full_store.models() == [] and (place / "manifest.json").stat() is None
    assert free_bytes(disk) > DISK_BYTES - 500_000
    full_store.publish_model(model(tmp_path / "small", SMALL_BYTES), "m")
    with full_store.model("m/v1").fetch() as folder:
        assert files_of(folder.path) == files_of(tmp_path / "small")


@pytest.mark.parametrize("late", [False, True], ids=["whole files", "in parts"])
def test_a_store_that_fills_up_meanwhile_shows_nothing_and_takes_the_next(
    full_store: Store, disk: Path, tmp_path: Path, one_cpu: None, late: bool
):
    source, place = model(tmp_path / "model", *SIZES[late]), full_store.locate("models/m/v1")
    filling_up = FillingUp(disk, late=late)
    with pytest.raises(NoSpace, match=rf"{place}/files-.*is full .*Free some room there, and try again"):
        full_store.publish_model(source, "m", progress=filling_up)
    assert full_store.models() == [] and (place / "manifest.json").stat() is None
    filling_up.undo()
    # What had arrived whole is kept for the next attempt, and half of a file is not.
    there = {place.relative(entry).partition("/")[2]: place.at(entry).read_bytes() for entry in place.find()}
    assert there.items() <= files_of(source).items()
    assert list(place.backend.unfinished(place.key)) == []
    assert full_store.publish_model(source, "m").version == "v1"
    with full_store.model("m").fetch() as folder:
        assert files_of(folder.path) == files_of(source)


def test_a_full_store_takes_no_manifest_and_no_pointer(full_store: Store, disk: Path, tmp_path: Path):
    old, new = (model(tmp_path / name, 1000) for name in ("old", "new"))
    full_store.publish_model(old, "m")
    filling = fill(disk)
    with pytest.raises(NoSpace, match=rf"{disk}/store/.*Free some room there, and try again"):
        full_store.publish_model(new, "m")
    assert [version.ref for version in full_store.models()] == ["m/v1"]
    with full_store.model("m").fetch() as folder:
        assert files_of(folder.path) == files_of(old)
    with pytest.raises(NoSpace, match=rf"{disk}/store/.*Free some room there, and try again"):
        full_store.new_run("r", "{}")
    assert full_store.runs() == []
    filling.unlink()
    assert full_store.publish_model(new, "m").ref == "m/v2"


def test_metrics_that_find_no_room_are_written_when_there_is_some(full_store: Store, disk: Path):
    run = full_store.new_run("r", "{}")
    log = run.metrics_log()
    lines = [{"step": step, "text": "x" * 5000} for step in range(6)]
    log.append(lines[0])
    filling = fill(disk)
    for line in lines[1:4]:
        log.append(line)
    # Nobody ever reads half a line.
    assert run.metrics() in (lines[:1], lines[:2])
    with pytest.raises(NoSpace, match=rf"{disk}/store/.*metrics\.jsonl.*Free some room there"):
        log.flush()
    filling.unlink()
    log.append(lines[4])
    assert run.metrics() == lines[:5]
    log.append(lines[5])
    log.close()
    assert run.metrics() == lines
