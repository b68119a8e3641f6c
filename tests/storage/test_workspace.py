"""The workspace config and addresses: whose settings count, what is refused, and that no secret gets out."""

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.core.errors import ConfigError, Denied, TandemError, Unreachable
from storage.address import parse
from storage.location import Location, locate
from storage.patience import patience
from storage.store import open_store
from storage.workspace import default_store, options_for, storage_env, workspace
from tests.servers.fixtures import gcs_server, make_gs_bucket, service_account_file
from tests.servers.gcs import TOKEN
from tests.servers.proxy import Fault, FaultProxy

MIB = 1 << 20
SECRET = "wJalrXUtn/FEMI+K7MDENG"
Write = Callable[[str], Path]


@pytest.fixture
def write_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Makes a text the workspace config, each in a file of its own."""
    written = []

    def write(text: str) -> Path:
        written.append(tmp_path / f"config-{len(written)}.yaml")
        written[-1].write_text(text)
        monkeypatch.setenv("TANDEM_CONFIG", str(written[-1]))
        return written[-1]

    return write


# whose settings count


def test_the_longest_prefix_wins_alone(write_config: Write):
    write_config(
        "storage:\n"
        "  s3://: {region: everywhere}\n"
        "  s3://lab: {region: lab, profile: lab}\n"
        "  s3://lab/deep/: {region: deep}\n"
        "  gcs://old-name: {anonymous: true}\n"
        "  gs://private-keys: {project: named-like-a-secret}\n"
    )
    assert options_for("s3://lab") == options_for("s3://lab/x") == {"region": "lab", "profile": "lab"}
    assert options_for("s3://lab/deep") == options_for("s3://lab/deep/x/y") == {"region": "deep"}
    assert options_for("s3://lab/deeper") == {"region": "lab", "profile": "lab"}
    assert options_for("s3://laboratory/x") == {"region": "everywhere"}
    assert options_for("gs://lab/x") == {}
    assert options_for(parse("gcs://old-name/x").uri) == options_for("gs://old-name") == {"anonymous": True}
    assert options_for("gs://private-keys/x") == {"project": "named-like-a-secret"}


def test_the_store_is_what_the_environment_says_then_the_config_then_the_home(
    write_config: Write, own_folders: Path, monkeypatch: pytest.MonkeyPatch
):
    assert open_store("memory://given").uri == "memory://given"
    write_config("store: memory://from-config\n")
    monkeypatch.setenv("TANDEM_STORE", "memory://from-environment")
    assert open_store().uri == "memory://from-environment"
    monkeypatch.delenv("TANDEM_STORE")
    assert open_store().uri == "memory://from-config"
    monkeypatch.delenv("TANDEM_CONFIG")
    assert default_store() == "~/.tandem/store"
    (own_folders / "other-home").mkdir()
    (own_folders / "other-home" / "config.yaml").write_text("store: memory://from-home\n")
    monkeypatch.setenv("TANDEM_HOME", str(own_folders / "other-home"))
    assert open_store().uri == "memory://from-home"


def test_settings_travel_to_other_processes_and_win_there(
    write_config: Write, monkeypatch: pytest.MonkeyPatch
):
    write_config("storage: {s3://lab: {region: here}}\n")
    monkeypatch.setenv("TANDEM_STORAGE_PATIENCE_S", "7")
    travelling = storage_env()
    assert travelling["TANDEM_STORAGE_PATIENCE_S"] == "7"
    # There, on the cluster:
    write_config("storage: {s3://lab: {region: there}, gs://x: {anonymous: true}}\ncache: {max_bytes: 5}\n")
    assert options_for("s3://lab") == {"region": "there"}
    for name, value in travelling.items():
        monkeypatch.setenv(name, value)
    assert (options_for("s3://lab"), options_for("gs://x")) == ({"region": "here"}, {})
    assert workspace().cache.max_bytes == 5
    assert storage_env() == travelling


def test_settings_that_came_spoilt_are_refused(monkeypatch: pytest.MonkeyPatch):
    for text, said in [
        ("{s3://lab", "TANDEM_STORAGE_OPTIONS is not JSON"),
        ('["s3://lab"]', r"(?s)TANDEM_STORAGE_OPTIONS: .*storage: is \['s3://lab'\]"),
        (
            json.dumps({"s3://lab": {"secret_key": SECRET}}),
            r"storage\.s3://lab\.secret_key would hold a secret",
        ),
    ]:
        monkeypatch.setenv("TANDEM_STORAGE_OPTIONS", text)
        with pytest.raises(ConfigError, match=said) as refusal:
            workspace()
        assert SECRET not in str(refusal.value)


def test_a_misspelt_setting_is_named_with_the_one_that_was_meant(write_config: Write):
    write_config("storage: {s3://lab: {endpiont_url: http://minio:9000}}\n")
    said = r"settings for s3://lab/x: .*endpiont_url: unknown field .*Did you mean 'endpoint_url'"
    with pytest.raises(ConfigError, match=re.compile(said, re.DOTALL)):
        locate("s3://lab/x")
    write_config("stoarge: {}\n")
    with pytest.raises(ConfigError, match="Did you mean 'storage'"):
        workspace()


# secrets in the wrong place


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (
            f"storage: {{s3://lab: {{aws_secret_access_key: {SECRET}}}}}",
            "storage.s3://lab.aws_secret_access_key",
        ),
        (f"storage: {{s3://lab: {{session_token: {SECRET}}}}}", "storage.s3://lab.session_token"),
        (f"storage: {{gs://b: {{credentials: {{private_key: {SECRET}}}}}}}", "storage.gs://b.credentials"),
        (
            f"storage: {{s3://lab: {{endpoint_url: 'http://me:{SECRET}@minio'}}}}",
            "storage.s3://lab.endpoint_url",
        ),
        (f"storage: {{'s3://me:{SECRET}@lab': {{}}}}", r"storage.\*\*\*"),
        (f"store: s3://AKIA:{SECRET}@lab/x", "store"),
        (f"aws_secret_access_key: {SECRET}\nstoer: x", "aws_secret_access_key"),
    ],
)
def test_a_secret_in_the_config_is_refused_and_not_repeated(write_config: Write, text: str, field: str):
    write_config(f"{text}\n")
    with pytest.raises(ConfigError, match=rf"{field} would hold a secret.*a profile, a key file") as refusal:
        workspace()
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        f"s3://AKIAX:{SECRET}@lab/models",
        f"s3://AKIAX:p@{SECRET}@lab/models",
        f"S3://AKIAX:{SECRET}@lab/models",
        f"https://me:{SECRET.replace('/', '')}@minio/lab",
        f"gs://{SECRET.replace('/', '')}@lab",
        f"gs://lab/x?X-Goog-Signature={SECRET}",
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(text: str):
    for refused in (locate, open_store, lambda text: open_store("memory://m").model(text)):
        with pytest.raises(ConfigError, match="holds credentials|Give the plain address") as refusal:
            refused(text)
        said = str(refusal.value)
        assert not any(piece in said for piece in SECRET.split("/")), said
        assert "AKIAX" not in said


def test_addresses_are_understood_or_refused_with_what_to_write(tmp_path: Path):
    assert parse("gcs://b/a//c/").uri == parse("GS://b/a/c").uri == "gs://b/a/c"
    assert parse(f"file://{tmp_path}").uri == parse(f"FILE://{tmp_path}/").uri == str(tmp_path)
    assert parse("gs://b/a@b:c#d/[x]").key == "a@b:c#d/[x]"
    for text, said in [
        ("gs://", "names no bucket. Write gs://BUCKET/FOLDER"),
        ("gs://b/../c", "mean nothing in a store"),
        ("gs://[b/x?y", "Give the plain address"),
        ("file://", "names no folder"),
        ("", "names no folder"),
    ]:
        with pytest.raises(ConfigError, match=said):
            parse(text)


# credentials


def test_without_google_credentials_it_is_said_how_to_get_some():
    with pytest.raises(
        Denied, match=r"there are no Google credentials .*gcloud auth application-default login"
    ):
        locate("gs://without-credentials/x")


def test_a_google_key_file_that_cannot_be_used_is_named_and_not_shown(
    write_config: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    key_file = tmp_path / "key.json"
    write_config(f"storage: {{gs://keyed: {{credentials_file: {key_file}}}}}\n")
    account = {
        "type": "service_account",
        "client_email": "a@b",
        "token_uri": "http://x",
        "private_key": SECRET,
    }
    for text in (None, SECRET, json.dumps(account), json.dumps(account)[:-1]):
        if text is not None:
            key_file.write_text(text)
        monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
        with pytest.raises(Denied, match=rf"the key file {key_file} cannot be used") as refusal:
            locate("gs://keyed/x")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key_file))
        with pytest.raises(Denied, match="gcloud auth application-default login") as other:
            locate("gs://by-environment/x")
        assert SECRET not in str(refusal.value) + str(other.value)


def test_without_aws_credentials_it_is_said_how_to_give_some(s3_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_url)
    said = r"s3://without-credentials/x: .*credentials.* AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    for attempt in (lambda place: place.stat(), lambda place: place.write_bytes(b"x")):
        with pytest.raises(Denied, match=said):
            attempt(locate("s3://without-credentials/x"))


def test_half_of_an_aws_key_is_refused(s3_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_url)
    with pytest.raises(Denied, match="AWS_ACCESS_KEY_ID") as refusal:
        locate("s3://half-a-key/x").stat()
    assert SECRET not in str(refusal.value)


def test_a_profile_that_is_not_there_is_named(write_config: Write):
    write_config("storage: {s3://profiled: {profile: lab}}\n")
    with pytest.raises(Denied, match=r"no profile 'lab'\. Correct `profile`.*aws configure --profile NAME"):
        locate("s3://profiled/x")


def test_a_profile_gives_the_credentials(
    write_config: Write, s3_url: str, own_folders: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    keys = f"aws_access_key_id = AKIAX\naws_secret_access_key = {SECRET}\n"
    (own_folders / "aws-credentials").write_text(f"[lab]\n{keys}")
    write_config(f"storage: {{s3://tandem-test: {{endpoint_url: '{s3_url}', profile: lab}}}}\n")
    place = locate("s3://tandem-test/by-profile")
    place.write_bytes(b"x")
    assert place.read_bytes() == b"x"


# secrets in the right place


def publish_well_and_in_vain(place: Location, proxy: FaultProxy, folder: Path) -> str:
    """Publishes a model, and then is refused in several ways; all that was said, and the manifest."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "weights").write_bytes(os.urandom(20_000_000))
    store, said = open_store(place.uri), []
    store.publish_model(folder, "m", version="v1")
    store.model("m").fetch().close()
    # It leaves a journal.
    cut = Fault("status", method="PUT", path="/other/.*partNumber=3", status=403, code="AccessDenied")
    proxy.add(cut)
    for attempt in (
        lambda: store.publish_model(folder, "m", version="v1"),
        lambda: store.publish_model(folder, "other"),
        lambda: open_store(f"{place.backend.scheme}://missing-bucket").publish_model(folder, "m"),
    ):
        with pytest.raises(TandemError) as refusal:
            attempt()
        said.append(f"{refusal.value!r} {refusal.value.__cause__!r}")
    assert cut.times == 0
    return "\n".join([*said, (place / "models/m/v1/manifest.json").read_bytes().decode()])


