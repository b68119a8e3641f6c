"""API keys: shown once, kept as hashes, in any folder."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from runtime.core.errors import ConfigError
from storage.keys import KeyRecord, Keys, Scopes, keys_in, split_key
from storage.store import Store


@pytest.fixture
def keys(store: Store) -> Keys:
    return keys_in(store.root)


def _secret(text: str) -> str:
    parts = split_key(text)
    assert parts
    return parts[1]


def test_a_new_key_is_found_again_and_opens_only_with_its_secret(keys: Keys):
    new = keys.create("ci", scopes=Scopes(models=("tiny", "poems")), requests_per_minute=7)
    assert split_key(new.text) == (new.record.id, _secret(new.text))
    (found,) = keys.all()
    assert found == new.record
    assert (found.name, found.requests_per_minute, found.tokens_per_minute) == ("ci", 7, None)
    secret = _secret(new.text)
    assert found.opens(secret)
    other = ("0" if secret[0] != "0" else "1") + secret[1:]
    assert not found.opens(other)
    assert found.allows_model("tiny") and not found.allows_model("tiny-2")
    assert keys.create("all").record.allows_model("anything")


def test_the_secret_is_256_random_bits_and_neither_in_the_store_nor_in_a_repr(keys: Keys, store: Store):
    made = [keys.create("same name") for _ in range(20)]
    assert len({_secret(new.text) for new in made}) == len({new.record.salt for new in made}) == 20
    assert all(len(bytes.fromhex(_secret(new.text))) == 32 for new in made)
    stored = "".join(entry.read_text() for entry in Path(store.uri, "keys").iterdir())
    shown = repr(made) + str(made[0].record)
    for new in made:
        assert new.record.sha256 in stored and new.record.sha256 not in shown
        assert _secret(new.text) not in stored + shown and new.record.salt not in shown


def test_a_revoked_key_stays_listed_and_cannot_be_rotated(keys: Keys):
    new = keys.create("gone")
    revoked = keys.revoke(new.text)
    assert revoked.revoked_at and keys.revoke(new.record.id) == revoked == keys.all()[0]
    with pytest.raises(ConfigError, match="was revoked at 20.*tandem keys create gone"):
        keys.rotate(new.record.id)


def test_rotating_at_the_same_time_does_not_bring_a_revoked_key_back(keys: Keys):
    new = keys.create("ci")
    read_before = keys.get(new.record.id)
    keys.revoke(new.record.id)
    keys._replace(read_before, sha256="0" * 64)  # what a rotation writes that had read the record before
    assert keys.get(new.record.id).revoked_at
    assert [record.revoked_at is not None for record in keys.all()] == [True]


def test_rotating_changes_the_secret_and_nothing_else(keys: Keys):
    old = keys.create("ci", scopes=Scopes(permissions="admin"), tokens_per_minute=900)
    new = keys.rotate(old.record.id)
    (found,) = keys.all()
    assert found.opens(_secret(new.text)) and not found.opens(_secret(old.text))
    assert (found.id, found.name, found.scopes, found.tokens_per_minute) == (
        old.record.id, "ci", Scopes(permissions="admin"), 900,
    )  # fmt: skip


def test_an_unknown_id_is_refused_without_showing_what_may_be_a_secret(keys: Keys):
    keys.create("one")
    typed = "tdm-0123456789ab-" + "5ec7e7" * 10
    with pytest.raises(ConfigError, match="has no such key.*tandem keys ls") as caught:
        keys.get(typed)
    assert "5ec7" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"name": ""}, {"requests_per_minute": 0}, {"tokens_per_minute": -5}])
def test_what_cannot_be_a_key_is_refused(keys: Keys, wrong: dict):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        keys.create(**{"name": "ci", **wrong})
    assert keys.all() == []


def test_a_mounted_kubernetes_secret_is_read_through_its_links(keys: Keys, tmp_path: Path, store: Store):
    record = keys.create("pod").record
    data = tmp_path / "mount" / "..2026_11_25"
    data.mkdir(parents=True)
    file = f"{record.id}.json"
    (data / file).write_bytes(Path(store.uri, "keys", file).read_bytes())
    (tmp_path / "mount" / "..data").symlink_to(data.name)
    (tmp_path / "mount" / file).symlink_to(f"..data/{file}")
    (tmp_path / "mount" / "README").write_text("no record")
    assert keys_in(store.root, str(tmp_path / "mount")).all() == [record]


def test_one_bad_file_shuts_no_other_key_out(keys: Keys, store: Store, caplog: pytest.LogCaptureFixture):
    good = keys.create("good").record
    folder = Path(store.uri, "keys")
    (folder / "0123456789ab.json").write_text("{")
    (folder / "ba9876543210.json").write_text(good.to_json())
    with caplog.at_level(logging.WARNING):
        assert keys.all() == [good]
    assert caplog.text.count("is left out") == 2
    assert good.sha256 not in caplog.text


def test_only_records_that_changed_are_read_again(keys: Keys, store: Store):
    first, second = keys.create("first").record, keys.create("second").record
    known = keys.read()
    path = Path(store.uri, "keys", f"{first.id}.json")
    before = path.stat()
    # Same time and size: taken for unchanged, so its content is not looked at.
    path.write_text(path.read_text().replace('"first"', '"fours"'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    keys.revoke(second.id)
    again = keys.read(known)
    assert again[first.id] is known[first.id]
    assert again[second.id].record.revoked_at


def test_a_record_is_read_as_it_was_written(keys: Keys, store: Store):
    record = keys.create("ci", scopes=Scopes(models=("tiny",))).record
    written = json.loads(Path(store.uri, "keys", f"{record.id}.json").read_text())
    assert written["scopes"] == {"models": ["tiny"], "permissions": "inference"}
    assert KeyRecord.model_validate(written) == record
