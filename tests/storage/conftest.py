"""Places to store things in, one of every kind, on servers that start when a test first asks for them."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from storage.location import Location, locate
from tests.servers.fixtures import gcs_server, make_gs_bucket, make_s3_bucket, s3_server
from tests.servers.nfs_like import NfsLike, nfs_like, unavailable_reason
from tests.servers.proxy import FaultProxy

BUCKET = "tandem-test"
KINDS = ("local", "nfs", "gs", "s3", "memory")
_USERS_CACHE = os.environ.get("TANDEM_CACHE")
# What the machine's own settings would change about a test.
_FOREIGN = (
    "TANDEM_CONFIG", "TANDEM_FILE_CACHE", "TANDEM_STORAGE_OPTIONS", "TANDEM_STORAGE_PATIENCE_S",
    "STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT", "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "HF_TOKEN",
    "HF_ENDPOINT",
)  # fmt: skip

PlaceOf = Callable[[str], Location]
Servers = Callable[..., None]


@pytest.fixture(scope="session")
def gs_url() -> Iterator[str]:
    """The URL of a Google Cloud Storage stand-in that has the bucket ``tandem-test``."""
    with gcs_server() as url:
        make_gs_bucket(url, BUCKET)
        yield url


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """The URL of an S3 server that has the bucket ``tandem-test``."""
    with s3_server() as url:
        make_s3_bucket(url, BUCKET)
        yield url


@pytest.fixture(scope="session")
def nfs_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NfsLike]:
    """An NFS-like mount; skips where none can be made."""
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            # libfuse is kept in the user's own cache: it is fetched once, not once a session.
            if _USERS_CACHE:
                patch.setenv("TANDEM_CACHE", _USERS_CACHE)
            else:
                patch.delenv("TANDEM_CACHE", raising=False)
            if reason := unavailable_reason():
                pytest.skip(reason)
            backing, mountpoint = tmp_path_factory.mktemp("backing"), tmp_path_factory.mktemp("mount")
            mount = stack.enter_context(nfs_like(backing, mountpoint))
        yield mount


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home, a cache and a store of this test's own, and none of the machine's settings or credentials."""
    folder = tmp_path_factory.mktemp("tandem")
    for name in _FOREIGN:
        monkeypatch.delenv(name, raising=False)
    for name in ("home", "cache", "store"):
        monkeypatch.setenv(f"TANDEM_{name.upper()}", str(folder / name))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "aws-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(folder / "gcloud"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    return folder


@pytest.fixture
def use_servers(monkeypatch: pytest.MonkeyPatch) -> Servers:
    """``use_servers(gs=url, s3=url)``: where this test and the processes it starts find the buckets."""
    options: dict[str, dict[str, Any]] = {}

    def use(**urls: str) -> None:
        for scheme, url in urls.items():
            anonymous = {"anonymous": True} if scheme == "gs" else {}
            options[f"{scheme}://{BUCKET}"] = {"endpoint_url": url, **anonymous}
        monkeypatch.setenv("TANDEM_STORAGE_OPTIONS", json.dumps(options))

    return use


@pytest.fixture
def place_of(request: pytest.FixtureRequest, tmp_path: Path, use_servers: Servers) -> PlaceOf:
    """``place_of(kind)``: another fresh and empty place of one of ``KINDS``, with each call."""

    def make(kind: str) -> Location:
        name = secrets.token_hex(4)
        match kind:
            case "local":
                return locate(str(tmp_path / f"place-{name}"))
            case "nfs":
                return locate(str(request.getfixturevalue("nfs_mount").path / f"place-{name}"))
            case "memory":
                return locate(f"memory://{name}/place")
        use_servers(**{kind: request.getfixturevalue(f"{kind}_url")})
        return locate(f"{kind}://{BUCKET}/place-{name}")

    return make


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, place_of: PlaceOf) -> Location:
    """A fresh and empty place, on every kind of store in turn."""
    return place_of(request.param)


@pytest.fixture(params=["gs", "s3"])
def remote_place(request: pytest.FixtureRequest, place_of: PlaceOf) -> Location:
    """A fresh and empty place, on every kind of object store in turn."""
    return place_of(request.param)


@pytest.fixture
def gs_proxy(gs_url: str, use_servers: Servers) -> Iterator[FaultProxy]:
    """A proxy before the Google Cloud Storage stand-in, which ``gs://tandem-test`` goes through."""
    with FaultProxy(gs_url) as proxy:
        use_servers(gs=proxy.url)
        yield proxy


@pytest.fixture
def proxied_place(gs_proxy: FaultProxy) -> Location:
    """A fresh and empty place that every request reaches through ``gs_proxy``."""
    return locate(f"gs://{BUCKET}/place-{secrets.token_hex(4)}")
