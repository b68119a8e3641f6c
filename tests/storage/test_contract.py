"""What every store must do, whatever is behind its address: one suite for all of them."""

import json
import random
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import crc32c
import pytest

from runtime.core.errors import ConfigError, Conflict, Corrupt, NotFound, StorageError
from storage.backend import Entry, Part
from storage.crc import combine
from storage.location import Location, locate, side_by_side
from storage.store import Store, open_store
from storage.transfer import Copy, copy_all, copy_file, copy_folder
from tests.conftest import wait_for

MIB = 1 << 20
NAMES = [
    "a b", "größer", "100%", "%41", "a+b", "a#b", "a?b=c", "&amp;", "it's", 'a"b', "a;b,c=d", "*[x]~",
    "back\\slash", ".hidden", "..two", "-dash", "雪/☃/x", "deep/er/and/deep/er/still",
]  # fmt: skip
AWKWARD = "ä b%41+#?&=;'\"~*[x].tar"
ROWS = [{"instruction": "Say it.", "output": "größer ☃"}, {"instruction": "Again.", "output": "no"}]


class Meter:
    """Notes the sizes that a transfer tells."""

    def __init__(self, on_total: Callable[[], None] = lambda: None) -> None:
        self.sizes: list[int] = []
        self._on_total = on_total

    def total(self, size_bytes: int) -> None:
        self._on_total()

    def advance(self, size_bytes: int) -> None:
        self.sizes.append(size_bytes)


def part(number: int, offset: int, data: bytes) -> Part:
    return Part(number, offset, len(data), [data])


