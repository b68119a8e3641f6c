"""``tandem keys`` as a person types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from runtime.cli_keys import keys
from runtime.core.errors import ConfigError
from serve_apps.usage import Usage
from storage.keys import keys_in, split_key
from storage.store import Store

Run = Callable[..., Result]


@pytest.fixture
def run(store: Store, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs one command on a store of this test's own; fails unless it succeeds."""
    monkeypatch.setenv("TANDEM_STORE", store.uri)
    monkeypatch.setenv("COLUMNS", "200")

    def command(*words: str) -> Result:
        result = CliRunner().invoke(keys, words)
        assert result.exit_code == 0, result.output + repr(result.exception)
        return result

    return command


def test_a_created_key_is_alone_on_standard_output_and_shown_once(run: Run, store: Store):
    created = run("create", "ci", "--model", "tiny", "--model", "poems", "--requests-per-minute", "60")
    key_id, secret = split_key(created.stdout.removesuffix("\n")) or ("", "")
    assert created.stderr == f"Key {key_id} for ci. It is not shown again.\n"
    (row,) = json.loads(run("--json").stdout)
    assert row == row | {
        "id": key_id, "name": "ci", "models": ["tiny", "poems"], "permissions": "inference",
        "requests_per_minute": 60, "tokens_per_minute": None, "revoked_at": None,
    }  # fmt: skip
    table = run().stdout
    assert key_id in table and secret not in table
    assert keys_in(store.root).get(key_id).opens(secret)


def test_a_key_is_rotated_and_revoked_by_its_id(run: Run):
    old = json.loads(run("create", "boss", "--admin", "--tokens-per-minute", "1000", "--json").stdout)
    assert (old["permissions"], old["tokens_per_minute"]) == ("admin", 1000)
    new = run("rotate", old["id"]).stdout.strip()
    assert new != old["key"] and split_key(new) is not None and new.startswith(f"tdm-{old['id']}-")
    assert run("revoke", old["id"]).stdout == f"Revoked {old['id']} (boss)\n"
    assert json.loads(run("ls", "boss", "--json").stdout)[0]["revoked_at"]
    refused = CliRunner().invoke(keys, ["rotate", old["id"]])
    assert isinstance(refused.exception, ConfigError) and "was revoked" in str(refused.exception)


def test_keys_may_lie_in_a_folder_of_their_own(run: Run, tmp_path: Path):
    folder = str(tmp_path / "elsewhere")
    made = json.loads(run("create", "pod", "--keys", folder, "--json").stdout)
    assert [file.name for file in Path(folder).iterdir()] == [f"{made['id']}.json"]
    assert json.loads(run("--json").stdout) == []
    assert len(json.loads(run("ls", "--keys", folder, "--json").stdout)) == 1


def test_usage_is_shown_with_the_keys_names(run: Run, store: Store):
    assert json.loads(run("usage", "--json").stdout) == []
    key_id = json.loads(run("create", "ci", "--json").stdout)["id"]
    for date in ("2026-11-24", "2026-11-25"):
        written = Usage(store.root / "usage", app="tiny", today=lambda date=date: date)
        written.add(key_id, "tiny", prompt_tokens=30, completion_tokens=12)
        written.write()
    assert len(json.loads(run("usage", "--json").stdout)) == 2
    assert json.loads(run("usage", "--since", "2026-11-25", "--json").stdout) == [
        {
            "date": "2026-11-25", "key_id": key_id, "name": "ci", "model": "tiny", "requests": 1,
            "prompt_tokens": 30, "completion_tokens": 12,
        }
    ]  # fmt: skip
    assert "ci" in run("usage").stdout
