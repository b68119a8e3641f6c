"""The store through fsspec, as pandas and pyarrow see it."""

from __future__ import annotations

import fsspec
import pandas
import pytest

from storage.fsspec_door import TandemFileSystem
from storage.store import Store, open_store


@pytest.fixture
def memory() -> Store:
    return open_store("memory://fsspec-door/prefix")


def test_pandas_writes_and_reads_a_table_by_name(memory: Store):
    filesystem = memory.filesystem()
    frame = pandas.DataFrame({"step": [1, 2], "loss": [2.5, 1.5]})
    with filesystem.open("tables/loss.parquet", "wb") as file:
        frame.to_parquet(file)
    with filesystem.open("tables/loss.parquet") as file:
        assert pandas.read_parquet(file).equals(frame)
    assert filesystem.ls("tables", detail=False) == ["tables/loss.parquet"]
    assert filesystem.find("") == ["tables/loss.parquet"]
    filesystem.rm("tables", recursive=True)
    assert filesystem.find("") == []


def test_a_file_is_created_once_and_never_half_written(memory: Store):
    filesystem = memory.filesystem()
    filesystem.pipe_file("one", b"first", mode="create")
    with pytest.raises(Exception, match="exists already"):
        filesystem.pipe_file("one", b"second", mode="create")
    with pytest.raises(RuntimeError), filesystem.open("half", "wb") as file:
        file.write(b"half of it")
        raise RuntimeError("the writer failed")
    assert not filesystem.exists("half")
    assert filesystem.cat_file("one", 1, 3) == b"ir"
    with pytest.raises(FileNotFoundError):
        filesystem.open("nothing")


def test_fsspec_finds_the_store_by_its_protocol(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TANDEM_STORE", store.uri)
    fsspec.register_implementation("tandem", TandemFileSystem, clobber=True)
    with fsspec.open("tandem://notes/a.txt", "w") as file:
        file.write("hello")
    assert (store.root / "notes" / "a.txt").read_bytes() == b"hello"
    with fsspec.open("tandem://notes/a.txt", "r") as file:
        assert file.read() == "hello"
