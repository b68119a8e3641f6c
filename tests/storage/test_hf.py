"""``hf://``: models of the Hugging Face Hub, from a small Hub of our own, and without a network.

huggingface_hub reads its variables when it is imported, so each test asks in a process of its own.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.conftest import ROOT

COMMIT, OTHER_COMMIT = "a" * 40, "b" * 40
FILES = {
    "config.json": b'{"num_attention_heads": 8}',
    "weights.safetensors": os.urandom(100_000),
    "sub/x": b"x",
}
SCRIPT = """
import json
from runtime.core.errors import TandemError
from storage.location import locate
from storage.patience import patience
from storage.store import open_store

def refusal(action):
    try:
        action()
    except TandemError as error:
        return f"{type(error).__name__}: {error}"
    return "no refusal"

def names(text):
    place = locate(text)
    return [place.relative(entry) for entry in place.find()]

def model(ref):
    return open_store("memory://store").model(ref)

said = {}
"""
LONG_S = 30.0
"""Patience where a Hub answers: the machine may be busy."""
SHORT_S = 1.0
"""Patience where none does."""


@pytest.fixture
def hf_home(tmp_path: Path) -> Path:
    return tmp_path / "hf"


def ask(hf_home: Path, lines: str, *, patience_s: float = SHORT_S, **variables: str) -> dict[str, Any]:
    """What a process says that runs ``lines`` with these variables."""
    indented = "".join(f"    {line}\n" for line in lines.strip().splitlines())
    script = f"{SCRIPT}with patience({patience_s}):\n{indented}print(json.dumps(said))\n"
    environment = (
        os.environ | {"HF_HOME": str(hf_home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"} | variables
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def lay_into_cache(hf_home: Path, commit: str = COMMIT, ref: str = "main") -> None:
    """As the Hub's client leaves a model that it has downloaded."""
    model = hf_home / "hub" / "models--org--name"
    (model / "refs").mkdir(parents=True, exist_ok=True)
    (model / "refs" / ref).write_text(commit)
    for name, data in FILES.items():
        blob, link = model / "blobs" / hashlib.sha1(data).hexdigest(), model / "snapshots" / commit / name
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link.symlink_to(os.path.relpath(blob, link.parent))


class Hub(ThreadingHTTPServer):
    """As much of the Hub as its client asks for when it brings a model."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.downloads: list[str] = []


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        status, headers, body = self._answer(
            [unquote(part) for part in urlsplit(self.path).path.split("/")[1:]]
        )
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def _answer(self, path: list[str]) -> tuple[int, dict[str, str], bytes]:
        match path:
            case ["api", "models", "org", "name", *rest]:
                if rest and rest[-1] not in ("main", COMMIT):
                    return 404, {"X-Error-Code": "RevisionNotFound"}, b""
                about = {"id": "org/name", "sha": COMMIT, "lastModified": "2026-01-01T00:00:00.000Z"}
                siblings = [
                    {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
                    for name, data in FILES.items()
                ]
                text = json.dumps({**about, "siblings": siblings})
                return 200, {"Content-Type": "application/json"}, text.encode()
            case ["org", "name", "resolve", _, *parts]:
                name = "/".join(parts)
                if self.command == "GET":
                    self.server.downloads.append(name)
                etag = hashlib.sha1(FILES[name]).hexdigest()
                return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, FILES[name]
            case ["api", "models", "org", "gated", *_]:
                return 403, {"X-Error-Code": "GatedRepo"}, b""
            case ["api", "models", "org", "overloaded", *_]:
                return 503, {}, b""
        return 404, {"X-Error-Code": "RepoNotFound"}, b""

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hub that has ``org/name``, and some that cannot be had."""
    with Hub() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


FETCHED = """
with model("hf://org/name").fetch() as folder:
    said["fetched"] = sorted(str(p.relative_to(folder.path)) for p in folder.path.rglob("*") if p.is_file())
    said["weights"] = (folder.path / "weights.safetensors").read_bytes().hex()
    said["config"] = model("hf://org/name").config()
"""


