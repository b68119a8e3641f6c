"""Leftovers in every kind of store: found, told apart from what is committed or young, removed on request."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.core.errors import Conflict
from storage.commit import commit_folder, now
from storage.gc import leftovers
from storage.location import Location, locate
from storage.manifest import OutputManifest
from storage.store import open_store
from storage.transfer import copy_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "weights").write_bytes(os.urandom(1000))
    return made


def test_what_a_cut_upload_left_is_found_and_given_up(place: Location, tmp_path: Path):
    upload_id = place.backend.begin((place / "models" / "big").key, 9 << 20)
    assert leftovers(place) == [], "it may be on its way"
    (found,) = leftovers(place, older_than_s=-60)
    assert (found.uri, found.reason) == ((place / "models" / "big").uri, "an upload that was not finished")
    found.remove()
    assert leftovers(place, older_than_s=-60) == []
    assert not place.backend.knows((place / "models" / "big").key, upload_id)


def test_files_without_a_manifest_are_found_and_committed_ones_never(place: Location, folder: Path):
    store = open_store(place.uri)
    store.publish_model(folder, "m")
    copy_file(
        locate(str(folder / "weights")), place / "models" / "m" / "v2" / "files-0123456789ab" / "weights"
    )
    copy_file(
        locate(str(folder / "weights")), place / "models" / "m" / "v1" / "files-0123456789ab" / "weights"
    )
    found = leftovers(place, older_than_s=-60)
    assert [(one.uri.rpartition("/m/")[2], one.size_bytes) for one in found] == [
        ("v1/files-0123456789ab", 1000),
        ("v2/files-0123456789ab", 1000),
    ]
    for one in found:
        one.remove()
    assert leftovers(place, older_than_s=-60) == []
    with store.model("m/v1").fetch() as whole:
        assert (whole.path / "weights").read_bytes() == (folder / "weights").read_bytes()


def test_a_removed_version_and_a_loser_leave_nothing(place: Location, folder: Path):
    store = open_store(place.uri)
    store.publish_model(folder, "m")
    store.remove_model("m/v1")
    commit_folder(folder, place / "out", OutputManifest(created_at=now()))
    (folder / "weights").write_bytes(b"others")
    with pytest.raises(Conflict):
        commit_folder(folder, place / "out", OutputManifest(created_at=now()))
    assert leftovers(place, older_than_s=-60) == []
