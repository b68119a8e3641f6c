"""What the repository's files say, and what they must not say."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from cluster.environments import PINS

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMPILED = sorted(source.with_suffix(".txt") for source in PINS.glob("*.in"))


def tracked_texts() -> dict[str, str]:
    """Every file that git tracks or would track, and its text."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git clone")
    files = [ROOT / name for name in listed.stdout.splitlines()]
    return {str(file.relative_to(ROOT)): file.read_text(errors="ignore") for file in files if file.is_file()}


def test_the_dependencies_are_those_the_core_environment_is_pinned_from():
    assert PROJECT["dependencies"] == (PINS / "core.in").read_text().split("\n")[:-1]


def test_the_environments_share_one_ray():
    rays = {line for file in COMPILED for line in file.read_text().splitlines() if line.startswith("ray==")}
    assert len(rays) == 1


@pytest.mark.parametrize(
    "file", [file for file in COMPILED if file.stem.endswith("-cuda")], ids=lambda file: file.name
)
def test_the_cuda_sets_have_a_torch_for_gpus(file: Path):
    packages = file.read_text().splitlines()
    assert not [line for line in packages if "+cpu" in line]
    assert [line for line in packages if line.startswith("nvidia-cudnn")]


@pytest.mark.parametrize("file", COMPILED, ids=lambda file: file.name)
def test_compiled_pins_are_exact_and_name_no_place(file: Path):
    allowed = re.compile(r"[a-z0-9.-]+==[A-Za-z0-9.+!]+( ; .+)?")
    assert [line for line in file.read_text().splitlines() if not allowed.fullmatch(line)] == []


def test_no_file_names_a_package_index_or_a_folder_of_one_machine():
    # Written in pieces so that this file does not find itself.
    unwanted = [
        "pypi" + r"\.org",
        "pythonhosted" + r"\.org",
        "download" + r"\.pytorch",
        "/opt" + "/",
        "/ro" + "ot/",
    ]
    pattern = re.compile("|".join(unwanted) + "|/home" + r"/\w+/")
    found = {name: match.group() for name, text in tracked_texts().items() if (match := pattern.search(text))}
    assert found == {}