def noise(size_bytes: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def below(place: Location) -> list[str]:
    return [place.relative(entry) for entry in place.find()]


def entry_of(place: Location) -> Entry:
    entry = place.stat()
    assert entry is not None
    return entry


def read(place: Location, entry: Entry, start: int, size_bytes: int) -> bytes:
    return place.attempt(lambda: b"".join(place.backend.read(entry, start, size_bytes)))


def replaced(place: Location, data: bytes) -> str | None:
    """The version after the object was written anew."""
    place.write_bytes(data)
    return entry_of(place).version


def leftovers(place: Location) -> list[str]:
    return [upload.key for upload in place.backend.unfinished(place.key)]


# objects


@pytest.mark.parametrize("size_bytes", [0, 1, 9_000_000])
def test_what_is_written_is_read_back(place: Location, size_bytes: int):
    data = noise(size_bytes)
    (place / "x").write_bytes(data)
    entry = entry_of(place / "x")
    assert (entry.size_bytes, entry.key) == (size_bytes, (place / "x").key)
    assert entry.crc32c in (None, crc32c.crc32c(data))
    assert (place / "x").read_bytes() == data


def test_a_large_file_goes_there_in_parts_and_comes_back(place: Location, tmp_path: Path):
    data, source = noise(20_000_000), tmp_path / "source"
    source.write_bytes(data)
    assert copy_file(locate(str(source)), place / AWKWARD) == crc32c.crc32c(data)
    assert entry_of(place / AWKWARD).crc32c in (None, crc32c.crc32c(data))
    assert copy_file(place / AWKWARD, locate(str(tmp_path / "back"))) == crc32c.crc32c(data)
    assert (tmp_path / "back").read_bytes() == data
    assert leftovers(place) == []


def test_names_stay_as_they_are(place: Location):
    for name in NAMES:
        (place / name).write_bytes(name.encode())
    assert below(place) == sorted(NAMES)
    assert [(place / name).read_bytes().decode() for name in NAMES] == NAMES
    for name in NAMES:
        (place / name).delete()
    assert below(place) == []


def test_what_is_not_there_and_what_is_a_folder_is_no_object(place: Location):
    (place / "folder/x").write_bytes(b"1")
    assert (place / "folder").stat() is None
    assert (place / "nothing").stat() is None
    assert (place / "folder/x/y").stat() is None
    assert (place / "nothing").read_json() is None
    with pytest.raises(NotFound, match="there is nothing. Check the address"):
        (place / "folder").read_bytes()


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_missing_bucket_is_told_from_a_missing_object(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, scheme: str
):
    options = {f"{scheme}://": {"endpoint_url": request.getfixturevalue(f"{scheme}_url")}}
    monkeypatch.setenv("TANDEM_STORAGE_OPTIONS", json.dumps(options))
    place = locate(f"{scheme}://missing-bucket/x")
    for attempt in (
        place.stat, place.find, place.names, place.read_bytes, place.read_json,
        lambda: place.write_bytes(b""), lambda: open_store(place.uri).model("m"),
        lambda: open_store(place.uri).model(place.uri),
    ):  # fmt: skip
        with pytest.raises(NotFound, match=r"missing-bucket.*: the bucket does not exist .*Create it"):
            attempt()


def test_a_folder_is_listed_in_order_with_or_without_what_is_below(place: Location):
    names = ["a/b/1", "a/b/c/2", "a/bc", "a/b.x", "a/z", "ab/3", "a0"]
    for name in names:
        (place / name).write_bytes(b"")
    assert below(place) == sorted(names)
    assert below(place / "a") == ["b.x", "b/1", "b/c/2", "bc", "z"]
    assert below(place / "a/b") == ["1", "c/2"]
    assert below(place / "a/z") == below(place / "no") == []
    folders, entries = (place / "a").names()
    assert (folders, [(place / "a").relative(entry) for entry in entries]) == (["b"], ["b.x", "bc", "z"])
    assert place.folders() == ["a", "ab"]
    assert (place / "no").names() == (place / "a/z").names() == ([], [])


def test_more_objects_than_one_page_are_all_listed(remote_place: Location):
    names = [f"{number:04}{end}" for number in range(510) for end in ("", "/x")]
    side_by_side(lambda name: (remote_place / name).write_bytes(b""), names)
    assert below(remote_place) == sorted(names)
    folders, entries = remote_place.names()
    assert folders == names[::2] == [remote_place.relative(entry) for entry in entries]


def test_a_folder_marker_of_the_web_consoles_is_no_file(remote_place: Location, tmp_path: Path):
    for name in ("/", "sub/", "sub/x"):
        target = Location(remote_place.backend, f"{remote_place.key}/{name}".replace("//", "/"))
        target.write_bytes(b"")
    assert below(remote_place) == ["sub/x"]
    assert remote_place.names() == (["sub"], [])
    copy_folder(remote_place, locate(str(tmp_path / "copied")))
    assert below(locate(str(tmp_path / "copied"))) == ["sub/x"]


def test_a_reader_sees_the_old_or_the_new_content_and_never_both(place: Location):
    contents = [bytes([letter]) * (100_000 + letter) for letter in range(40)]
    (place / "x").write_bytes(contents[0])
    written = threading.Event()

    def seen() -> list[bytes]:
        found = []
        while not written.is_set():
            found.append((place / "x").read_bytes())
        return found

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(seen)
        for data in contents:
            (place / "x").write_bytes(data)
        written.set()
        assert all(data in contents for data in reading.result())
    assert (place / "x").read_bytes() == contents[-1]


def test_of_many_creators_one_wins(place: Location):
    (place / "taken").write_bytes(b"first", create_only=True)
    with pytest.raises(Conflict, match="exists already"):
        (place / "taken").write_bytes(b"second", create_only=True)
    barrier = threading.Barrier(8)

    def create(number: int) -> bool:
        barrier.wait()
        with suppress(Conflict):
            (place / "race").write_bytes(b"%d" % number, create_only=True)
            return True
        return False

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert won.count(True) == 1
    assert (place / "race").read_bytes() == b"%d" % won.index(True)
    assert ((place / "taken").read_bytes(), below(place)) == (b"first", ["race", "taken"])


def test_what_is_deleted_is_gone_and_deleting_it_again_is_fine(place: Location):
    for name in ("a/x", "a/y"):
        (place / name).write_bytes(b"1")
    for _ in range(2):
        (place / "a/x").delete()
    (place / "never/was").delete()
    assert below(place) == ["a/y"]


def test_any_range_can_be_read(place: Location):
    data = noise(3 * MIB + 5)
    last = len(data) - 1
    (place / "x").write_bytes(data)
    entry = entry_of(place / "x")
    for start, size_bytes in [(0, 1), (0, len(data)), (MIB - 1, 2), (2 * MIB + 1, MIB + 4), (last, 1)]:
        assert read(place / "x", entry, start, size_bytes) == data[start : start + size_bytes]
        assert (place / "x").read_range(start, size_bytes) == data[start : start + size_bytes]
    assert (place / "x").read_range(last, 100) == data[last:] and (place / "x").read_range(last + 9, 1) == b""
    with pytest.raises(NotFound, match="there is nothing"):
        (place / "y").read_range(0, 1)


def test_a_version_that_was_replaced_is_never_mixed_with_the_next(place: Location, tmp_path: Path):
    (place / "x").write_bytes(b"first")
    old = entry_of(place / "x")
    # Linux before 6.13 gives two writes within 4 ms one time: it is written until the time is another.
    wait_for(lambda: replaced(place / "x", b"other") != old.version, "another version", timeout_s=10)
    with pytest.raises((Conflict, NotFound)):
        read(place / "x", old, 0, 5)
    with pytest.raises((Conflict, NotFound)):
        copy_all([Copy(place / "x", old, locate(str(tmp_path / "copy")))])
    assert not (tmp_path / "copy").exists()
    newest = entry_of(place / "x")
    (place / "x").delete()
    with pytest.raises((Conflict, NotFound)):
        read(place / "x", newest, 0, 5)


def test_parts_come_in_any_order_and_the_last_step_shows_them(place: Location):
    data, target = noise(20 * MIB), place / AWKWARD
    step = target.backend.min_part_bytes
    pieces = [part(n + 1, n * step, data[n * step : (n + 1) * step]) for n in range(3)]
    upload_id = target.backend.begin(target.key, len(data))
    tags, crc = {}, 0
    for piece in (pieces[2], pieces[0], pieces[1]):
        tags[piece.number] = target.backend.send(target.key, upload_id, piece)
    for piece in pieces:
        crc = combine(crc, piece.crc32c, piece.size_bytes)
    assert target.backend.knows(target.key, upload_id)
    assert (target.stat(), below(place), leftovers(place)) == (None, [], [target.key])
    target.backend.finish(target.key, upload_id, tags, size_bytes=len(data), crc32c=crc)
    assert (target.read_bytes(), crc, leftovers(place)) == (data, crc32c.crc32c(data), [])
    target.backend.sync([target.key])


def test_an_upload_that_is_given_up_leaves_nothing(place: Location):
    target, data = place / "a/x", noise(9 * MIB)
    upload_id = target.backend.begin(target.key, len(data))
    tag = target.backend.send(target.key, upload_id, part(1, 0, data))
    for _ in range(2):
        target.backend.give_up(target.key, upload_id)
    assert not target.backend.knows(target.key, upload_id)
    assert (below(place), leftovers(place)) == ([], [])
    with pytest.raises(NotFound):
        target.attempt(
            lambda: target.backend.finish(
                target.key, upload_id, {1: tag}, size_bytes=len(data), crc32c=crc32c.crc32c(data)
            )
        )
    assert target.stat() is None


@pytest.mark.parametrize("size_bytes", [1000, 9_000_000])
def test_bytes_with_another_checksum_do_not_become_visible(place: Location, tmp_path: Path, size_bytes: int):
    source = locate(str(tmp_path / "source"))
    source.write_bytes(noise(size_bytes))
    wrong = crc32c.crc32c(noise(size_bytes)) ^ 1
    with pytest.raises(Corrupt, match="source: its content does not match its checksum, twice"):
        copy_all([Copy(source, entry_of(source), place / "x", crc32c=wrong)])
    assert (below(place), leftovers(place)) == ([], [])


# folders


def test_a_folders_manifest_is_copied_after_its_files(place: Location, tmp_path: Path):
    source = locate(str(tmp_path / "source"))
    sizes = {"a": 1, "manifest.json": 2, "z/deep": 3, "zz": 4}
    for name, size_bytes in sizes.items():
        (source / name).write_bytes(b"x" * size_bytes)
    meter = Meter()
    assert [source.relative(entry) for entry in copy_folder(source, place, progress=meter)] == sorted(sizes)
    assert (meter.sizes[-1], below(place)) == (2, sorted(sizes))
    # Without one of its files the folder is not made visible.
    with pytest.raises(StorageError):
        copy_folder(source, place / "other", progress=Meter(on_total=(source / "a").delete))
    assert "manifest.json" not in below(place / "other")
    with pytest.raises(NotFound, match="nothing is there, neither a file"):
        copy_folder(source / "nothing", place)


@pytest.mark.parametrize("target_kind", ["local", "gs", "s3"])
@pytest.mark.parametrize("source_kind", ["local", "gs", "s3"])
def test_a_folder_is_copied_from_any_store_to_any_other(
    place_of: Callable[[str], Location], source_kind: str, target_kind: str
):
    source, target = place_of(source_kind), place_of(target_kind)
    contents = {"empty": b"", AWKWARD: b"small", "sub/large": noise(9_000_000)}
    for name, data in contents.items():
        (source / name).write_bytes(data)
    copy_folder(source, target)
    assert {name: (target / name).read_bytes() for name in below(target)} == contents


# the store on top of it


@pytest.fixture
def store(place: Location) -> Store:
    """An empty store on every kind of backend in turn."""
    return open_store(place.uri)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "trained"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text('{"num_attention_heads": 8}')
    (folder / "sub" / "weights").write_bytes(noise(300_000))
    return folder


def contents_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_versions_are_published_listed_and_fetched(store: Store, model_folder: Path):
    versions = [store.publish_model(model_folder, "m", base="b/v1", run="r-1") for _ in range(2)]
    store.publish_model(model_folder, "other", version="v7")
    assert [version.ref for version in versions] == ["m/v1", "m/v2"]
    assert [version.ref for version in store.models()] == ["m/v1", "m/v2", "other/v7"]
    assert [version.ref for version in store.models("other")] == ["other/v7"]
    latest = store.model("m")
    assert (latest.ref, latest.base, latest.config()) == ("m/v2", "b/v1", {"num_attention_heads": 8})
    assert store.model(f"{store.uri}/models/m").version == "v2"
    assert store.model(f"{store.uri}/models/m/v1").revision == latest.revision
    with latest.fetch() as folder:
        assert contents_of(folder.path) == contents_of(model_folder)


def test_the_number_of_a_removed_version_is_not_used_again(store: Store, model_folder: Path):
    for _ in range(2):
        store.publish_model(model_folder, "m")
    assert store.remove_model("m/v2").ref == "m/v2"
    assert (store.model("m").ref, [version.ref for version in store.models()]) == ("m/v1", ["m/v1"])
    assert below(store.locate("models/m/v2")) == ["removed.json"]
    with pytest.raises(ConfigError, match=r"m has no version 'v2'\. Known: v1\."):
        store.model("m/v2")
    with pytest.raises(Conflict, match="m/v2 existed and was removed; its number is not used again"):
        store.publish_model(model_folder, "m", version="v2")
    assert store.publish_model(model_folder, "m").ref == store.model("m").ref == "m/v3"
    for ref in ("m/v3", "m/v1"):
        store.remove_model(ref)
    with pytest.raises(ConfigError, match="has no model 'm'"):
        store.model("m")


def test_a_version_is_never_replaced_and_the_loser_hears_who_won(store: Store, model_folder: Path):
    first = store.publish_model(model_folder, "m", version="v1", run="r-1")
    (model_folder / "config.json").write_text("{}")
    who = r" by .+@.+ at 20\d\d-.*, from run r-1\. Choose another"
    with pytest.raises(Conflict, match=rf"{re.escape(first.place.uri)} exists already.*{who}"):
        store.publish_model(model_folder, "m", version="v1")
    assert store.model("m/v1").config() == {"num_attention_heads": 8}


def test_of_publishers_of_one_version_one_wins_and_the_others_leave_nothing(store: Store, tmp_path: Path):
    barrier = threading.Barrier(4)
    for number in range(4):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}/config.json").write_text(f'{{"number": {number}}}')

    def publish(number: int) -> bool:
        barrier.wait()
        with suppress(Conflict):
            store.publish_model(tmp_path / f"{number}", "m", version="v1")
            return True
        return False

    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(publish, range(4)))
    version = store.model("m")
    assert (won.count(True), version.config()) == (1, {"number": won.index(True)})
    assert version.manifest
    assert below(version.place) == [f"{version.manifest.prefix}/config.json", "manifest.json"]


