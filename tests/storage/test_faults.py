"""Faults on the wire to gs and s3: what may pass is survived, the rest is told, nothing half is visible."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from runtime.core.errors import Conflict, Corrupt, Denied, NoSpace, NotFound, StorageError, Unreachable
from storage.cache import node_cache
from storage.http_faults import slow_after_s
from storage.local_files import sha256_of
from storage.location import Location, locate
from storage.manifest import MANIFEST_NAME
from storage.patience import patience
from storage.store import Store, open_store
from storage.transfer import copy_file
from tests.servers.fixtures import gcs_server, make_gs_bucket, make_s3_bucket, service_account_file
from tests.servers.proxy import Fault, FaultProxy

PATIENCE_S = 8.0
"""Patience where a request's own time-out matters, which is half of it: longer than a busy machine stalls."""
LONG_S = 30.0
"""Patience for all else: the machine may be busy."""
SHORT_S = 0.5
"""Patience for what never passes."""
SECRET = "nobody-may-read-this-0123456789"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
LARGE_BYTES = 20_000_003
"""Three parts of 8 MiB, the last one short."""
PARTS = 3

LARGE = 1_000_000
"""Bodies at least as large are parts of the large file."""
IN_TIME_S = 20.0
"""Even on a busy machine; a request's own time-out is 30 s, and patience of its own 60 s."""

# What requests look like; regular expressions over path and query.
PART = "partNumber="
BEGIN = r"\?uploads"
FINISH = r"safetensors\?uploadId=[^&]*$"
MANIFEST = r"/manifest\.json"
LISTING = r"list-type=2|/o\?"
DENIED_CODE = {"gs": "forbidden", "s3": "AccessDenied"}
QUOTA_CODE = {"gs": "quotaExceeded", "s3": "QuotaExceeded"}


def content_of(name: str) -> str:
    """Requests for a file's content, not for what is known of it."""
    return rf"/{re.escape(name)}(\?generation=\d+|$)"


def always(**how: object) -> Fault:
    """A fault that happens to every request that fits."""
    return Fault(times=None, **how)  # type: ignore[arg-type]


@dataclass
class Remote:
    """A bucket of its own behind a proxy that breaks things; the store is in it."""

    scheme: str
    bucket: str
    url: str
    """The server itself."""
    proxy: FaultProxy

    @property
    def uri(self) -> str:
        return f"{self.scheme}://{self.bucket}/store"

    @property
    def store(self) -> Store:
        return open_store(self.uri)

    def count(self, method: str, path: str) -> int:
        """How many such requests there were so far."""
        seen = list(self.proxy.requests)
        return sum(method == found and re.search(path, where) is not None for found, where, _ in seen)

    @contextmanager
    def suffering(self, *faults: Fault) -> Iterator[None]:
        """The faults, as long as the block lasts. Those with a number of times must have happened by then."""
        limited = [fault for fault in faults if fault.times is not None]
        self.proxy.add(*faults)
        try:
            yield
            assert [fault for fault in limited if fault.times] == [], "these did not happen"
        finally:
            for fault in faults:
                fault.times = 0


@contextmanager
def behind_a_proxy(scheme: str, url: str) -> Iterator[Remote]:
    bucket = f"faults-{secrets.token_hex(4)}"
    (make_gs_bucket if scheme == "gs" else make_s3_bucket)(url, bucket)
    with FaultProxy(url) as proxy:
        yield Remote(scheme, bucket, url, proxy)


def settings(scheme: str, endpoint_url: str) -> dict[str, object]:
    """What a prefix needs in the workspace config."""
    return {"endpoint_url": endpoint_url} | ({"anonymous": True} if scheme == "gs" else {})


