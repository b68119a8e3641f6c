"""The node cache: one download however many ask, bounded, never emptied under a reader, safe to kill."""

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import crc32c
import pytest

from runtime.core.errors import Corrupt, NoSpace, StorageError, Unreachable
from runtime.core.places import file_cache
from storage.cache import NodeCache, node_cache, wanted_below
from storage.cached_folder import Wanted
from storage.location import Location, locate
from storage.patience import patience
from storage.store import Store, open_store
from tests.conftest import ROOT, wait_for
from tests.servers.proxy import Fault, FaultProxy

MIB = 1 << 20
CONFIG = '{"num_attention_heads": 8}'
FETCH = "import os, sys\nfrom storage.store import open_store\nfrom storage.backends import gs\n"


@pytest.fixture
def store(proxied_place: Location) -> Store:
    """An empty store that is reached through ``gs_proxy``."""
    return open_store(proxied_place.uri)


def publish(store: Store, folder: Path, name: str = "m", size_bytes: int = 1_000_000) -> Path:
    """Publishes a model of one file of weights; the folder it was made from."""
    folder = folder / f"{name}-trained"
    folder.mkdir()
    (folder / "config.json").write_text(CONFIG)
    (folder / "weights").write_bytes(os.urandom(size_bytes))
    store.publish_model(folder, name)
    return folder


def wanted(place: Location, contents: dict[str, bytes]) -> list[Wanted]:
    """What a cache needs for a folder that is put to ``place`` here."""
    files = []
    for path, data in contents.items():
        (place / path).write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()
        file = Wanted(path, place / path, len(data), sha256, sha256=sha256, crc32c=crc32c.crc32c(data))
        files.append(file)
    return files


def gets(proxy: FaultProxy, file: str = "") -> int:
    """How many ranges of models' files were fetched."""
    return sum(
        (method, what) == ("GET", 206) and "/files-" in path and file in path
        for method, path, what in proxy.requests
    )


def read_chars() -> int:
    """Bytes that this process has read so far, by any system call."""
    return int(Path("/proc/self/io").read_text().split()[1])


def set_budget(monkeypatch: pytest.MonkeyPatch, folder: Path, max_bytes: int) -> None:
    file = folder / f"config-{max_bytes}.yaml"
    file.write_text(f"cache: {{max_bytes: {max_bytes}}}\n")
    monkeypatch.setenv("TANDEM_CONFIG", str(file))