def test_publishers_at_the_same_time_each_get_a_number(store: Store, model_folder: Path):
    with ThreadPoolExecutor(3) as pool:
        refs = list(pool.map(lambda _: store.publish_model(model_folder, "m").ref, range(3)))
    assert sorted(refs) == ["m/v1", "m/v2", "m/v3"]
    assert store.model("m").version == "v3"


def test_datasets_are_registered_read_and_removed(store: Store, tmp_path: Path):
    store.add_dataset("poems", ROWS)
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    copy_file(locate(str(tmp_path / "more.jsonl")), store.root / "raw/more.jsonl")
    store.add_dataset("songs", f"{store.root / 'raw/more.jsonl'}")
    assert [(found.name, found.manifest.rows) for found in store.datasets()] == [("poems", 2), ("songs", 2)]
    assert store.dataset("poems").rows() == store.dataset("songs").rows() == ROWS
    assert store.dataset("poems").rows(1) == ROWS[:1]
    with pytest.raises(Conflict, match=r"poems exists already.* by .+@"):
        store.add_dataset("poems", ROWS[:1])
    store.remove_dataset("poems")
    assert (below(store.locate("datasets/poems")), [d.name for d in store.datasets()]) == ([], ["songs"])
    with pytest.raises(ConfigError, match="has no such dataset. Known: songs"):
        store.dataset("poems")
    assert store.add_dataset("poems", ROWS[:1]).rows() == ROWS[:1]