def written(folder: Path) -> str:
    """Every small file below the folder, as text: journals, records, what stores said last."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size < MIB]
    assert any(path.parent.name == "transfers" and '"upload_id"' in path.read_text() for path in files)
    return "\n".join(path.read_text() for path in files)


def test_googles_secrets_get_into_no_message_log_or_file(
    tmp_path: Path, own_folders: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    caplog.set_level(logging.DEBUG)

    def sign_in_with(key_file: Path) -> None:
        options = {"gs://": {"endpoint_url": proxy.url, "credentials_file": str(key_file)}}
        monkeypatch.setenv("TANDEM_STORAGE_OPTIONS", json.dumps(options))

    with gcs_server(require_token=True) as url, FaultProxy(url) as proxy:
        make_gs_bucket(url, "keyed")
        good = service_account_file(tmp_path, url)
        stranger = service_account_file(tmp_path, url, "stranger@tandem.test")
        sign_in_with(good)
        place = locate("gs://keyed/store")
        said = publish_well_and_in_vain(place, proxy, tmp_path / "trained")
        sign_in_with(stranger)
        with pytest.raises(Denied, match="invalid_grant") as refusal:
            open_store("gs://keyed/store").publish_model(tmp_path / "trained", "other")
        said += str(refusal.value)
    # And once the server is gone.
    with patience(0.1), pytest.raises(Unreachable) as refusal:
        place.write_bytes(b"x")
    said += f"{refusal.value} {caplog.text} {written(own_folders)}"
    secrets = [TOKEN, *private_lines(good), *private_lines(stranger)]
    assert len(secrets) > 20
    assert [secret for secret in secrets if secret in said] == []


def private_lines(key_file: Path) -> list[str]:
    lines = json.loads(key_file.read_text())["private_key"].splitlines()
    return [line for line in lines if line and not line.startswith("-----")]


def test_amazons_secrets_get_into_no_message_log_or_file(
    s3_url: str,
    tmp_path: Path,
    own_folders: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    # As `--verbose` has it: what botocore says when it debugs, the session's token too, is never switched on.
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.DEBUG, "tandem")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAX")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", f"{SECRET}-of-the-session")
    with FaultProxy(s3_url) as proxy:
        monkeypatch.setenv("TANDEM_STORAGE_OPTIONS", json.dumps({"s3://": {"endpoint_url": proxy.url}}))
        place = locate(f"s3://tandem-test/{tmp_path.name}")
        said = publish_well_and_in_vain(place, proxy, tmp_path / "trained")
    with patience(0.1), pytest.raises(Unreachable) as refusal:
        place.write_bytes(b"x")
    said += f"{refusal.value} {caplog.text} {written(own_folders)}"
    assert SECRET not in said