def use(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {f"{remote.scheme}://{remote.bucket}": settings(remote.scheme, remote.proxy.url)}
    monkeypatch.setenv("TANDEM_STORAGE_OPTIONS", json.dumps(options))


@pytest.fixture(autouse=True)
def surroundings(own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may pass is tried again for a while; there is a secret that nobody may tell."""
    monkeypatch.setenv("TANDEM_STORAGE_PATIENCE_S", str(LONG_S))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 20 MB and some small files, one of them empty."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / CONFIG).write_text('{"num_attention_heads": 8}')
    (folder / WEIGHTS).write_bytes(os.urandom(LARGE_BYTES))
    (folder / "sub").mkdir()
    (folder / "sub" / "empty").write_bytes(b"")
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one small file and an empty one."""
    folder = tmp_path_factory.mktemp("small")
    (folder / CONFIG).write_text('{"num_attention_heads": 4}')
    (folder / "empty").write_bytes(b"")
    return folder


@pytest.fixture(params=["gs", "s3"])
def remote(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[Remote]:
    """An empty bucket."""
    caplog.set_level("INFO")
    with behind_a_proxy(request.param, request.getfixturevalue(f"{request.param}_url")) as found:
        use(found, monkeypatch)
        yield found
    assert SECRET not in caplog.text and "Signature" not in caplog.text


@pytest.fixture(scope="module", params=["gs", "s3"])
def filled(
    request: pytest.FixtureRequest, trained: Path, small: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Remote]:
    """A bucket that holds ``trained`` as ``m/v1`` and ``small`` as ``small/v1``."""
    with (
        behind_a_proxy(request.param, request.getfixturevalue(f"{request.param}_url")) as found,
        pytest.MonkeyPatch.context() as environment,
    ):
        environment.setenv("TANDEM_FILE_CACHE", str(tmp_path_factory.mktemp("files")))
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        use(found, environment)
        found.store.publish_model(trained, "m", version="v1")
        found.store.publish_model(small, "small", version="v1")
        yield found


@pytest.fixture
def published(
    filled: Remote, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[Remote]:
    """The same, for tests that only read."""
    caplog.set_level("INFO")
    use(filled, monkeypatch)
    yield filled
    assert SECRET not in caplog.text and "Signature" not in caplog.text


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below, by its name from there."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def stored(place: Location) -> dict[str, bytes]:
    """Every object below, by its name from there."""
    return {place.relative(entry): place.at(entry).read_bytes() for entry in place.find()}


def assert_only_version(remote: Remote, ref: str, source: Path) -> None:
    """The store has this version, whole, and no other."""
    versions = remote.store.models()
    assert [version.ref for version in versions] == [ref]
    assert stored(versions[0].files) == files_of(source)
    assert remote.store.model(ref.partition("/")[0]).ref == ref


def assert_nothing_visible(remote: Remote, ref: str = "m/v1") -> None:
    """No reader finds any version, and there is no manifest."""
    name = ref.partition("/")[0]
    place = remote.store.locate(f"models/{ref}")
    assert remote.store.models() == [] and (place / MANIFEST_NAME).stat() is None
    assert remote.store.locate(f"models/{name}/latest.json").stat() is None


@contextmanager
def refused(kind: type[StorageError], remote: Remote, remedy: str) -> Iterator[None]:
    """The block raises ``kind``, which names an address in the bucket and the remedy, and tells no secret."""
    with pytest.raises(kind, match=remedy) as caught:
        yield
    assert f"{remote.scheme}://{remote.bucket}" in str(caught.value)
    assert SECRET not in str(caught.value) and "Signature" not in str(caught.value)
    assert type(caught.value) is kind


@contextmanager
def never_reached(remote: Remote) -> Iterator[None]:
    """The block gives up after a short while, and says what can be done."""
    remedy = r"\(tried .* in 0\.5 s\)\. Check the address and the network, or give it more time with TANDEM_"
    with refused(Unreachable, remote, remedy), patience(SHORT_S):
        yield


def patience_for(faults: list[Fault]) -> AbstractContextManager[None]:
    """Where there is no answer, as little as finds out soon."""
    return patience(PATIENCE_S if any(fault.kind == "stall" for fault in faults) else LONG_S)


# What may pass is survived: uploads

LARGE_UPLOADS: dict[str, list[Fault]] = {
    "reset before a part": [Fault("reset", method="PUT", path=PART, direction="up")],
    "reset within a part": [
        Fault("reset", times=2, method="PUT", path=PART, direction="up", after_bytes=3_000_000)
    ],
    "answers lost": [
        Fault("reset", method="POST", path=BEGIN),
        Fault("reset", times=2, method="PUT", path=PART),
        Fault("reset", method="POST", path=FINISH),
    ],
    "half of answers": [
        Fault("truncate_lying", method="POST", path=BEGIN),
        Fault("truncate_lying", method="POST", path=FINISH),
    ],
    "half of answers, said to be whole": [
        Fault("truncate_short", method="POST", path=BEGIN),
        Fault("truncate_short", method="POST", path=FINISH),
    ],
    "a burst of 503": [Fault("status", times=4, method="PUT", status=503, code="SlowDown", path=PART)],
    "a burst of 429 with a time to wait": [Fault("status", times=2, path=PART, status=429, retry_after_s=1)],
    "500, 502, 504 and 408 without a word": [
        Fault("status", status=status, path=PART) for status in (500, 502, 504, 408)
    ],
    "403 for too many requests": [Fault("status", status=403, code="rateLimitExceeded", path=PART)],
    "no answer to a part": [Fault("stall", method="PUT", path=PART)],
}
SMALL_UPLOADS: dict[str, list[Fault]] = {
    "503 at everything": [Fault("status", times=3, status=503, code="ServiceUnavailable")],
    "a bit turned in a file": [Fault("flip_up", times=2, method="PUT", path=f"/{CONFIG}")],
    "a bit turned in the manifest": [Fault("flip_up", times=2, method="PUT", path=MANIFEST)],
    "the manifest reset on its way": [
        Fault("reset", method="PUT", path=MANIFEST, direction="up", after_bytes=10)
    ],
    "503 to the manifest": [Fault("status", times=3, method="PUT", path=MANIFEST, status=503)],
    "half a listing": [Fault("truncate_lying", method="GET", path=LISTING)],
    "half a listing, said to be whole": [Fault("truncate_short", method="GET", path=LISTING)],
}


@pytest.mark.parametrize("faults", LARGE_UPLOADS.values(), ids=LARGE_UPLOADS.keys())
def test_a_large_upload_survives(remote: Remote, trained: Path, faults: list[Fault]):
    with remote.suffering(*map(replace, faults)), patience_for(faults):
        remote.store.publish_model(trained, "m", version="v1")
    assert_only_version(remote, "m/v1", trained)


@pytest.mark.parametrize("faults", SMALL_UPLOADS.values(), ids=SMALL_UPLOADS.keys())
def test_a_small_upload_survives(remote: Remote, small: Path, faults: list[Fault]):
    with remote.suffering(*map(replace, faults)):
        remote.store.publish_model(small, "m", version="v1")
    assert_only_version(remote, "m/v1", small)


def test_a_part_that_was_spoilt_is_sent_again_and_no_other(remote: Remote, trained: Path):
    with remote.suffering(Fault("flip_up", times=2, method="PUT", path=PART)):
        remote.store.publish_model(trained, "m", version="v1")
    assert remote.count("PUT", PART) == PARTS + 2
    assert_only_version(remote, "m/v1", trained)


def test_a_publisher_whose_answer_was_lost_does_not_lose_to_itself(remote: Remote, small: Path):
    with remote.suffering(Fault("reset", method="PUT", path=MANIFEST)):
        published = remote.store.publish_model(small, "m", version="v1", run="r-1")
    assert remote.count("PUT", MANIFEST) == 2
    found = remote.store.model("m/v1").manifest
    assert found and published.manifest and found.attempt == published.manifest.attempt
    assert_only_version(remote, "m/v1", small)
    # The next one does lose, and is told to whom.
    with refused(Conflict, remote, r"committed by .*@.*from run r-1\. Choose another name or version"):
        remote.store.publish_model(small, "m", version="v1")


def test_a_run_begins_though_the_answer_to_its_record_was_lost(remote: Remote):
    with remote.suffering(Fault("reset", times=2, method="PUT", path=r"/run\.json")):
        run = remote.store.new_run("r", '{"name": "r"}')
    assert [found.run_id for found in remote.store.runs()] == [run.run_id]
    assert run.spec_json() == '{"name": "r"}' and run.record()["created_at"]


# And downloads

LARGE_DOWNLOADS: dict[str, list[Fault]] = {
    "reset before the answer": [Fault("reset", times=3, min_body_bytes=LARGE)],
    "reset within a part": [Fault("reset", times=3, after_bytes=3_000_000, min_body_bytes=LARGE)],
    "a part cut short": [Fault("truncate_lying", times=3, min_body_bytes=LARGE)],
    "a part cut short, said to be whole": [Fault("truncate_short", times=3, min_body_bytes=LARGE)],
    "503 at parts": [Fault("status", times=5, status=503, code="SlowDown", min_body_bytes=LARGE)],
    "429 with a time to wait": [Fault("status", times=2, status=429, retry_after_s=1, min_body_bytes=LARGE)],
    "no answer to a part": [Fault("stall", min_body_bytes=LARGE)],
    "a bit turned in a part": [Fault("flip", min_body_bytes=LARGE)],
}
SMALL_DOWNLOADS: dict[str, list[Fault]] = {
    "503 at everything": [Fault("status", times=3, status=503, code="ServiceUnavailable")],
    "a file cut short": [Fault("truncate_lying", path=content_of(CONFIG), method="GET")],
    "a file cut short, said to be whole": [Fault("truncate_short", path=content_of(CONFIG), method="GET")],
    "a bit turned in a file": [Fault("flip", path=content_of(CONFIG), method="GET")],
}


@pytest.mark.parametrize("faults", LARGE_DOWNLOADS.values(), ids=LARGE_DOWNLOADS.keys())
def test_a_large_download_survives(published: Remote, trained: Path, faults: list[Fault]):
    version = published.store.model("m/v1")
    with published.suffering(*map(replace, faults)), patience_for(faults), version.fetch() as folder:
        assert files_of(folder.path) == files_of(trained)


@pytest.mark.parametrize("faults", SMALL_DOWNLOADS.values(), ids=SMALL_DOWNLOADS.keys())
def test_a_small_download_survives(published: Remote, small: Path, faults: list[Fault]):
    version = published.store.model("small/v1")
    with published.suffering(*map(replace, faults)), version.fetch() as folder:
        assert files_of(folder.path) == files_of(small)


@pytest.mark.parametrize("kind", ["flip", "truncate_lying", "truncate_short", "reset"])
def test_a_manifest_that_was_spoilt_on_its_way_is_read_again(published: Remote, trained: Path, kind: str):
    fault = Fault(kind, path=content_of(MANIFEST_NAME), method="GET")  # type: ignore[arg-type]
    with published.suffering(fault):
        found = published.store.model("m/v1").manifest
    assert found is not None
    sizes = {entry.path: entry.size_bytes for entry in found.files}
    assert sizes == {name: len(content) for name, content in files_of(trained).items()}
    # Not what would have been believed, either.
    assert found == published.store.models("m")[0].manifest


def test_a_connection_that_trickles_is_given_up_for_another(published: Remote, trained: Path):
    version = published.store.model("m/v1")
    began_s = time.monotonic()
    with (
        published.suffering(Fault("trickle", min_body_bytes=LARGE)),
        patience(PATIENCE_S),
        version.fetch() as folder,
    ):
        assert slow_after_s() == PATIENCE_S / 2
        assert files_of(folder.path) == files_of(trained)
    # All of the part would take eleven hours.
    assert PATIENCE_S / 2 <= time.monotonic() - began_s < IN_TIME_S


def test_a_bit_turned_in_a_large_file_costs_one_more_copy(published: Remote, trained: Path, tmp_path: Path):
    version, target = published.store.model("m/v1"), tmp_path / "copied"
    before = published.count("GET", content_of(WEIGHTS))
    with published.suffering(Fault("flip", min_body_bytes=LARGE)):
        copy_file(version.files / WEIGHTS, locate(str(target)))
    assert target.read_bytes() == (trained / WEIGHTS).read_bytes()
    assert published.count("GET", content_of(WEIGHTS)) - before == 2 * PARTS


@pytest.mark.parametrize("ref, name", [("m/v1", WEIGHTS), ("small/v1", CONFIG)])
def test_what_always_arrives_damaged_is_refused_and_not_kept(
    published: Remote, own_folders: Path, tmp_path: Path, ref: str, name: str
):
    version, target = published.store.model(ref), tmp_path / "copied"
    with published.suffering(always(kind="flip", path=content_of(name), method="GET")):
        with refused(Corrupt, published, "does not match its checksum, twice .*Publish it again"):
            copy_file(version.files / name, locate(str(target)))
        with refused(Corrupt, published, "does not match its checksum, twice .*Publish it again"):
            version.fetch()
    assert os.listdir(tmp_path) == [] and node_cache().held() == []
    assert not [path for path in own_folders.rglob("blobs/*/*") if path.stat().st_size > LARGE]
    with version.fetch() as folder:
        assert version.manifest
        assert all(sha256_of(folder.path / file.path) == file.sha256 for file in version.manifest.files)


@pytest.mark.parametrize("filled", ["s3"], indirect=True)
def test_a_store_that_falls_silent_does_not_hold_up_whom_it_answered_before(published: Remote):
    known = published.store.model("small/v1")
    began_s = time.monotonic()
    with published.suffering(always(kind="stall")), patience(60):
        assert published.store.model("small/v1") == known
    assert time.monotonic() - began_s < IN_TIME_S


# What does not pass is told

LARGE_NEVER_SENT: dict[str, Fault] = {
    "503 at parts": always(kind="status", status=503, path=PART, method="PUT"),
    "resets": always(kind="reset", direction="up", path=PART, method="PUT"),
    "no answer to parts": always(kind="stall", path=PART),
    "bits turned in parts": always(kind="flip_up", path=PART, method="PUT"),
}
SMALL_NEVER_SENT: dict[str, Fault] = {
    "429 with a long time to wait": always(kind="status", status=429, retry_after_s=60, method="PUT"),
    "503 to everything": always(kind="status", status=503),
    "no answer to anything": always(kind="stall"),
    "bits turned in the manifest": always(kind="flip_up", path=MANIFEST, method="PUT"),
    "half of all listings, said to be whole": always(kind="truncate_short", path=LISTING),
}


@pytest.mark.parametrize("fault", LARGE_NEVER_SENT.values(), ids=LARGE_NEVER_SENT.keys())
def test_a_large_upload_ends_in_time_and_leaves_nothing_visible(remote: Remote, trained: Path, fault: Fault):
    ends_in_time_and_leaves_nothing_visible(remote, trained, fault)


@pytest.mark.parametrize("fault", SMALL_NEVER_SENT.values(), ids=SMALL_NEVER_SENT.keys())
def test_a_small_upload_ends_in_time_and_leaves_nothing_visible(remote: Remote, small: Path, fault: Fault):
    ends_in_time_and_leaves_nothing_visible(remote, small, fault)


def ends_in_time_and_leaves_nothing_visible(remote: Remote, source: Path, fault: Fault) -> None:
    began_s = time.monotonic()
    with remote.suffering(replace(fault)), never_reached(remote):
        remote.store.publish_model(source, "m", version="v1")
    assert time.monotonic() - began_s < IN_TIME_S
    assert_nothing_visible(remote)
    remote.store.publish_model(source, "m", version="v1")
    assert_only_version(remote, "m/v1", source)


NEVER_COMING: dict[str, Fault] = {
    "503": always(kind="status", status=503, min_body_bytes=LARGE),
    "cut short": always(kind="truncate_lying", min_body_bytes=LARGE),
    "trickle": always(kind="trickle", min_body_bytes=LARGE),
    "no answer": always(kind="stall", min_body_bytes=LARGE),
}


@pytest.mark.parametrize("fault", NEVER_COMING.values(), ids=NEVER_COMING.keys())
def test_a_download_ends_in_time_and_the_next_succeeds(published: Remote, trained: Path, fault: Fault):
    version = published.store.model("m/v1")
    began_s = time.monotonic()
    with published.suffering(replace(fault)), never_reached(published):
        version.fetch()
    assert time.monotonic() - began_s < IN_TIME_S
    assert node_cache().held() == []
    with version.fetch() as folder:
        assert files_of(folder.path) == files_of(trained)


def test_one_wait_is_enough_however_many_parts_there_are(
    remote: Remote, trained: Path, monkeypatch: pytest.MonkeyPatch
):
    # Every try is answered and counted: none is given up that a busy machine did not answer at once.
    monkeypatch.setattr(f"storage.backends.{remote.scheme}.request_timeout_s", lambda: LONG_S)
    fault = always(kind="status", status=503, path=BEGIN, method="POST")
    with (
        pytest.raises(Unreachable, match=r"tried \d+ times") as caught,
        patience(SHORT_S),
        remote.suffering(fault),
    ):
        remote.store.publish_model(trained, "m", version="v1")
    assert f"tried {remote.count('POST', BEGIN)} times" in str(caught.value)
    assert_nothing_visible(remote)


def test_one_wait_is_enough_however_long_the_listing_is(remote: Remote):
    for _ in range(30):
        remote.store.new_run("r", "{}")
    assert len(remote.store.runs()) == 30
    before = len(remote.proxy.requests)
    with remote.suffering(always(kind="status", status=503, path=r"run\.json")), never_reached(remote):
        remote.store.runs()
    asked = {where.partition("?")[0] for _, where, what in remote.proxy.requests[before:] if what == "status"}
    # Eight are asked side by side. Those that give up first make way for others until the fault is heard.
    assert len(asked) < 20


def refused_at_the_end(remote: Remote, source: Path) -> None:
    """An attempt that has sent everything and is then refused."""
    code = DENIED_CODE[remote.scheme]
    fault = Fault("status", status=403, code=code, method="POST", path=FINISH)
    with remote.suffering(fault), refused(Denied, remote, "403"):
        remote.store.publish_model(source, "m", version="v1")
    assert remote.count("PUT", PART) == PARTS
    assert_nothing_visible(remote)


def test_what_was_sent_is_not_sent_again_by_the_next_attempt(remote: Remote, trained: Path):
    refused_at_the_end(remote, trained)
    remote.store.publish_model(trained, "m", version="v1")
    assert remote.count("PUT", PART) == PARTS
    assert_only_version(remote, "m/v1", trained)


def test_an_upload_that_the_server_has_forgotten_begins_again(remote: Remote, trained: Path):
    refused_at_the_end(remote, trained)
    backend, key = remote.store.root.backend, remote.store.root.key
    for upload in list(backend.unfinished(key)):
        backend.give_up(upload.key, upload.upload_id)
    remote.store.publish_model(trained, "m", version="v1")
    assert remote.count("PUT", PART) == 2 * PARTS
    assert_only_version(remote, "m/v1", trained)
    assert list(backend.unfinished(key)) == []


@pytest.mark.parametrize("method, path", [("PUT", PART), ("POST", BEGIN), ("PUT", MANIFEST)])
def test_a_refusal_is_told_at_once_and_never_tried_again(
    remote: Remote, trained: Path, method: str, path: str
):
    code = DENIED_CODE[remote.scheme]
    fault = always(kind="status", status=403, code=code, method=method, path=path)
    with remote.suffering(fault), refused(Denied, remote, r"the store refuses us \(403.*(GOOGLE|AWS)_"):
        remote.store.publish_model(trained, "m", version="v1")
    # Parts leave side by side: each was tried once.
    assert remote.count(method, path) in (range(1, PARTS + 1) if path == PART else [1])
    assert_nothing_visible(remote)


def test_a_store_that_may_not_be_read_says_so_with_its_first_answer(published: Remote):
    code, before = DENIED_CODE[published.scheme], len(published.proxy.requests)
    with (
        published.suffering(always(kind="status", status=403, code=code)),
        refused(Denied, published, r"the store refuses us \(403.*(Storage Object Admin|s3:GetObject)"),
    ):
        published.store.models()
    assert len(published.proxy.requests) - before == 1


@pytest.mark.parametrize("status, method, path", [(403, "PUT", PART), (507, "PUT", MANIFEST)])
def test_a_full_store_is_told_at_once(remote: Remote, trained: Path, status: int, method: str, path: str):
    code = QUOTA_CODE[remote.scheme]
    fault = always(kind="status", status=status, code=code, method=method, path=path)
    with (
        remote.suffering(fault),
        refused(NoSpace, remote, "the quota or the disk of the store is full .*Free some room there"),
    ):
        remote.store.publish_model(trained, "m", version="v1")
    assert remote.count(method, path) in (range(1, PARTS + 1) if path == PART else [1])
    assert_nothing_visible(remote)
    # What was sent of the large file would stay there, and cost, until somebody tidies up.
    assert list(remote.store.root.backend.unfinished(remote.store.root.key)) == []
    remote.store.publish_model(trained, "m", version="v1")
    assert_only_version(remote, "m/v1", trained)


def test_a_bucket_that_does_not_exist_is_called_so(remote: Remote, small: Path, monkeypatch):
    options = {f"{remote.scheme}://": settings(remote.scheme, remote.proxy.url)}
    monkeypatch.setenv("TANDEM_STORAGE_OPTIONS", json.dumps(options))
    nowhere = replace(remote, bucket="missing-bucket")
    for action in (
        nowhere.store.models,
        lambda: nowhere.store.model("m/v1"),
        lambda: nowhere.store.publish_model(small, "m", version="v1"),
        lambda: copy_file(locate(f"{nowhere.uri}/x"), locate("/nowhere")),
        lambda: copy_file(locate(str(small / CONFIG)), locate(f"{nowhere.uri}/x")),
    ):
        with refused(NotFound, nowhere, "the bucket does not exist .*Create it, or correct the address"):
            action()


def test_a_server_that_is_not_there_is_named_with_the_way_out(remote: Remote, monkeypatch):
    with FaultProxy(remote.url) as gone:
        use(replace(remote, proxy=gone), monkeypatch)
    with refused(Unreachable, remote, "connection is refused .*TANDEM_STORAGE_PATIENCE_S"), patience(SHORT_S):
        remote.store.models()


# Credentials, for real


def gs_store(bucket: str, url: str, monkeypatch: pytest.MonkeyPatch, **settings: str) -> Store:
    options = {f"gs://{bucket}": {"endpoint_url": url} | settings}
    monkeypatch.setenv("TANDEM_STORAGE_OPTIONS", json.dumps(options))
    return open_store(f"gs://{bucket}/store")


@pytest.fixture(scope="module")
def guarded_url() -> Iterator[str]:
    """A server that wants a service account's token."""
    with gcs_server(require_token=True) as url:
        make_gs_bucket(url, "guarded")
        yield url


@pytest.mark.parametrize("by", ["environment", "settings"])
def test_google_accounts_are_let_in_or_told_who_was_refused(
    guarded_url: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
):
    def store_of(file: Path) -> Store:
        if by == "settings":
            return gs_store("guarded", guarded_url, monkeypatch, credentials_file=str(file))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
        # Backends are kept by their settings, which the environment is not: slashes make them others.
        return gs_store("guarded", guarded_url + "/" * (1 + (file == stranger)), monkeypatch)

    stranger = service_account_file(tmp_path, guarded_url, email="stranger@tandem.test")
    ours = service_account_file(tmp_path, guarded_url)
    with pytest.raises(Denied, match="gs://guarded/.*no token .*invalid_grant.*GOOGLE_APPLICATION_CRED") as e:
        store_of(stranger).publish_model(trained, f"by-{by}", version="v1")
    for file in (stranger, ours):
        assert json.loads(file.read_text())["private_key"].splitlines()[1] not in str(e.value)
    store = store_of(ours)
    assert by not in {version.name for version in store.models()}
    version = store.publish_model(trained, f"by-{by}", version="v1")
    assert stored(version.files) == files_of(trained)


def test_without_credentials_nothing_is_asked_anonymously(
    guarded_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3_url: str
):
    broken = tmp_path / "key.json"
    broken.write_text(json.dumps({"type": "service_account", "private_key": SECRET}))
    with pytest.raises(Denied, match=r"gs://guarded: the key file .*key\.json cannot be used") as caught:
        gs_store("guarded", guarded_url, monkeypatch, credentials_file=str(broken))
    assert SECRET not in str(caught.value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    # Backends are kept by their settings: no other test has these.
    options = {"s3://tandem-test": {"endpoint_url": s3_url, "region": "eu-central-1"}}
    monkeypatch.setenv("TANDEM_STORAGE_OPTIONS", json.dumps(options))
    with pytest.raises(Denied, match="s3://tandem-test/.*credentials.*AWS_ACCESS_KEY_ID and AWS_SECRET"):
        open_store("s3://tandem-test/store").models()


def test_a_sign_in_that_fails_for_a_moment_is_tried_again(
    guarded_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Google's own library asks three times before it tells us.
    fault = Fault("status", times=3, status=503, path="/token")
    with FaultProxy(guarded_url) as proxy, patience(20):
        file = service_account_file(tmp_path, proxy.url)
        proxy.add(fault)
        store = gs_store("guarded", guarded_url, monkeypatch, credentials_file=str(file))
        assert store.models("nobody") == []
    assert fault.times == 0
