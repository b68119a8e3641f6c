"""A replica's copy of the keys, while the store is silent and while it looks by itself."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest

from serve_apps.keyring import Keyring
from serve_apps.refusal import Refused
from storage.keys import Keys, NewKey, keys_in
from storage.location import locate
from storage.store import Store
from tests.servers.fixtures import make_s3_bucket, s3_server

BUCKET = "tandem-keys"


async def _opens(keyring: Keyring, key: NewKey) -> int:
    """200, or what the refusal says."""
    try:
        found = await keyring.key_of([(b"authorization", b"Bearer " + key.text.encode())])
    except Refused as refused:
        return refused.status
    assert found == key.record
    return 200


def test_a_silent_store_shuts_nobody_out_and_lets_nobody_new_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("TANDEM_FILE_CACHE", str(tmp_path / "files"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    caplog.set_level(logging.INFO)

    async def main() -> None:
        with s3_server() as url:
            options = {f"s3://{BUCKET}": {"endpoint_url": url}}
            monkeypatch.setenv("TANDEM_STORAGE_OPTIONS", json.dumps(options))
            make_s3_bucket(url, BUCKET)
            keys = keys_in(locate(f"s3://{BUCKET}/store"))
            key, gone = keys.create("ci"), keys.create("gone")
            keys.revoke(gone.record.id)
            running = Keyring(keys, refresh_s=0.05, ask_again_s=0)
            await running.start()
            assert [await _opens(running, one) for one in (key, gone)] == [200, 401]
        # Not while the store answers: a busy machine may take longer over a request.
        monkeypatch.setenv("TANDEM_STORAGE_PATIENCE_S", "0.5")
        stranger = NewKey(key.record, f"tdm-{'0' * 12}-{'0' * 64}")
        # One that starts only now knows what its node heard last.
        late = Keyring(keys, ask_again_s=0)
        await late.start()
        for keyring in (running, late):
            assert [await _opens(keyring, one) for one in (key, gone, stranger)] == [200, 401, 401]
        monkeypatch.setenv("TANDEM_FILE_CACHE", str(tmp_path / "other node"))
        blind = Keyring(keys, ask_again_s=60)
        await blind.start()
        assert await _opens(blind, key) == 503
        for keyring in (running, late, blind):
            await keyring.stop()

    asyncio.run(main())
    assert "last known ones hold" in caplog.text
    assert "tdm-" not in caplog.text


def test_revoked_and_new_keys_are_noticed_without_a_request(store: Store):
    async def main(keys: Keys) -> None:
        key = keys.create("ci")
        keyring = Keyring(keys, refresh_s=0.05, ask_again_s=60)
        await keyring.start()
        assert await _opens(keyring, key) == 200
        keys.revoke(key.record.id)
        later = keys.create("later")
        async with asyncio.timeout(10):
            while [await _opens(keyring, one) for one in (key, later)] != [401, 200]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await keyring.stop()

    asyncio.run(main(keys_in(store.root)))


def test_many_fresh_keys_at_once_all_open(store: Store):
    async def main(keys: Keys) -> None:
        keyring = Keyring(keys, refresh_s=60, ask_again_s=0)
        await keyring.start()
        fresh = [keys.create(f"n-{number}") for number in range(20)]
        assert await asyncio.gather(*(_opens(keyring, key) for key in fresh)) == [200] * 20
        await keyring.stop()

    asyncio.run(main(keys_in(store.root)))