@contextmanager
def held_by_another(store: Store, ref: str) -> Iterator[Path]:
    """A process of its own uses the model within the block."""
    script = FETCH + (
        "with open_store(sys.argv[1]).model(sys.argv[2]).fetch() as folder:\n"
        "    print(folder.path, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, store.uri, ref]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
        yield Path(process.stdout.readline().strip())
        process.stdin.close()


# one download


def test_however_many_processes_ask_there_is_one_download(store: Store, gs_proxy: FaultProxy, tmp_path: Path):
    trained = publish(store, tmp_path, size_bytes=9 * MIB)
    script = FETCH + (
        "children = []\n"
        "for _ in range(8):\n"
        "    children.append(os.fork())\n"
        "    if not children[-1]:\n"
        "        with open_store(sys.argv[1]).model('m').fetch() as folder:\n"
        "            same = (folder.path / 'weights').read_bytes() == open(sys.argv[2], 'rb').read()\n"
        "            os._exit(0 if same else 1)\n"
        "sys.exit(sum(os.waitpid(child, 0)[1] for child in children))\n"
    )
    command = [sys.executable, "-c", script, store.uri, str(trained / "weights")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    # Two parts of the weights, and the config.
    assert (gets(gs_proxy, "weights"), gets(gs_proxy)) == (2, 3)


def test_however_many_threads_ask_there_is_one_download(store: Store, gs_proxy: FaultProxy, tmp_path: Path):
    publish(store, tmp_path, size_bytes=9 * MIB)
    model = store.model("m")
    with ThreadPoolExecutor(8) as pool:
        paths = {folder.path for folder in pool.map(lambda _: model.fetch(), range(8))}
    assert (len(paths), gets(gs_proxy)) == (1, 3)


def test_what_two_models_have_in_common_is_fetched_once(store: Store, gs_proxy: FaultProxy, tmp_path: Path):
    trained = publish(store, tmp_path)
    (trained / "tokenizer").write_bytes(b"other")
    store.publish_model(trained, "m")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda ref: store.model(ref).fetch(), ["m/v1", "m/v2"])
    assert gets(gs_proxy, "weights") == gets(gs_proxy, "config.json") == 1
    assert (first.path / "weights").samefile(second.path / "weights")
    assert sorted(path.name for path in second.path.iterdir()) == ["config.json", "tokenizer", "weights"]


def test_a_download_that_was_killed_is_gone_on_with(store: Store, gs_proxy: FaultProxy, tmp_path: Path):
    trained = publish(store, tmp_path, size_bytes=33 * MIB)
    # Two of five parts never come; then the process is killed in the middle of its work.
    gs_proxy.add(Fault("stall", times=2, method="GET", path="/files-.*/weights.generation"))
    script = FETCH + "open_store(sys.argv[1]).model('m').fetch()"
    with subprocess.Popen([sys.executable, "-c", script, store.uri], cwd=ROOT) as process:
        try:
            wait_for(lambda: committed_parts() == 3, "three parts on the disk", timeout_s=60)
        finally:
            process.kill()
    assert not node_cache().held()
    with store.model("m").fetch() as folder:
        assert (folder.path / "weights").read_bytes() == (trained / "weights").read_bytes()
    assert (gets(gs_proxy, "weights"), committed_parts()) == (5, 0)


def committed_parts() -> int:
    journals = (file_cache() / "transfers").glob("*.jsonl")
    return sum('"part"' in line for journal in journals for line in journal.read_text().splitlines())


def test_without_the_store_what_is_cached_still_opens(
    gs_url: str, use_servers: Callable[..., None], tmp_path: Path
):
    with FaultProxy(gs_url) as proxy:
        use_servers(gs=proxy.url)
        store = open_store(f"gs://tandem-test/{tmp_path.name}")
        publish(store, tmp_path)
        store.model("m").fetch().close()
    began_s = time.monotonic()
    with patience(0.3), store.model("m").fetch() as folder:
        assert (folder.path / "config.json").read_text() == CONFIG
    # Even on a busy machine; patience of its own is 60 s.
    assert time.monotonic() - began_s < 20
    with patience(0.3), pytest.raises(StorageError, match="the connection"):
        store.model("never-asked-for")


def test_what_was_fetched_by_name_opens_by_address_without_the_store(
    store: Store, gs_proxy: FaultProxy, tmp_path: Path
):
    publish(store, tmp_path)
    store.model("m/v1").fetch().close()
    gs_proxy.add(Fault("reset", times=None))
    here = open_store(str(tmp_path / "here"))
    with patience(1), here.model(f"{store.uri}/models/m/v1").fetch() as folder:
        assert (folder.path / "config.json").read_text() == CONFIG


def test_without_the_store_a_plain_folder_that_is_cached_still_opens(
    proxied_place: Location, gs_proxy: FaultProxy, tmp_path: Path
):
    (proxied_place / "config.json").write_bytes(b'{"hidden_size": 8}')
    (proxied_place / "weights").write_bytes(b"w" * 100)
    here = open_store(str(tmp_path / "here"))
    here.model(proxied_place.uri).fetch().close()
    gs_proxy.add(Fault("reset", times=None))
    with patience(1), here.model(proxied_place.uri).fetch() as folder:
        assert sorted(path.name for path in folder.path.iterdir()) == ["config.json", "weights"]
    with patience(1), pytest.raises(Unreachable, match=f"{proxied_place.uri}/never-seen"):
        here.model(f"{proxied_place.uri}/never-seen")


def test_what_is_cached_is_opened_without_the_network_and_without_reading_it(
    store: Store, gs_proxy: FaultProxy, tmp_path: Path
):
    large = tmp_path / "large"
    large.mkdir()
    with (large / "weights").open("wb") as file:
        file.truncate(1 << 30)
    files = [Wanted("weights", locate(str(large / "weights")), 1 << 30, "key-of-a-large-file")]
    publish(store, tmp_path)
    model = store.model("m")
    model.fetch().close()
    node_cache().folder(files, label="large").close()
    asked, read_before = len(gs_proxy.requests), read_chars()
    with model.fetch(), node_cache().folder(files, label="large") as folder:
        assert (folder.path / "weights").stat().st_size == 1 << 30
    assert len(gs_proxy.requests) == asked
    assert read_chars() - read_before < MIB


# the folder


def test_a_store_on_the_same_disk_is_linked_and_not_copied(tmp_path: Path):
    store = open_store(str(tmp_path / "store"))
    publish(store, tmp_path)
    model = store.model("m")
    with model.fetch() as folder:
        for name in ("config.json", "weights"):
            assert (folder.path / name).samefile((model.files / name).key)
    assert node_cache().used_bytes() == 0


@pytest.mark.parametrize("kind", ["local", "gs"])
def test_files_are_read_only_and_links(place_of: Callable[[str], Location], tmp_path: Path, kind: str):
    store = open_store(place_of(kind).uri)
    publish(store, tmp_path)
    with store.model("m").fetch() as folder:
        weights = folder.path / "weights"
        blobs = [path for path in file_cache().glob("blobs/*/*") if path.samefile(weights)]
        assert len(blobs) == 1
        assert weights.stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize("kind", ["local", "gs"])
def test_a_file_that_was_damaged_in_the_store_is_not_let_in(
    place_of: Callable[[str], Location], tmp_path: Path, kind: str
):
    store = open_store(place_of(kind).uri)
    publish(store, tmp_path)
    model = store.model("m")
    weights = model.files / "weights"
    good = weights.read_bytes()
    weights.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    for _ in range(2):
        with pytest.raises(Corrupt, match="weights: its content does not match its checksum"):
            model.fetch()
        assert node_cache().held() == []
    weights.write_bytes(good)
    with model.fetch() as folder:
        assert (folder.path / "weights").read_bytes() == good


def test_a_file_that_is_gone_or_of_another_size_is_told(place_of: Callable[[str], Location], tmp_path: Path):
    store = open_store(place_of("gs").uri)
    publish(store, tmp_path)
    model = store.model("m")
    for spoil in (lambda: (model.files / "weights").write_bytes(b"short"), (model.files / "weights").delete):
        spoil()
        with pytest.raises(StorageError, match="weights: is gone or was changed, though it is immutable"):
            model.fetch()
    assert node_cache().held() == []


def test_a_plain_folder_of_a_store_is_fetched_anew_when_it_changes(place_of: Callable[[str], Location]):
    place = place_of("gs")
    for content in ("first", "other"):
        (place / "config.json").write_bytes(content.encode())
        with node_cache().folder(wanted_below(place), label="plain") as folder:
            assert (folder.path / "config.json").read_text() == content


# what is kept


@pytest.fixture
def cache(tmp_path: Path) -> NodeCache:
    """A cache of 2500 bytes."""
    return NodeCache(tmp_path / "bounded", max_bytes=2500)


@pytest.fixture
def folders(place_of: Callable[[str], Location]) -> dict[str, list[Wanted]]:
    """Four folders of 1000 bytes: two fit into the cache."""
    place = place_of("memory")
    return {name: wanted(place / name, {"x": name.encode() * 1000}) for name in "abcd"}


def labels(cache: NodeCache) -> list[str]:
    return [held.label for held in cache.held()]


def use(cache: NodeCache, folders: dict[str, list[Wanted]], name: str) -> None:
    """Opens a folder until it is the one that was used last: clocks tick every 4 ms only."""

    def is_last() -> bool:
        cache.folder(folders[name], label=name).close()
        *others, last = cache.held()
        return last.label == name and all(held.last_used_s < last.last_used_s for held in others)

    wait_for(is_last, f"{name} as the one that was used last", timeout_s=10)


def test_the_least_recently_used_folder_makes_room(cache: NodeCache, folders: dict[str, list[Wanted]]):
    for name in "aba":
        use(cache, folders, name)
    assert (labels(cache), cache.used_bytes()) == (["b", "a"], 2000)
    use(cache, folders, "c")
    assert (labels(cache), cache.used_bytes()) == (["a", "c"], 2000)
    use(cache, folders, "d")
    assert (labels(cache), cache.used_bytes()) == (["c", "d"], 2000)
    assert len(list(cache.root.glob("blobs/*/*"))) == 2


def test_a_folder_in_use_is_never_evicted(cache: NodeCache, folders: dict[str, list[Wanted]]):
    with cache.folder(folders["a"], label="a") as first:
        for name in "bc":
            use(cache, folders, name)
        assert labels(cache) == ["a", "c"]
        said = r"room for 1,000 bytes more: it may hold 2,500 .*in use stays \(a, c\)"
        with cache.folder(folders["c"], label="c"), pytest.raises(NoSpace, match=said):
            cache.folder(folders["d"], label="d")
        assert [held.in_use for held in cache.held()] == [True, False]
        cache.trim(0)
        assert (labels(cache), (first.path / "x").read_bytes()) == (["a"], b"a" * 1000)
    assert (cache.trim(0), labels(cache)) == (1000, [])


def test_a_folder_that_another_process_uses_is_never_evicted(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in "abc":
        publish(store, tmp_path, name)
    set_budget(monkeypatch, tmp_path, 1_500_000)
    with held_by_another(store, "a") as path:
        with pytest.raises(NoSpace, match=r"what is in use stays \(a/v1\)"):
            store.model("b").fetch()
        node_cache().trim(0)
        assert (path / "config.json").read_text() == CONFIG
        assert labels(node_cache()) == ["a/v1"]
    store.model("b").fetch().close()
    assert labels(node_cache()) == ["b/v1"]


def test_a_folder_that_can_never_fit_evicts_nothing_and_hears_the_budget(
    cache: NodeCache, folders: dict[str, list[Wanted]], place_of: Callable[[str], Location]
):
    use(cache, folders, "a")
    large = wanted(place_of("memory"), {"x": b"x" * 2501})
    with pytest.raises(NoSpace, match=r"may hold 2,500 .* raise cache\.max_bytes in the workspace config"):
        cache.folder(large, label="large")
    assert labels(cache) == ["a"]
    cache.folder(folders["b"], label="b").close()


def test_the_budget_comes_from_the_workspace_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert node_cache().max_bytes > 1_000_000_000
    set_budget(monkeypatch, tmp_path, 12_345)
    assert node_cache().max_bytes == 12_345


def test_trimming_sweeps_what_killed_processes_left(store: Store, gs_proxy: FaultProxy, tmp_path: Path):
    publish(store, tmp_path, size_bytes=33 * MIB)
    publish(store, tmp_path, "kept")
    store.model("kept").fetch().close()
    gs_proxy.add(Fault("stall", times=2, method="GET", path="/files-.*/weights.generation"))
    script = FETCH + "open_store(sys.argv[1]).model('m').fetch()"
    with subprocess.Popen([sys.executable, "-c", script, store.uri], cwd=ROOT) as process:
        wait_for(lambda: committed_parts() == 3, "three parts on the disk", timeout_s=60)
        process.kill()
    cache = node_cache()
    # What a kill between two steps can leave, besides: a blob and folders that nothing names.
    orphan, scratch = cache.root / "blobs/ab/abc", cache.root / "folders/.half.1234"
    (cache.root / "folders/.half.json.5678").write_text("{")
    for folder in (orphan.parent, scratch):
        folder.mkdir()
    orphan.write_bytes(b"x" * 77)
    cache.trim(cache.max_bytes)
    assert not orphan.exists()
    left = {path.name for path in (cache.root / "folders").iterdir()}
    [kept] = cache.held()
    assert left == {f"{kept.path.name}{end}" for end in ("", ".json", ".lock", ".build")}
    assert kept.label == "kept/v1"
    # Somebody may go on with the download, for a day.
    half_done = [path for name in ("incoming", "transfers") for path in (cache.root / name).iterdir()]
    assert (committed_parts(), len(half_done)) == (3, 2)
    for path in half_done:
        os.utime(path, (0, 0))
    cache.trim(cache.max_bytes)
    assert not any(path.exists() for path in half_done)
    assert labels(cache) == ["kept/v1"]


def test_a_record_that_is_damaged_is_made_anew(cache: NodeCache, folders: dict[str, list[Wanted]]):
    with cache.folder(folders["a"], label="a") as folder:
        path = folder.path
    path.with_suffix(".json").write_text('{"label": "a", "comp')
    assert labels(cache) == []
    with cache.folder(folders["a"], label="a") as folder:
        assert (folder.path / "x").read_bytes() == b"a" * 1000
    assert labels(cache) == ["a"]


def test_a_folder_that_is_being_built_is_not_swept(tmp_path: Path):
    cache, place = NodeCache(tmp_path / "cache", max_bytes=1_000_000), locate(str(tmp_path / "source"))
    files = wanted(place, {f"{number:03}": b"%d" % number for number in range(400)})
    stop = threading.Event()

    def sweep() -> None:
        while not stop.is_set():
            cache.trim(0)

    with ThreadPoolExecutor(2) as pool:
        sweeping = [pool.submit(sweep) for _ in range(2)]
        try:
            for _ in range(10):
                with cache.folder(files, label="many") as folder:
                    assert len(list(folder.path.iterdir())) == 400
        finally:
            stop.set()
        for one in sweeping:
            one.result()