def test_runs_keep_spec_metrics_and_result(store: Store):
    run = store.new_run("r", '{"name": "r"}')
    assert (run.spec_json(), run.metrics(), run.result(), run.name) == ('{"name": "r"}', [], None, "r")
    log = run.metrics_log()
    for step in (1, 2, 3):
        log.append({"step": step, "loss": 1 / step})
    log.flush()
    assert [line["step"] for line in run.metrics()] == [1, 2, 3]
    log.forget_after(2)
    log.append({"step": 3, "loss": 0.25})
    log.close()
    assert run.metrics() == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 0.25}]
    run.write_result({"status": "succeeded"})
    run.update_record(job="j-1")
    again = store.new_run("r", "{}")
    found = store.run(run.run_id)
    assert (found.result(), found.record()["job"]) == ({"status": "succeeded"}, "j-1")
    assert store.run("r").run_id == again.run_id
    assert [one.run_id for one in store.runs()] == [run.run_id, again.run_id]
    with pytest.raises(ConfigError, match="run 'x' is not in"):
        store.run("x")


def test_metrics_appear_in_an_object_store_while_the_run_goes_on(place_of: Callable[[str], Location]):
    run = open_store(place_of("gs").uri).new_run("r", "{}")
    log = run.metrics_log()
    log.append({"step": 1})
    assert wait_for(run.metrics, "the first line", timeout_s=10) == [{"step": 1}]
    log.close()


