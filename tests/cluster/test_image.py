"""The image's recipe agrees with the code: what it copies is there, what it sets is what is read."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from cluster.code import PACKAGES
from cluster.environments import SHIPPED, interpreter, process_env
from cluster.haproxy import IMAGE_LAUNCHER, launcher, pod_haproxy_env
from cluster.kubernetes.render import render
from tests.conftest import ROOT
from tests.kubernetes.accepted import pod_templates
from tests.kubernetes.specs import A100_GROUP, app, job, spec

DOCKERFILE = (ROOT / "cluster" / "images" / "Dockerfile").read_text()


def test_it_holds_all_our_code_and_the_build_context_lets_it_through():
    copied = dict(re.findall(r"^COPY (\w+) (\S+)$", DOCKERFILE, re.MULTILINE))
    assert copied == {package: f"/srv/tandem/code/{package}" for package in PACKAGES}
    assert "PYTHONPATH=/srv/tandem/code " in DOCKERFILE
    let_through = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in let_through if line.startswith("!")} == set(PACKAGES)


def test_it_names_every_environments_interpreter():
    for name in SHIPPED:
        variable = f"TANDEM_PYTHON_{name.upper()}"
        assert f"{variable}=/srv/tandem/environments/{name}/bin/python" in DOCKERFILE


def test_it_runs_as_nobodys_root_and_has_what_the_operator_probes_with():
    last_user = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)[-1]
    assert last_user == "1000:1000"
    (installed,) = re.findall(r"apt-get install -y --no-install-recommends (.*) \\", DOCKERFILE)
    assert {"bash", "wget"} <= set(installed.split())


def test_the_driver_is_found_where_gkes_device_plugin_mounts_it():
    """GKE has no runtime of NVIDIA's, which elsewhere puts the driver's libraries where the linker looks."""
    (given,) = re.findall(r"LD_LIBRARY_PATH=(\S+)", DOCKERFILE)
    folders, _, more = given.partition("$")
    assert folders == "/usr/local/nvidia/lib:/usr/local/nvidia/lib64"
    # What a BASE has of its own stays, and without one there is no empty part.
    assert more == "{LD_LIBRARY_PATH:+:${LD_LIBRARY_PATH}}"
    assert "PATH=${PATH}:/usr/local/nvidia/bin\n" in DOCKERFILE
    (login,) = re.findall(r"echo 'export PATH=(.*)'", DOCKERFILE)
    assert login.endswith(":$PATH:/usr/local/nvidia/bin")


def test_no_pod_has_a_search_path_that_would_replace_the_images():
    for training in ("own", "shared", "serving"):
        found = spec(node_groups=[A100_GROUP], training={"cluster": training})
        for _, _, template in pod_templates(render(found, apps=[app()], jobs=[job()])):
            variables = [one for each in template["spec"]["containers"] for one in each.get("env", ())]
            assert not {"LD_LIBRARY_PATH", "PATH"} & {one["name"] for one in variables}


def test_a_process_of_an_environment_loads_what_lies_on_the_search_path(tmp_path: Path):
    """As Ray and our launchers start it: its own variables on top of those that are there."""
    maps = Path("/proc/self/maps").read_text()
    (libm, *_) = re.findall(r"\S+/libm\.so\S*", maps)
    shutil.copy(libm, tmp_path / "libtandem-driver.so.1")
    for name in SHIPPED:
        assert "LD_LIBRARY_PATH" not in process_env(name)
    loaded = subprocess.run(
        [interpreter("core"), "-c", "import ctypes; print(ctypes.CDLL('libtandem-driver.so.1').cos)"],
        env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path)} | process_env("core"),
        capture_output=True, text=True,
    )  # fmt: skip
    assert loaded.returncode == 0, loaded.stderr


def test_the_launcher_that_it_writes_starts_haproxy(tmp_path: Path):
    assert "launcher(IMAGE_LAUNCHER.parent)" in DOCKERFILE
    assert pod_haproxy_env()["RAY_SERVE_HAPROXY_BINARY_PATH"] == str(IMAGE_LAUNCHER)
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "defaults\n    mode http\n    timeout client 1s\nfrontend one\n    bind 127.0.0.1:65000\n"
    )
    checked = subprocess.run([launcher(tmp_path), "-c", "-f", config], capture_output=True, text=True)
    assert (checked.returncode, "Configuration file is valid" in checked.stdout + checked.stderr) == (
        0,
        True,
    ), checked


def test_an_environment_is_found_through_a_link_whose_name_has_no_hash(tmp_path: Path):
    link = tmp_path / "core"
    link.symlink_to(interpreter("core").parent.parent)
    prefix = subprocess.run(
        [link / "bin" / "python", "-c", "import sys, ray; print(sys.prefix, ray.__version__)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert prefix.stdout.split()[1] == "2.60.0"