def test_a_model_is_listed_and_fetched_from_the_hub_once(hub: Hub, hf_home: Path):
    lines = (
        'said["names"] = names("hf://org/name")\nsaid["below"] = names("hf://org/name@main/sub")' + FETCHED
    )
    expected = {
        "names": sorted(FILES),
        "below": ["x"],
        "fetched": sorted(FILES),
        "weights": FILES["weights.safetensors"].hex(),
        "config": {"num_attention_heads": 8},
    }
    assert ask(hf_home, lines, patience_s=LONG_S, HF_ENDPOINT=hub.url) == expected
    assert sorted(hub.downloads) == sorted(FILES)
    # From now on the network may fail.
    assert ask(hf_home, lines, HF_ENDPOINT="http://127.0.0.1:9") == expected
    assert ask(hf_home, lines, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1") == expected
    assert sorted(hub.downloads) == sorted(FILES)


def test_what_the_hub_refuses_is_said_with_a_remedy_and_without_the_token(hub: Hub, hf_home: Path):
    lines = """
said["missing"] = refusal(lambda: model("hf://org/misspelt"))
said["revision"] = refusal(lambda: model("hf://org/name@v9"))
said["gated"] = refusal(lambda: model("hf://org/gated"))
with patience(1):
    said["overloaded"] = refusal(lambda: model("hf://org/overloaded"))
"""
    said = ask(hf_home, lines, patience_s=LONG_S, HF_ENDPOINT=hub.url, HF_TOKEN="hf_secretsecretsecret")
    assert said["missing"].startswith(
        "NotFound: hf://org/misspelt: the Hub has no such model, or it is private"
    )
    assert "no such revision. Correct what follows @" in said["revision"]
    assert said["gated"].startswith("Denied: hf://org/gated: the model is gated. Set HF_TOKEN")
    assert (
        said["overloaded"].startswith("Unreachable: ") and "the Hub answered 503 (tried" in said["overloaded"]
    )
    assert "hf_secret" not in json.dumps(said)


@pytest.mark.parametrize("variables", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_without_a_network_and_without_the_model_it_is_said_what_to_do(
    hf_home: Path, variables: dict[str, str]
):
    lines = """
said["model"] = refusal(lambda: model("hf://org/name"))
said["names"] = refusal(lambda: names("hf://org/name"))
"""
    said = ask(hf_home, lines, **variables)
    for refusal in said.values():
        assert refusal.startswith(
            "Unreachable: hf://org/name: the Hub cannot be reached (or HF_HUB_OFFLINE is set)"
        )
        assert "Download it once where there is a network, or copy it into the store" in refusal


def test_a_model_in_the_hubs_cache_is_found_and_linked_without_a_network(hf_home: Path):
    lay_into_cache(hf_home)
    lay_into_cache(hf_home, OTHER_COMMIT, "v2")
    lines = f"""
said["names"] = [names(f"hf://org/name{{revision}}") for revision in ("", "@main", "@v2", "@{COMMIT}")]
said["listed"] = locate("hf://org/name").names()[0]
said["nothing"] = [locate("hf://org/name/nothing").stat(), names("hf://org/name/nothing")]
said["revision"] = refusal(lambda: names("hf://org/name@v9"))
said["written"] = refusal(lambda: locate("hf://org/name/new").write_bytes(b"x"))
said["deleted"] = refusal(locate("hf://org/name/config.json").delete)
said["store"] = refusal(lambda: open_store("hf://org/name"))
with model("hf://org/name").fetch() as folder:
    said["links"] = sum(p.stat().st_nlink > 2 for p in folder.path.rglob("*") if p.is_file())
"""
    said = ask(hf_home, lines + FETCHED, HF_HUB_OFFLINE="1")
    assert said["names"] == [sorted(FILES)] * 4
    assert (said["listed"], said["nothing"]) == (["sub"], [None, []])
    assert said["fetched"] == sorted(FILES) and bytes.fromhex(said["weights"]) == FILES["weights.safetensors"]
    # In the Hub's cache, in ours, and in the folder: one file.
    assert said["links"] == len(FILES)
    assert said["revision"].startswith("Unreachable: hf://org/name@v9")
    for refused in (said["written"], said["deleted"]):
        assert "the Hub is only read here. To publish there, use `hf upload`" in refused
    assert said["store"].startswith(
        "ConfigError: the store is 'hf://org/name', but the Hub is only read here"
    )
