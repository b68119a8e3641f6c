"""Rendering as a whole, and its text: order, quotes, and folders that are ours or left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.kubernetes.manifest_files import read_manifests
from cluster.kubernetes.notes import notes
from cluster.kubernetes.render import APPLY_ORDER, render
from cluster.kubernetes.workloads import Manifest
from cluster.kubernetes.writing import file_names, text_of, write_folder
from runtime.core.errors import ConfigError
from tests.kubernetes.accepted import assert_accepted, only
from tests.kubernetes.specs import A100_GROUP, CPU_GROUP, L4_GROUP, app, job, spec

TRICKY = [
    "y",
    "no",
    "1e3",
    "0o17",
    "017",
    "1:30",
    "null",
    "~",
    "",
    " x",
    "a: b",
    "#",
    "2026-01-01",
    "ä\n\u2028\tz",
    "'\"",
]
"""Strings that some reader of YAML takes for something else."""


def config_map(name: str = "words", **data: str) -> Manifest:
    """A ConfigMap with such data."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def kinds(manifests: list[Manifest]) -> list[str]:
    """The kinds of Ray's objects."""
    return [one["kind"] for one in manifests if one["kind"].startswith("Ray")]


def test_all_of_it_is_accepted_and_in_apply_order():
    found = render(
        spec(node_groups=[L4_GROUP, A100_GROUP, CPU_GROUP], store={"nfs": {"server": "nfs", "path": "/x"}}),
        apps=[app()],
        jobs=[job("sft"), job("dpo")],
        ray_dashboards={"serve": {"title": "Serve"}},
    )
    assert_accepted(found)
    places = [APPLY_ORDER.index(one["kind"]) for one in found]
    assert places == sorted(places)
    assert found[0]["kind"] == "Namespace"
    assert kinds(found) == ["RayService", "RayJob", "RayJob"]
    assert not [one for one in found if one["kind"] == "Secret"]


