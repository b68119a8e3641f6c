"""Building environments: from nothing, again, interrupted, changed, and with things missing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from tests.environments.conftest import Clone


def version_in(interpreter: Path, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([str(interpreter), "-c", code], capture_output=True, text=True).stdout.strip()


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, f"{path} did not appear"


def test_setup_builds_what_a_cluster_needs_with_byte_code(clone: Clone):
    done = clone.setup()
    assert done.returncode == 0, done.stderr
    assert version_in(clone.interpreter("core"), "idna") == "3.20"
    assert version_in(clone.interpreter("train"), "six") == "1.17.0"
    assert list(clone.interpreter("train").parents[1].glob("lib/*/site-packages/__pycache__/six.*.pyc"))


def test_a_second_setup_changes_nothing_and_says_nothing(clone: Clone):
    clone.setup()
    before = clone.interpreter("core").lstat().st_mtime_ns
    again = clone.setup()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert clone.interpreter("core").lstat().st_mtime_ns == before


def test_changed_pins_build_a_new_environment_beside_the_old_one(clone: Clone):
    clone.setup()
    old = clone.interpreter("train")
    (clone.root / "cluster/pins/train-cpu.txt").write_text("six==1.16.0\n")
    clone.setup()
    assert version_in(clone.interpreter("train"), "six") == "1.16.0"
    assert version_in(old, "six") == "1.17.0"


def test_an_environment_that_is_not_built_is_named_with_its_remedy(clone: Clone):
    done = clone.setup("--print", "train")
    assert done.returncode == 1
    assert "The train environment is not built" in done.stderr and "make setup" in done.stderr


def test_setup_goes_on_after_ctrl_c(clone: Clone):
    builder = subprocess.Popen(clone.command(), cwd=clone.root, env=clone.env(), start_new_session=True)
    wait_for(clone.cache / "environments", builder)
    os.killpg(builder.pid, signal.SIGINT)
    assert builder.wait(30) == 130
    assert clone.setup().returncode == 0
    assert version_in(clone.interpreter("train"), "six") == "1.17.0"


def test_setup_goes_on_after_being_killed_in_the_middle(clone: Clone):
    builder = subprocess.Popen(clone.command("core"), cwd=clone.root, env=clone.env(), start_new_session=True)
    wait_for(clone.cache / "environments", builder)
    while not (found := list(clone.cache.glob("environments/core-*/bin"))):
        assert builder.poll() is None
    os.kill(builder.pid, signal.SIGKILL)
    builder.wait(30)
    assert not (found[0].parent / "complete.json").exists()
    assert clone.setup().returncode == 0
    assert version_in(clone.interpreter("core"), "idna") == "3.20"


def test_two_setups_at_once_build_each_environment_once(clone: Clone):
    builders = [
        subprocess.Popen(
            clone.command("core"), cwd=clone.root, env=clone.env(), stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    output = "".join(builder.communicate(timeout=120)[1] for builder in builders)
    assert [builder.returncode for builder in builders] == [0, 0]
    assert output.count("Building the core environment") == 1


def test_a_package_that_cannot_be_found_is_an_error_with_a_remedy(clone: Clone):
    (clone.root / "cluster/pins/core.txt").write_text("idna==3.20\nuv==0.7.0\nsix==99.99\n")
    done = clone.setup("core")
    assert done.returncode == 1
    assert "The core environment could not be built" in done.stderr and "find-links" in done.stderr


def test_uv_is_installed_into_the_cache_when_it_is_missing(clone: Clone):
    base = Path(getattr(sys, "_base_executable", sys.executable))
    clone.variables = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [str(base), "-m", "cluster.setup", "core"],
        cwd=clone.root,
        env=clone.env(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "uv is not installed" in done.stderr
    assert list(clone.cache.glob("tools/uv-*/bin/uv"))


def test_a_folder_of_wheels_configured_for_pip_is_used(clone: Clone, tmp_path: Path):
    wheels = tmp_path / "wheels"
    write_wheel(wheels, "tandem_wheelhouse_only", "1.5")
    (clone.root / "cluster/pins/train-cpu.txt").write_text("tandem-wheelhouse-only==1.5\n")
    (tmp_path / "pip.conf").write_text(f"[global]\nfind-links = {wheels}\n")
    clone.variables = {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "PIP_FIND_LINKS": ""}
    done = clone.setup("core", "train")
    assert done.returncode == 0, done.stderr
    assert version_in(clone.interpreter("train"), "tandem-wheelhouse-only") == "1.5"


def write_wheel(folder: Path, name: str, version: str) -> None:
    """The smallest wheel there can be."""
    folder.mkdir(parents=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


def test_the_clone_gets_a_view_on_core_and_a_moved_cache_repairs_it(clone: Clone):
    clone.setup("core")
    assert version_in(clone.root / ".venv/bin/python", "idna") == "3.20"
    clone.cache.rename(clone.cache.with_name("moved"))
    assert version_in(clone.root / ".venv/bin/python", "idna") == ""
    clone.cache = clone.cache.with_name("moved")
    (clone.cache / "environments").rename(clone.cache / "old")
    clone.setup("core")
    assert version_in(clone.root / ".venv/bin/python", "idna") == "3.20"


def test_a_venv_that_somebody_else_made_is_left_alone(clone: Clone):
    (clone.root / ".venv").mkdir()
    done = clone.setup("core")
    assert done.returncode == 1 and "is not Tandem's" in done.stderr
    assert list((clone.root / ".venv").iterdir()) == []
