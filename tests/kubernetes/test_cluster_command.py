"""``tandem cluster`` from spec files to a cluster and back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, wait_for
from tests.kubernetes.running import PLACE, condition, observed
from tests.servers.kubernetes_api import Cluster

CLUSTER = """
name: lab
namespace: tandem-lab
image: registry.example.com/team/tandem:0.1.0
node_groups: [{name: l4, accelerator_type: NVIDIA-L4, gpus: 1, cpus: 7, memory: 28GiB, count: 3}]
store: {nfs: {server: 10.0.0.9, path: /export}}
monitoring: {enabled: false}
"""
SERVE = "{name: qwen, model: qwen3-4b/v1, auth: keys}\n"


class Command:
    """The command line on a stand-in, with both spec files."""

    def __init__(self, api: Cluster, folder: Path) -> None:
        self.api, self.folder = api, folder
        (folder / "cluster.yaml").write_text(CLUSTER, encoding="utf-8")
        (folder / "serve.yaml").write_text(SERVE, encoding="utf-8")
        self.environment = os.environ | {
            "KUBECONFIG": str(api.kubeconfig(folder / "kubeconfig")),
            "TANDEM_HOME": str(folder / "home"),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }

    def start(self, *args: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "runtime", "cluster", *args]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def __call__(self, *args: str, answer: str = "") -> tuple[int, str]:
        process = self.start(*args)
        output, _ = process.communicate(answer, timeout=120)
        return process.returncode, output


@pytest.fixture
def command(kubernetes_api: Cluster, tmp_path: Path) -> Command:
    return Command(kubernetes_api, tmp_path)


def test_a_cluster_is_applied_looked_at_and_deleted(command: Command) -> None:
    files = ("cluster.yaml", "serve.yaml")
    code, output = command("diff", *files)
    assert code == 1 and "RayService lab-serve: new" in output

    code, output = command("apply", *files, "--no-wait", "--no-preflight")
    assert code == 0 and "RayService lab-serve created" in output and "made Ray's token" in output
    code, output = command("diff", *files)
    assert (code, output) == (0, "Nothing differs.\n")

    code, output = command("delete", "cluster.yaml", answer="n\n")
    assert code == 1 and "RayService lab-serve" in output
    assert command.api.names("RayService") == ["lab-serve"]
    code, output = command("delete", "cluster.yaml", "--yes", "--namespace")
    assert code == 0 and "lab is gone. Its store is not: /mnt/tandem/store" in output
    assert PLACE not in command.api.names("Namespace")


def test_apps_whose_spec_is_not_given_are_named_as_running_and_no_advice_ends_them(command: Command) -> None:
    plain = ("--no-wait", "--no-preflight")
    assert command("apply", "cluster.yaml", "serve.yaml", *plain)[0] == 0
    code, output = command("diff", "cluster.yaml")
    assert "RayService" not in output
    code, output = command("apply", "cluster.yaml", *plain)
    assert code == 0 and "--prune" not in output
    assert "Left running, for their specs were not given: RayService lab-serve, " in output
    code, output = command("apply", "cluster.yaml", "--prune", *plain)
    assert code == 0 and "--prune-running ends it, too" in output
    assert command.api.names("RayService") == ["lab-serve"]
    code, output = command("apply", "cluster.yaml", "--prune-running", *plain)
    assert code == 0 and "Deleted: RayService lab-serve" in output
    assert command.api.names("RayService") == []


def test_nothing_is_applied_where_preflight_finds_what_cannot_work(command: Command) -> None:
    code, output = command("apply", "cluster.yaml", "serve.yaml", "--no-wait")
    assert code == 1
    assert "nothing was applied" in output and "--no-preflight" in output
    assert command.api.names("RayService") == command.api.names("ConfigMap") == []


def test_rendered_manifests_come_with_a_note_how_to_make_the_token_that_they_only_name(
    command: Command,
) -> None:
    def rendered(*changes: str) -> tuple[int, str]:
        file = command.folder / "rendered.yaml"
        file.write_text("\n".join([CLUSTER, *changes]), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "runtime", "render", str(file), "--out", "manifests"],
            cwd=command.folder, env=command.environment, text=True, capture_output=True,
        )  # fmt: skip
        return done.returncode, done.stderr

    code, note = rendered()
    makes_it = 'create secret generic lab-ray-token --from-literal=auth_token="$(openssl rand -hex 32)"'
    assert code == 0 and f"kubectl -n tandem-lab {makes_it}" in note
    assert "generic mine --from" in rendered("auth: {secret: mine}")[1]
    assert rendered("auth: {mode: none}") == (0, "")


def test_ctrl_c_while_waiting_leaves_everything_running_and_says_so(command: Command) -> None:
    process = command.start("apply", "cluster.yaml", "serve.yaml", "--no-preflight")
    wait_for(lambda: command.api.asked("GET", "rayservices/lab-serve") > 3, "it waits", 60)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Everything is applied and goes on starting" in output
    assert command.api.names("RayService") == ["lab-serve"]


def test_apply_returns_once_the_service_is_ready(command: Command) -> None:
    process = command.start("apply", "cluster.yaml", "serve.yaml", "--no-preflight")
    wait_for(lambda: "lab-serve" in command.api.names("RayService"), "the service", 60)
    command.api.set_status("PersistentVolumeClaim", "lab-store", {"phase": "Bound"}, namespace=PLACE)
    observed(command.api, "RayService", "lab-serve", conditions=[condition("Ready")])
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output.endswith("Ready. Reach it: tandem cluster connect cluster.yaml\n")


def test_a_wait_that_takes_too_long_names_what_is_missing(command: Command) -> None:
    code, output = command("apply", "cluster.yaml", "serve.yaml", "--no-preflight", "--timeout", "0s")
    assert code == 1
    assert "RayService lab-serve: KubeRay has not looked at it yet" in output


def test_without_a_cluster_the_error_says_what_to_check(command: Command) -> None:
    command.environment["KUBECONFIG"] = str(command.folder / "nothing")
    code, output = command("status", "cluster.yaml")
    assert code == 1 and "cannot use a kubeconfig" in output and "Traceback" not in output