def test_versions_of_the_first_layout_are_still_read(
    store: Store, model_folder: Path, own_folders: Path, monkeypatch: pytest.MonkeyPatch
):
    place = store.root / "models/old/v1"
    copy_folder(locate(str(model_folder)), place)
    files = store.publish_model(model_folder, "new").manifest
    assert files is not None
    # As it was written then: no prefix, no attempt, no CRC-32C; the files lie beside the manifest.
    entries = [{"path": f.path, "size_bytes": f.size_bytes, "sha256": f.sha256} for f in files.files]
    (place / "manifest.json").write_json({"created_at": "2026-01-01T00:00:00+00:00", "files": entries})
    (store.root / "models/old/latest.json").write_json({"version": "v1"})
    old = store.model("old")
    assert (old.ref, old.revision) == ("old/v1", store.model("new").revision)
    with old.fetch() as folder:
        assert contents_of(folder.path) == contents_of(model_folder)
    (place / "sub/weights").write_bytes(noise(300_000, seed=2))
    monkeypatch.setenv("TANDEM_CACHE", str(own_folders / "cache-of-another-node"))
    with pytest.raises(Corrupt, match="sub/weights: its content does not match its checksum"):
        old.fetch()
    store.remove_model("old/v1")
    assert below(place) == ["removed.json"]
