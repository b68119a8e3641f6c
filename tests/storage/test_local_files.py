"""Folders of this machine's disk that appear all at once."""

from pathlib import Path

import pytest

from runtime.core.errors import StorageError
from storage.local_files import new_folder


def test_an_error_while_writing_leaves_no_trace(tmp_path: Path):
    with pytest.raises(RuntimeError, match="disk on fire"), new_folder(tmp_path / "a" / "b") as scratch:
        (scratch / "file").write_text("x")
        raise RuntimeError("disk on fire")
    assert list((tmp_path / "a").iterdir()) == []


def test_a_folder_that_exists_is_not_replaced(tmp_path: Path):
    with pytest.raises(StorageError, match="exists already"), new_folder(tmp_path / "b") as scratch:
        (scratch / "mine").touch()
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "theirs").touch()
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["theirs"]
