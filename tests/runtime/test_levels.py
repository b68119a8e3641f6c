"""The layouts of the levels: their three files go together, and fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from cluster.cluster_spec import ClusterSpec
from cluster.placement import Free, Placement, Request, place
from runtime.cli_level import level
from runtime.core.config import load_spec, parse_spec
from runtime.core.errors import ConfigError
from runtime.levels import LEVELS, Layout, files
from serve_apps.spec import ServeSpec
from train_jobs.spec import TrainSpec

LAYOUTS = [
    Layout(0, gpu="NVIDIA-RTX-A4000"),
    Layout(1, gpu="A100-SXM4-80GB", gpus=4),
    Layout(1, gpu="L4", gpus=7),
    Layout(2, gpu="NVIDIA-L4", gpus=4, nodes=3, store="gs://team/tandem"),
    Layout(2, gpu="H100", gpus=8, nodes=2, store="nas.example.com:/exports/tandem"),
]


def specs(layout: Layout) -> tuple[ClusterSpec, TrainSpec, ServeSpec]:
    found = {name: yaml.safe_load(text) for name, text in files(layout).items()}
    return (
        load_spec(ClusterSpec, found["cluster.yaml"]),
        load_spec(TrainSpec, found["train.yaml"]),
        load_spec(ServeSpec, found["serve.yaml"]),
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: f"{one.level}-{one.gpu}")
def test_the_training_and_the_app_of_a_level_fit_beside_each_other(layout: Layout):
    cluster, train, serve = specs(layout)
    always = [node for group in cluster.node_groups for node in group.inventory_nodes()[: group.min_nodes]]
    free = Free.of(cluster.inventory().of(always))
    assert serve.resources.gpus is not None
    app = Request(
        "app",
        "serve",
        groups=serve.autoscaling.min_replicas,
        workers_per_group=serve.engine.get("tensor_parallel_size", 1),
        gpus_per_worker=serve.resources.gpus,
    )
    served = place(free, app)
    assert isinstance(served, Placement), served
    gpus_per_worker = train.scaling.gpus_per_worker
    assert gpus_per_worker is not None
    run = Request(
        "run", "train", workers_per_group=train.scaling.max_workers, gpus_per_worker=gpus_per_worker
    )
    assert isinstance(place(free.taken(served), run), Placement)


def test_level_0_shares_one_card_and_level_1_splits_a_node():
    _, train, serve = specs(LAYOUTS[0])
    assert (train.scaling.gpus_per_worker, serve.resources.gpus) == (0.5, 0.5)
    _, train, serve = specs(LAYOUTS[1])
    assert (train.scaling.num_workers, serve.engine["tensor_parallel_size"]) == (2, 2)
    # Three of seven would divide no model's heads.
    _, train, serve = specs(LAYOUTS[2])
    assert (train.scaling.num_workers, serve.engine["tensor_parallel_size"]) == (5, 2)


def test_level_2_grows_spreads_and_has_a_load_balancer():
    cluster, train, serve = specs(LAYOUTS[3])
    assert cluster.endpoint.kind == "LoadBalancer"
    training, replicas = cluster.node_groups
    assert (training.name, training.count) == ("training", 1)
    assert (replicas.name, replicas.min, replicas.max) == ("replicas", 2, 5)
    assert training.accelerator_type == replicas.accelerator_type == "NVIDIA-L4"
    assert (serve.autoscaling.min_replicas, serve.autoscaling.max_replicas) == (2, 5)
    assert train.deepspeed == "zero3"


@pytest.mark.parametrize("uri", ["gs://team/tandem", "s3://team/tandem"])
def test_a_bucket_comes_with_the_ways_to_reach_it_each_a_line_to_choose(tmp_path: Path, uri: str):
    done = CliRunner().invoke(level, ["2", "--store", uri, "-o", str(tmp_path)])
    assert done.exit_code == 0 and "names no credentials for the bucket" in done.output
    lines = (tmp_path / "cluster.yaml").read_text().splitlines()
    at = lines.index(f"  uri: {uri}")
    ways = [index for index in (at + 2, at + 3) if lines[index].startswith("  # ")]
    assert len(ways) == 2
    for way in ways:
        chosen = [line.replace("  # ", "  ", 1) if index == way else line for index, line in enumerate(lines)]
        if "service_account:" in lines[way]:
            chosen.insert(0, "provider: gke")
        assert (
            len(parse_spec(ClusterSpec, "\n".join(chosen), origin="cluster.yaml").store.model_fields_set) == 2
        )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gpu": "L5"}, "--gpu is 'L5'"),
        ({"level": 1, "gpus": 1}, "--gpus is 1"),
        ({"cpus": 3}, "--cpus is 3"),
        ({"level": 2, "store": None}, "--store is missing"),
        ({"level": 2, "store": "nas:exports"}, "--store is 'nas:exports'"),
        ({"level": 2, "store": "gs://a/b", "nodes": 1}, "--nodes is 1"),
        ({"level": 2, "store": "az://a/b"}, "--store is 'az://a/b', where pods can have no store"),
        ({"level": 2, "store": "s3://"}, "--store is 's3://', which names no bucket"),
        ({"name": "My Lab"}, "name: is 'My Lab'"),
        ({"image": "no image: at all"}, "image: is 'no image: at all'"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(changes: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        files(Layout(**({"level": 0} | changes)))


def test_names_that_yaml_would_read_as_something_else_stay_what_they_are():
    _, train, serve = specs(Layout(0, model="hf://x/y #1", dataset="on"))
    assert (train.model, serve.model, train.dataset) == ("hf://x/y #1", "hf://x/y #1", "on")


def test_a_folder_that_cannot_be_written_is_refused_in_words():
    done = CliRunner().invoke(level, ["0", "-o", "/dev/null"])
    assert isinstance(done.exception, SystemExit | ConfigError)
    done = CliRunner().invoke(level, ["0", "-o", "/proc/nothing"])
    assert isinstance(done.exception, ConfigError)
    assert "cannot be written to" in str(done.exception)


def test_the_command_writes_three_files_and_replaces_none(tmp_path: Path):
    done = CliRunner().invoke(level, ["1", "--gpu", "A100-SXM4-80GB", "-o", str(tmp_path / "new")])
    assert done.exit_code == 0, done.output
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == [
        "cluster.yaml",
        "serve.yaml",
        "train.yaml",
    ]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "serve.yaml").write_text("mine")
    again = CliRunner().invoke(level, ["1", "-o", str(tmp_path / "mine")])
    assert isinstance(again.exception, ConfigError)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["serve.yaml"]
    assert LEVELS == (0, 1, 2)
