"""Start the stand-in servers, make buckets and credentials: plain helpers for tests and for fixtures."""

from __future__ import annotations

import json
import secrets
import selectors
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.servers.gcs import EMAIL, TOKEN

ROOT = Path(__file__).resolve().parents[2]
_START_S = 30.0
_STOP_S = 5.0


@contextmanager
def gcs_server(require_token: bool = False) -> Iterator[str]:
    """A Google Cloud Storage stand-in without buckets; yields its URL.

    Args:
        require_token: Refuse who does not show the token of ``service_account_file``'s account.
    """
    with _server("tests.servers.gcs", *(["--require-token"] if require_token else [])) as url:
        yield url


@contextmanager
def s3_server() -> Iterator[str]:
    """An S3 server (moto) without buckets; yields its URL. Any access key is good."""
    with _server("tests.servers.s3") as url:
        yield url


def make_gs_bucket(url: str, name: str) -> None:
    """A bucket on ``gcs_server``; also where it requires a token."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = requests.post(f"{url}/storage/v1/b", json={"name": name}, headers=headers, timeout=_START_S)
    answer.raise_for_status()


def make_s3_bucket(url: str, name: str) -> None:
    """A bucket on ``s3_server``."""
    client = boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    client.create_bucket(Bucket=name)


def service_account_file(folder: Path, url: str, email: str = EMAIL) -> Path:
    """A service account's key file, with a fresh key, for the server at ``url``.

    Args:
        folder: Where to write it.
        url: Whose ``/token`` gives the tokens.
        email: Whom it is for; every other than the default gets no token.
    """
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {
        "type": "service_account",
        "project_id": "tandem-test",
        "private_key_id": secrets.token_hex(20),
        "private_key": pem.decode(),
        "client_email": email,
        "client_id": "100000000000000000000",
        "token_uri": f"{url}/token",
    }
    file = folder / f"{email.partition('@')[0]}-{secrets.token_hex(4)}.json"
    file.write_text(json.dumps(account))
    return file


@contextmanager
def _server(module: str, *arguments: str) -> Iterator[str]:
    """Starts a server and waits for its URL; in the end closes its standard input, which ends it."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, "--port", "0", *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin and process.stdout
    try:
        yield _first_line(process, module)
    finally:
        process.stdin.close()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _first_line(process: subprocess.Popen[bytes], module: str) -> str:
    assert process.stdout
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        line = process.stdout.readline().decode().strip() if selector.select(_START_S) else ""
    if not line:
        ended = process.poll()
        raise RuntimeError(
            f"{module} printed no URL within {_START_S:.0f} s (exit code {ended}). Run it by hand: "
            f"{sys.executable} -m {module}"
        )
    return line
