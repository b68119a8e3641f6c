"""The token's file is its owner's alone, or is refused: who has the token runs any code on the cluster."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.auth import make_token, read_token
from cluster.plain.join import JoinSpec, join
from cluster.processes import free_port
from runtime.core.errors import ConfigError


@pytest.fixture
def nobody() -> Iterator[int]:
    """The rights of an account that owns nothing, until the test ends; needs root."""
    if os.geteuid():
        pytest.skip("only root may act as another account")
    os.seteuid(65534)
    yield 65534
    os.seteuid(0)


@pytest.fixture
def roots_token() -> Iterator[Path]:
    """A token of root's that others may not read, in a folder where they may look."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        make_token(Path(folder) / "token")
        yield Path(folder) / "token"


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o602])
def test_a_token_that_others_may_read_or_write_is_refused(tmp_path: Path, own_home: Path, mode: int):
    file = tmp_path / "my token"
    make_token(file)
    file.chmod(mode)
    refused = rf"--token-file is .*mode {mode:03o}.*Run: chmod 600 '.*my token'"
    with pytest.raises(ConfigError, match=refused):
        make_token(file)
    with pytest.raises(ConfigError, match=refused):
        join(JoinSpec(address="127.0.0.1:6379", metrics_port=free_port(), token_file=file))
    file.chmod(0o600)
    assert read_token(file, field="--token-file") == file.read_text()


def test_another_accounts_token_is_refused_and_root_may_read_it(roots_token: Path, nobody: int):
    with pytest.raises(ConfigError, match=rf"belongs to another user \(uid 0, we are {nobody}\)"):
        read_token(roots_token, field="--token-file")
    os.seteuid(0)
    os.chown(roots_token, nobody, -1)
    assert read_token(roots_token, field="--token-file")


def test_a_file_that_cannot_be_made_is_told_with_its_option():
    with pytest.raises(ConfigError, match=r"--token-file is /proc/nope/tok, which cannot be made \(No such"):
        make_token(Path("/proc/nope/tok"))
