"""The main job with the store on object stores, over HTTP: train, checkpoint, publish, serve, ask."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from openai import OpenAIError

from cluster import local
from cluster.processes import descendants
from runtime.app import App
from runtime.core.errors import Unreachable
from runtime.demo import TRAIN_SPEC
from runtime.sdk import Tandem
from storage.location import locate
from storage.patience import patience
from storage.store import Store, open_store
from tests.conftest import ROOT, TestCluster, wait_for
from tests.servers.fixtures import gcs_server, make_gs_bucket, make_s3_bucket, s3_server

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

SHORT: dict[str, Any] = {
    **TRAIN_SPEC,
    "name": "short",
    "publish": None,
    "llamafactory": TRAIN_SPEC["llamafactory"] | {"max_steps": 8, "save_strategy": "steps", "save_steps": 4},
}
"""The demo's recipe with checkpoints, cut short."""


def reach(monkeypatch: pytest.MonkeyPatch, address: str, **options: Any) -> Store:
    """The store at ``address``, for this process and for those that it starts."""
    monkeypatch.setenv("TANDEM_STORAGE_OPTIONS", json.dumps({address: options}))
    monkeypatch.setenv("TANDEM_STORE", address)
    return open_store()


def tandem_does(command: list[str], *words: str) -> str:
    done = subprocess.run([*command, *words], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def assert_everything_is_in(store: Store) -> None:
    """Inputs, the run and the published version, and nothing that is half-written."""
    version = store.model("docstrings")
    assert version.manifest is not None
    assert (version.ref, version.manifest.base) == ("docstrings/v1", "docstrings-base/v1")
    assert version.manifest.base_revision == store.model("docstrings-base").revision
    assert version.manifest.llamafactory["learning_rate"] == 5e-3
    assert version.manifest.metrics["loss"] < 0.1
    assert store.dataset("docstrings").manifest.rows > 100
    run = store.run("docstrings")
    assert run.result() == {"status": "succeeded", "model": "docstrings/v1"}
    assert [line["step"] for line in run.metrics()] == list(range(2, 101, 2))
    written = [store.root.at(entry).read_bytes() for entry in store.root.find()]
    assert not any(os.environ["AWS_SECRET_ACCESS_KEY"].encode() in content for content in written)


def trains_with_checkpoints(command: list[str], store: Store, tmp_path: Path) -> None:
    spec = tmp_path / "short.yaml"
    spec.write_text(yaml.safe_dump(SHORT))
    tandem_does(command, "train", str(spec))
    run = store.run("short")
    assert [checkpoint.manifest.step for checkpoint in run.checkpoints()] == [4, 8]
    files = [entry.path for entry in run.checkpoints()[-1].manifest.files]
    # One of each, though two ranks saved.
    assert len(files) == len(set(files))
    assert sum("optim_states" in file for file in files) == 2
    assert {"model.safetensors", "trainer_state.json", "rng_state_0.pth", "rng_state_1.pth"} <= set(files)
    assert (run.place / "output" / "manifest.json").stat()


def matches(output: str) -> int:
    found = re.search(r"(\d+) of 20 answers match exactly", output)
    return int(found[1]) if found else 0


def replicas() -> list[psutil.Process]:
    running = local.current()
    assert running is not None
    return [p for p in descendants(running.pid) if "ServeReplica:docstrings" in _command_line(p)]


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""  # it ended between the two looks


def test_the_demo_runs_with_its_store_on_gs(
    cluster: TestCluster, tandem_command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with gcs_server() as url:
        make_gs_bucket(url, "tandem-road")
        store = reach(monkeypatch, "gs://tandem-road/team", endpoint_url=url, anonymous=True)
        try:
            assert matches(tandem_does(tandem_command, "demo")) >= 18
            assert_everything_is_in(store)
            trains_with_checkpoints(tandem_command, store, tmp_path)
        finally:
            App(cluster.dashboard_url, "docstrings").stop()


@pytest.mark.slow  # as on gs, and five minutes because it goes on without s3
def test_the_demo_runs_with_its_store_on_s3_and_goes_on_serving_and_training_when_s3_is_gone(
    cluster: TestCluster, tandem_command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    app = App(cluster.dashboard_url, "docstrings")
    try:
        with s3_server() as url:
            make_s3_bucket(url, "tandem-road")
            store = reach(monkeypatch, "s3://tandem-road/team", endpoint_url=url)
            assert matches(tandem_does(tandem_command, "demo")) >= 18
            assert_everything_is_in(store)
            trains_with_checkpoints(tandem_command, store, tmp_path)
            question, answer = _a_question(store)
        with patience(1), pytest.raises(Unreachable, match="s3://tandem-road/team"):
            store.models()
        assert app.chat(question, temperature=0, max_tokens=64) == answer
        _restarts_its_replica(app, question, answer)
        _trains_from_the_cached_base(cluster, tmp_path)
    finally:
        app.stop()


def _a_question(store: Store) -> tuple[str, str]:
    row = store.dataset("docstrings").rows(1)[0]
    return row["instruction"], row["output"]


def _restarts_its_replica(app: App, question: str, answer: str) -> None:
    """A killed replica is replaced by one that must fetch its model anew."""
    before = replicas()
    assert before
    for process in before:
        process.kill()
    wait_for(lambda: {p.pid for p in replicas()} - {p.pid for p in before}, "a new replica")
    wait_for(lambda: _answer(app, question) == answer, "the new replica answers")


def _answer(app: App, question: str) -> str | None:
    try:
        return app.chat(question, temperature=0, max_tokens=64)
    except OpenAIError:
        return None


def _trains_from_the_cached_base(cluster: TestCluster, tmp_path: Path) -> None:
    """The base by its address in the store that is gone; the run's own store is another."""
    tandem = Tandem(store=str(tmp_path / "store"))
    tandem.add_dataset("rows", [{"instruction": "What is it?", "output": "A row."}] * 64)
    recipe = SHORT["llamafactory"] | {"max_steps": 2, "save_strategy": "no", "max_samples": 64}
    spec = SHORT | {
        "name": "offline",
        "model": "s3://tandem-road/team/models/docstrings-base/v1",
        "dataset": "rows",
        "llamafactory": recipe,
    }
    run = tandem.train(spec).wait(timeout_s=300)
    assert run.status == "SUCCEEDED"
    assert locate(f"{run.uri}/output/manifest.json").stat()
