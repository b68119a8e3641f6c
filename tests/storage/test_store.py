"""The store: versions are immutable and appear all at once, datasets and runs are found by name."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime.core.errors import ConfigError, Conflict
from storage.local_files import sha256_of
from storage.store import Store, open_store
from tests.conftest import wait_for


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "trained"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text('{"num_attention_heads": 8}')
    (folder / "sub" / "weights").write_bytes(os.urandom(3_000_000))
    return folder


def test_publishing_numbers_versions_and_moves_latest(store: Store, model_folder: Path):
    assert [store.publish_model(model_folder, "m").ref for _ in range(11)][-1] == "m/v11"
    assert store.model("m").version == "v11"
    assert store.model("m/v2").version == "v2"
    assert [model.version for model in store.models()] == [f"v{n}" for n in range(1, 12)]


def test_the_manifest_tells_every_file_and_where_the_model_came_from(store: Store, model_folder: Path):
    version = store.publish_model(model_folder, "m", base="b/v1", template="qwen3", run="r-1")
    manifest = store.model("m").manifest
    assert manifest and (manifest.base, manifest.template, manifest.run) == ("b/v1", "qwen3", "r-1")
    assert [entry.path for entry in manifest.files] == ["config.json", "sub/weights"]
    assert manifest.files[1].size_bytes == 3_000_000
    with version.fetch() as folder:
        assert manifest.files[1].sha256 == sha256_of(folder.path / "sub" / "weights")


def test_a_version_is_never_replaced(store: Store, model_folder: Path):
    first = store.publish_model(model_folder, "m", version="v1")
    (model_folder / "config.json").write_text("{}")
    with pytest.raises(Conflict, match="exists already and is immutable: it was committed by .*@"):
        store.publish_model(model_folder, "m", version="v1")
    assert first.config() == {"num_attention_heads": 8}


def test_publishers_at_the_same_time_each_get_a_version_of_their_own(store: Store, model_folder: Path):
    with ThreadPoolExecutor(6) as pool:
        refs = list(pool.map(lambda _: store.publish_model(model_folder, "m").ref, range(6)))
    assert sorted(refs) == [f"m/v{n}" for n in range(1, 7)]
    assert store.model("m").version == "v6"


@pytest.mark.parametrize("name", ["", "Ünicode", "UPPER", "a/b", "../x", "-a", "a" * 64, "a b", ".."])
def test_what_cannot_be_a_name_is_refused(store: Store, model_folder: Path, name: str):
    with pytest.raises(ConfigError, match="A name has 1 to 63 lower-case letters"):
        store.publish_model(model_folder, name)


def test_a_folder_without_a_model_is_not_published(store: Store, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"holds no model: neither config\.json nor adapter_config\.json"):
        store.publish_model(tmp_path, "m")


def test_what_is_not_there_is_answered_with_what_is(store: Store, model_folder: Path):
    store.publish_model(model_folder, "llama")
    store.add_dataset("poems", [{"instruction": "a", "output": "b"}])
    with pytest.raises(ConfigError, match="has no model 'lama'. Did you mean 'llama'"):
        store.model("lama")
    with pytest.raises(ConfigError, match="llama has no version 'v7'"):
        store.model("llama/v7")
    with pytest.raises(ConfigError, match="Did you mean 'poems'"):
        store.dataset("poem")
    with pytest.raises(ConfigError, match="run 'x' is not in"):
        store.run("x")
    with pytest.raises(ConfigError, match=r"no config\.json is there"):
        store.model("/nowhere/at/all")


def test_a_model_outside_the_store_is_given_by_its_path(store: Store, model_folder: Path):
    model = store.model(str(model_folder))
    assert (model.ref, model.manifest) == (str(model_folder), None)
    with model.fetch() as folder:
        assert folder.path == model_folder


def test_a_dataset_is_llamafactorys_own_layout(store: Store):
    rows = [{"instruction": "Wie geht's?", "output": "gut: \u2603"}]
    dataset = store.add_dataset("chat", rows, info={"formatting": "alpaca"})
    assert dataset.info()["file_name"] == "data.jsonl"
    with dataset.fetch() as folder:
        assert [json.loads(line) for line in (folder.path / "data.jsonl").read_text().splitlines()] == rows
        assert json.loads((folder.path / "dataset_info.json").read_text()) == {"chat": dataset.info()}
    with pytest.raises(Conflict, match="exists already"):
        store.add_dataset("chat", rows)
    with pytest.raises(ConfigError, match="has no rows"):
        store.add_dataset("empty", [])


def test_a_run_keeps_its_spec_metrics_and_result(store: Store):
    run = store.new_run("r", '{"name": "r"}')
    assert (run.spec_json(), run.metrics(), run.result()) == ('{"name": "r"}', [], None)
    log = run.metrics_log()
    log.append({"step": 1, "loss": 2.5})
    with Path(f"{run.uri}/metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')  # a line that is being written
    assert run.metrics() == [{"step": 1, "loss": 2.5}]
    run.write_result({"status": "succeeded"})
    again = store.new_run("r", "{}")
    assert store.run(run.run_id).result() == {"status": "succeeded"}
    assert store.run("r").run_id == again.run_id
    assert {found.run_id for found in store.runs()} == {run.run_id, again.run_id}


def test_readers_never_see_a_half_written_result(store: Store):
    run = store.new_run("r", "{}")
    script = (
        "import sys\nfrom storage.store import open_store\nrun = open_store(sys.argv[1]).run('r')\n"
        "while True: run.write_result({'status': 'x' * 200000})\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, store.uri]) as writer:
        try:
            wait_for(run.result, "a first result")
            assert all(len(run.result()["status"]) == 200_000 for _ in range(200))
        finally:
            writer.kill()


def test_the_stores_address_comes_from_the_argument_or_the_environment(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TANDEM_STORE", f"file://{tmp_path}/env")
    assert open_store().uri == str(tmp_path / "env")
    assert open_store(str(tmp_path / "arg")).uri == str(tmp_path / "arg")
    with pytest.raises(ConfigError, match=r"the store 'ftp://b/p': its scheme is 'ftp'.*Known: file, gs, hf"):
        open_store("ftp://b/p")


def test_half_a_character_in_a_row_given_from_python_is_refused_with_its_row(store: Store):
    rows = [{"instruction": "?", "output": "fine"}, {"instruction": "?", "output": "cut \ud83d"}]
    with pytest.raises(ConfigError, match=r"line 2: holds one half of a .* pair"):
        store.add_dataset("cut", rows)
    assert store.datasets() == []
