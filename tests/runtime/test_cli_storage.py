"""``tandem storage``, ``tandem datasets`` and ``tandem models`` as a person types them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from runtime.cli import main
from storage.location import Location
from storage.store import Store, open_store

Run = Callable[..., Result]


@pytest.fixture
def run(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs one command on a store of this test's own; fails unless the exit code is the expected one."""
    monkeypatch.setenv("TANDEM_STORE", store.uri)
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))

    def command(*words: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, words)
        assert result.exit_code == code, result.output + str(result.exception)
        return result

    return command


@pytest.fixture
def model(store: Store, tmp_path: Path) -> Path:
    """A small model folder, published twice as ``m``."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "weights").write_bytes(os.urandom(1000))
    store.publish_model(folder, "m", template="qwen3")
    store.publish_model(folder, "m", base="m/v1")
    return folder


def test_models_are_listed_by_name_and_removed_by_version(run: Run, model: Path, store: Store):
    assert [row["model"] for row in json.loads(run("models", "--json").stdout)] == ["m/v1", "m/v2"]
    assert json.loads(run("models", "m", "--json").stdout)[1]["base"] == "m/v1"
    assert "Did you mean 'm'" in run("models", "mm", code=2).stderr
    assert run("models", "rm", "m/v2").stdout == "Removed m/v2\n"
    assert store.model("m").version == "v1"
    assert "Name one version to remove, such as m/v1" in run("models", "rm", "m", code=2).stderr
    assert "m has no version 'v2'" in run("models", "rm", "m/v2", code=2).stderr


def test_a_model_is_published_from_a_folder_or_an_address(run: Run, model: Path, store: Store):
    assert run("models", "publish", "mine", str(model), "--template", "qwen3").stdout == "Published mine/v1\n"
    elsewhere = store.root / "plain"
    for name in ("config.json", "weights"):
        (elsewhere / name).write_bytes((model / name).read_bytes())
    run("models", "publish", "mine", elsewhere.uri, "--version", "release-1")
    published = store.model("mine/release-1")
    assert published.revision == store.model("mine/v1").revision
    assert "SOURCE is 'plain'" in run("models", "publish", "mine", "plain", code=2).stderr
    assert "no config.json is there" in run("models", "publish", "mine", "/nowhere", code=2).stderr
    taken = run("models", "publish", "mine", str(model), "--version", "v1", code=1).stderr
    assert "mine/v1 exists already and is immutable" in taken


def test_a_number_that_was_removed_is_not_used_again(run: Run, model: Path, store: Store):
    run("models", "rm", "m/v2")
    assert store.publish_model(model, "m").ref == "m/v3"


def test_datasets_are_checked_added_shown_and_removed(run: Run, tmp_path: Path):
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "c", "output": "d"}\n')
    bad.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "c", "output": 7}\n')
    assert run("datasets", "add", "talk", str(good)).stdout == "Dataset talk: 2 rows, alpaca\n"
    refused = run("datasets", "add", "broken", str(bad), code=2).stderr
    assert refused.startswith("Error: bad.jsonl, line 2: output is 7")
    assert [row["dataset"] for row in json.loads(run("datasets", "ls", "--json").stdout)] == ["talk"]
    shown = json.loads(run("datasets", "show", "talk", "--rows", "1", "--json").stdout)
    assert (shown["rows"], shown["first_rows"]) == (2, [{"instruction": "a", "output": "b"}])
    assert "exists already and is immutable" in run("datasets", "add", "talk", str(good), code=1).stderr
    run("datasets", "rm", "talk")
    assert json.loads(run("datasets", "ls", "--json").stdout) == []
    assert "has no such dataset" in run("datasets", "rm", "talk", code=2).stderr


def test_a_folder_of_the_wild_is_added_by_its_own_dataset_info(run: Run, tmp_path: Path, store: Store):
    wild = tmp_path / "wild"
    wild.mkdir()
    (wild / "qa.json").write_text('[{"question": "a", "answer": "b"}]')
    entry = {"file_name": "qa.json", "columns": {"prompt": "question", "response": "answer"}}
    (wild / "dataset_info.json").write_text(json.dumps({"qa": entry}))
    run("datasets", "add", "qa", str(wild))
    assert store.dataset("qa").info()["columns"] == {"prompt": "question", "response": "answer"}
    (wild / "dataset_info.json").write_text(json.dumps({"one": entry, "two": entry}))
    assert "has no entry of that name, but one, two" in run("datasets", "add", "x", str(wild), code=2).stderr
    (wild / "dataset_info.json").write_text(json.dumps({"gone": {"file_name": "gone.json"}}))
    assert (
        "'gone.json', which is not in the folder" in run("datasets", "add", "gone", str(wild), code=2).stderr
    )


def test_bytes_are_listed_copied_printed_summed_and_removed(run: Run, tmp_path: Path, store: Store):
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "a.txt").write_text("hello\n")
    (source / "sub" / "b.bin").write_bytes(os.urandom(300_000))
    assert run("storage", "cp", str(source), "scratch/one").stdout.startswith("2 files, 300.0 kB: ")
    run("storage", "cp", str(source / "a.txt"), "scratch/two/")
    assert run("storage", "cat", "scratch/two/a.txt").stdout == "hello\n"
    rows = json.loads(run("storage", "ls", "-r", "scratch", "--json").stdout)
    assert [row["name"] for row in rows] == ["one/a.txt", "one/sub/b.bin", "two/a.txt"]
    assert json.loads(run("storage", "ls", "scratch", "--json").stdout)[0]["name"] == "one/"
    summed = json.loads(run("storage", "du", "scratch", "--json").stdout)
    assert summed == [
        {"name": "one/", "files": 2, "size_bytes": 300_006},
        {"name": "two/", "files": 1, "size_bytes": 6},
    ]
    assert "It is a folder: add -r" in run("storage", "rm", "scratch/one", code=1).stderr
    run("storage", "rm", "-r", "scratch/one")
    assert json.loads(run("storage", "ls", "scratch", "--json").stdout)[0]["name"] == "two/"
    assert "nothing is there" in run("storage", "ls", "scratch/one", code=1).stderr
    assert "there is no such file" in run("storage", "cat", "scratch/one", code=1).stderr
    assert "leads out of the store" in run("storage", "ls", "scratch/../..", code=2).stderr


def test_what_is_committed_is_no_plain_folder_to_rm(run: Run, model: Path, store: Store):
    for place in ("models", "models/m", "models/m/v1", "models/m/v1/manifest.json"):
        refused = run("storage", "rm", "-r", place, code=2).stderr
        assert "is committed, or holds what is. Use `tandem models rm" in refused
    assert len(store.models()) == 2


def test_a_version_is_copied_whole_to_another_store_or_as_plain_files(run: Run, model: Path, tmp_path: Path):
    other = tmp_path / "other store"
    run("storage", "cp", "models/m", str(other / "models" / "m"))
    copied = open_store(str(other)).model("m")
    assert copied.version == "v2"
    with copied.fetch() as folder:
        assert (folder.path / "weights").read_bytes() == (model / "weights").read_bytes()
    run("storage", "cp", "--files", "models/m/v1", str(tmp_path / "plain"))
    assert sorted(path.name for path in (tmp_path / "plain").iterdir()) == ["config.json", "weights"]
    assert "is no committed folder" in run("storage", "cp", "--files", "models", "x", code=2).stderr


def _interrupted(place: Location) -> None:
    """What a publisher leaves that was killed before its manifest, and in the middle of a file."""
    (place / "files-0123456789ab" / "weights").write_bytes(b"half")
    place.backend.begin((place / "big").key, 100)


def test_leftovers_are_listed_and_removed_only_on_request(run: Run, model: Path, store: Store):
    _interrupted(store.root / "models" / "m" / "v9")
    # A publisher of other content that lost v1.
    (store.root / "models" / "m" / "v1" / "files-ba9876543210" / "weights").write_bytes(b"lost")
    assert "0 leftovers" in run("storage", "gc").stdout, "young ones may be in the middle of being written"
    listed = json.loads(run("storage", "gc", "--older-than", "0s", "--json").stdout)
    assert sorted(row["reason"] for row in listed) == [
        "an upload that was not finished",
        "never committed, or removed",
        "of a publisher that lost to another",
    ]
    assert "3 leftovers, 8 B, removed." in run("storage", "gc", "--older-than", "0s", "--remove").stdout
    assert "0 leftovers" in run("storage", "gc", "--older-than", "0s").stdout
    for version in store.models():
        version.fetch().close()
    assert len(store.models()) == 2


def test_the_cache_is_shown_and_trimmed_but_for_what_is_in_use(run: Run, model: Path, store: Store):
    store.model("m/v1").fetch().close()
    with store.model("m/v2").fetch():
        rows = json.loads(run("storage", "cache", "--json").stdout)
        # Both versions hold the same files: one folder serves both.
        assert [row["in_use"] for row in rows] == [True]
        assert len(json.loads(run("storage", "cache", "--max-bytes", "0", "--json").stdout)) == 1
    assert "0 B of" in run("storage", "cache", "--max-bytes", "0").stdout
    assert json.loads(run("storage", "cache", "--json").stdout) == []
    assert (
        "is no number of bytes. Write 500000" in run("storage", "cache", "--max-bytes", "lots", code=2).stderr
    )
