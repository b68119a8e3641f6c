"""Ray's folder: below TANDEM_HOME where its sockets' paths fit there, else a short one."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import local
from cluster.haproxy import FOLDER_BYTES
from cluster.ray_start import haproxy_dir, ray_temp_dir
from cluster.rest import cluster_resources

SESSION = "session_2026-11-27_03-17-30_023464_4194304"
"""As Ray names it, with the largest process id that Linux gives."""


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a shorter path than pytest's own, for temporary files too."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def home_of(length: int, below: Path) -> Path:
    """A folder whose path has ``length`` characters."""
    return below / ("h" * (length - len(str(below)) - 1))


def longest_socket() -> str:
    """The longest path below Ray's folder, from the names of the dashboard's parts in this Ray."""
    from ray.dashboard.subprocesses.module import SubprocessModule
    from ray.dashboard.utils import get_all_modules

    names = [f"dash_{module.__name__}" for module in get_all_modules(SubprocessModule)]
    return max((f"{SESSION}/sockets/{name}" for name in [*names, "plasma_store", "raylet"]), key=len)


def longest_home_with_its_own(short: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The longest TANDEM_HOME that holds Ray's folder."""
    own = []
    for length in range(len(str(short)) + 2, 107):
        monkeypatch.setenv("TANDEM_HOME", str(home_of(length, short)))
        if ray_temp_dir() == home_of(length, short) / "ray":
            own.append(home_of(length, short))
    return own[-1]


def test_a_path_of_any_length_leaves_room_for_every_socket(short: Path, monkeypatch: pytest.MonkeyPatch):
    socket = longest_socket()
    for length in range(len(str(short)) + 2, 107):
        monkeypatch.setenv("TANDEM_HOME", str(home_of(length, short)))
        assert len(os.fsencode(ray_temp_dir() / socket)) <= 107, length


def test_letters_of_several_bytes_count_as_such(short: Path, monkeypatch: pytest.MonkeyPatch):
    longest = longest_home_with_its_own(short, monkeypatch)
    name = longest.name
    monkeypatch.setenv("TANDEM_HOME", str(longest.with_name("é" * len(name))))
    assert ray_temp_dir().name.startswith("tandem-")


def test_a_long_folder_for_temporary_files_is_not_used(short: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TANDEM_HOME", str(home_of(90, short)))
    monkeypatch.setattr(tempfile, "tempdir", str(home_of(60, short)))
    folder = ray_temp_dir()
    try:
        assert folder.parent == Path("/tmp")
        assert len(os.fsencode(haproxy_dir(folder))) <= FOLDER_BYTES
    finally:
        folder.rmdir()


@pytest.mark.engine
def test_ray_starts_in_the_longest_home_that_keeps_its_folder(short: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TANDEM_HOME", str(longest_home_with_its_own(short, monkeypatch)))
    try:
        cluster = local.up(local.LocalClusterSpec(num_cpus=1, num_gpus=0, dashboard_port=0, http_port=0))
        assert Path(cluster.temp_dir).is_relative_to(os.environ["TANDEM_HOME"])
        assert cluster_resources(cluster.dashboard_url)["CPU"] == 1
    finally:
        local.down()