def test_every_object_has_a_name_of_its_own_and_says_whose_it_is():
    found = render(spec(), apps=[app()], jobs=[job()])
    names = [(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in found]
    assert len(names) == len(set(names))
    for one in found:
        assert one["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "tandem"
        assert one["metadata"]["labels"]["tandem.dev/cluster"] == "lab"


@pytest.mark.parametrize(
    ("training", "apps", "jobs", "expected"),
    [
        ("own", 0, 0, ["RayCluster"]),
        ("own", 1, 0, ["RayService"]),
        ("own", 0, 1, ["RayJob"]),
        ("own", 1, 1, ["RayService", "RayJob"]),
        ("shared", 0, 1, ["RayCluster", "RayJob"]),
        ("shared", 1, 1, ["RayCluster", "RayService", "RayJob"]),
    ],
)
def test_the_cluster_for_all_is_there_where_training_is_shared_or_nothing_else_runs(
    training: str, apps: int, jobs: int, expected: list[str]
):
    given = spec(training={"cluster": training})
    assert kinds(render(given, apps=[app()] * apps, jobs=[job()] * jobs)) == expected


def test_rendering_is_pure():
    first, second = (render(spec(), apps=[app()], jobs=[job()]) for _ in range(2))
    assert text_of(first) == text_of(second)


def test_two_jobs_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="name is 'sft' in two train specs"):
        render(spec(), jobs=[job(), job("dpo"), job()])


def test_a_job_that_finds_no_node_beside_serving_is_told_of():
    (note,) = notes(spec(), apps=[app()], jobs=[job(num_workers=(2, 2))])
    assert "sft needs 2 nodes of group l4, and serving keeps 3 of its 3" in note
    roomy = spec(node_groups=[L4_GROUP | {"count": None, "min": 1, "max": 3}])
    assert notes(roomy, apps=[app()], jobs=[job(num_workers=(2, 2))]) == []
    assert notes(spec(), jobs=[job()]) == []


def test_two_clusters_that_want_the_same_nodes_are_told_of():
    (note,) = notes(spec(training={"cluster": "shared"}), apps=[app()], jobs=[job()])
    assert "node group l4 has 3 nodes" in note
    assert notes(spec(training={"cluster": "shared"}), jobs=[job()]) == []


@pytest.mark.parametrize("how", ["yaml", "json"])
def test_what_is_written_reads_back_as_it_was_by_kubectls_rules(tmp_path: Path, how: Any):
    manifests = [*render(spec(), apps=[app()], jobs=[job()]), config_map(**{w or "empty": w for w in TRICKY})]
    write_folder(manifests, tmp_path / "out", how)
    assert [one.manifest for one in read_manifests([tmp_path / "out"])] == manifests


def test_every_string_is_quoted_so_that_no_reader_takes_it_for_another_type():
    """PyYAML alone writes `y`, `1e3` and `0o17` bare, which kubectl reads as true, 1000 and 15."""
    text = text_of([config_map(**{f"key{at}": word for at, word in enumerate(TRICKY)})])
    values = [token for token in yaml.scan(text) if isinstance(token, yaml.ScalarToken)]
    by_text = {token.value: token.plain for token in values}
    assert {by_text[word] for word in TRICKY} == {False}
    assert by_text["ConfigMap"] is False
    # Keys that nobody mistakes stay as people write them.
    assert by_text["apiVersion"] is True
    odd = dict.fromkeys(["y", "on", "null", "off", "1e3", "007"], "x")
    tokens = [
        token for token in yaml.scan(text_of([config_map(**odd)])) if isinstance(token, yaml.ScalarToken)
    ]
    assert {token.value for token in tokens if not token.plain} >= odd.keys()


def test_numbers_and_truths_stay_what_they_are():
    text = text_of([{"kind": "X", "metadata": {"name": "x"}, "a-number": 8000, "a-truth": True, "none": {}}])
    assert yaml.safe_load(text) == {
        "kind": "X", "metadata": {"name": "x"}, "a-number": 8000, "a-truth": True, "none": {},
    }  # fmt: skip
    assert "8000\n" in text


def test_as_one_text_kubectl_reads_all_objects():
    manifests = render(spec(), apps=[app()])
    assert list(yaml.safe_load_all(text_of(manifests))) == manifests
    assert json.loads(text_of(manifests, "json"))["items"] == manifests


def test_files_are_named_in_apply_order():
    found = file_names([config_map(f"c{at}") for at in range(101)])
    assert found[0] == "001-configmap-c0.yaml"
    assert found == sorted(found)
    assert file_names([only(render(spec()), "RayCluster")], "json") == ["01-raycluster-lab.json"]


def test_a_folder_is_replaced_whole_and_nothing_of_the_last_time_is_left(tmp_path: Path):
    folder = tmp_path / "below" / "manifests"
    write_folder([config_map("a"), config_map("b"), config_map("c")], folder)
    files = write_folder([config_map("c")], folder, "json")
    assert files == [folder / "01-configmap-c.json"]
    assert [path.name for path in folder.iterdir() if not path.name.startswith(".")] == [
        "01-configmap-c.json"
    ]
    assert [path.name for path in folder.parent.iterdir()] == ["manifests"]


def test_a_folder_with_somebodys_file_is_left_alone(tmp_path: Path):
    write_folder([config_map("a")], tmp_path / "out")
    (tmp_path / "out" / "02-configmap-mine.yaml").write_text("mine")
    with pytest.raises(
        ConfigError, match=r"holds 02-configmap-mine\.yaml, which tandem render did not write"
    ):
        write_folder([config_map("b")], tmp_path / "out")
    assert (tmp_path / "out" / "02-configmap-mine.yaml").read_text() == "mine"
    assert (tmp_path / "out" / "01-configmap-a.yaml").exists()
    home = tmp_path / "home"
    (home / "pictures").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds pictures"):
        write_folder([config_map("b")], home)


def test_a_file_that_was_changed_by_hand_is_not_lost(tmp_path: Path):
    (file,) = write_folder([config_map("a")], tmp_path / "out")
    file.write_text(file.read_text() + "# mine\n")
    with pytest.raises(ConfigError, match=r"01-configmap-a\.yaml: was changed since tandem render wrote it"):
        write_folder([config_map("b")], tmp_path / "out")
    assert file.read_text().endswith("# mine\n")


def test_a_folder_that_cannot_be_written_is_said_in_words(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is no folder"):
        write_folder([config_map("a")], tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_folder([config_map("a")], tmp_path / "file" / "below")
