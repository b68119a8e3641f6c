"""``tandem up --head`` and ``--join`` as a person types them: what they print, and what they refuse."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cluster.plain.state import PlainNode
from runtime.cli import main

RunningNode = Callable[..., PlainNode]


@pytest.fixture(autouse=True)
def _no_store_of_the_users(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TANDEM_STORE")


def up(*words: str) -> Result:
    return CliRunner().invoke(main, ["up", *words])


def test_the_line_for_the_others_has_the_heads_port_and_a_shell_reads_it(running_node: RunningNode):
    running_node(dashboard_url="http://10.0.0.1:8266", token_file="/tmp/my home/ray-token")
    lines = dict(line.split(maxsplit=1) for line in up("--head").stdout.splitlines())
    assert shlex.split(lines["Join"]) == [
        *("tandem", "up", "--join", "10.0.0.1:6379", "--dashboard-port", "8266"),
        *("--token-file", "/tmp/my home/ray-token"),
    ]
    assert shlex.split(lines["Token"])[-1] == "RAY_AUTH_TOKEN_PATH=/tmp/my home/ray-token"


def test_the_line_for_the_others_says_no_more_than_it_must(running_node: RunningNode):
    running_node()
    assert "Join       tandem up --join 10.0.0.1:6379\n" in up("--head").stdout


def test_a_second_head_says_which_options_change_nothing(running_node: RunningNode, tmp_path: Path):
    running_node()
    assert up("--head", "--store", "/elsewhere").stderr == ""
    said = up("--head", "--monitoring", "--http-port", "9999")
    assert said.exit_code == 0
    assert "--http-port, --monitoring change nothing. First: tandem down" in said.stderr
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "name: other\nnode_groups: [{name: small, count: 1, cpus: 1, memory: 1GiB}]\nstore: {uri: gs://b/s}\n"
    )
    assert "CLUSTER change nothing" in up("--head", str(file)).stderr


def test_a_second_join_says_which_options_change_nothing(running_node: RunningNode):
    running_node(role="joined", dashboard_url="http://10.0.0.1:8266")
    printed = ["--join", "10.0.0.1:6379", "--dashboard-port", "8266", "--token-file", "/t"]
    assert up(*printed).stderr == ""
    assert "--num-cpus change nothing. First: tandem down" in up(*printed, "--num-cpus", "3").stderr


def test_any_free_port_is_for_the_local_cluster(own_home: Path):
    for words in (["--head"], ["--join", "10.0.0.1:6379"]):
        said = up(*words, "--dashboard-port", "0")
        assert said.exit_code == 2
        assert "--dashboard-port: 0 takes any free port, which only the local cluster does" in said.stderr


def test_a_home_that_cannot_be_made_is_told_with_its_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TANDEM_HOME", "/dev/null/x")
    said = up("--head")
    assert said.exit_code == 1
    assert "/dev/null/x cannot be used (Not a directory). TANDEM_HOME says where: /dev/null/x" in said.stderr
