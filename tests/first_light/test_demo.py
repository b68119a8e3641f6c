"""The main job: one command trains, publishes, serves and asks; then both ride at once."""

import json
import re
import subprocess
import sys
import threading

import httpx
import pytest

from runtime.core.errors import ConfigError, RunFailed
from runtime.demo import TRAIN_SPEC
from runtime.run import Run
from tests.conftest import ROOT, wait_for
from tests.first_light.conftest import Demo

SHORT = {**TRAIN_SPEC["llamafactory"], "max_steps": 12}
"""The demo's recipe, cut short."""

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]


def test_the_demo_trains_publishes_serves_and_answers_what_it_was_taught(demo: Demo):
    assert demo.exit_code == 0, demo.output
    matches = re.search(r"(\d+) of 20 answers match exactly", demo.output)
    assert matches and int(matches[1]) >= 18, demo.output
    assert demo.output.count("│ yes   │") == int(matches[1])
    for told in ("Published docstrings/v1", "Dashboard", "Endpoint", "Run folder", "tandem down", "loss"):
        assert told in demo.output


def test_the_published_version_tells_where_it_came_from(demo: Demo):
    run = Run(demo.cluster.store.run("docstrings"))
    manifest = demo.cluster.store.model("docstrings").manifest
    assert manifest is not None
    assert (manifest.base, manifest.template, manifest.run) == (
        "docstrings-base/v1",
        "qwen3_nothink",
        run.run_id,
    )
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {entry.path for entry in manifest.files}
    assert (run.status, run.model) == ("SUCCEEDED", "docstrings/v1")


def test_a_version_that_is_served_is_not_removed(demo: Demo, tandem_command: list[str]):
    command = [*tandem_command, "models", "rm", "docstrings/v1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "docstrings/v1 is served by the app 'docstrings'" in done.stderr
    assert "tandem stop docstrings" in done.stderr
    with pytest.raises(ConfigError, match="is served by the app"):
        demo.cluster.tandem().remove_model("docstrings/v1")
    assert demo.cluster.store.model("docstrings/v1")


def test_the_runs_metrics_are_a_table_with_a_falling_loss(demo: Demo):
    run = Run(demo.cluster.store.run("docstrings"))
    loss = run.metrics().set_index("step")["loss"].dropna()
    assert loss.iloc[0] > 5 > 0.1 > loss.iloc[-1]
    assert loss.index[-1] == TRAIN_SPEC["llamafactory"]["max_steps"]
    assert "loss" in run.logs()
    assert "<img" in run._repr_html_()


@pytest.mark.parametrize("command", [["models"], ["runs"], ["status"]])
def test_what_is_listed_is_json_too(demo: Demo, tandem_command: list[str], command: list[str]):
    done = subprocess.run(
        [*tandem_command, *command, "--json"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert "docstrings/v1" in json.dumps(json.loads(done.stdout))


def test_the_endpoint_speaks_openai(demo: Demo):
    base = f"{demo.app.url}/v1"
    question, answer = demo.questions[3]
    assert httpx.get(f"{base}/models").json()["data"][0]["id"] == "docstrings"
    body = {"model": "docstrings", "temperature": 0, "max_tokens": 64}
    chat = {**body, "messages": [{"role": "user", "content": question}]}
    reply = httpx.post(f"{base}/chat/completions", json=chat, timeout=60).json()
    assert reply["choices"][0]["message"]["content"] == answer
    completion = httpx.post(f"{base}/completions", json={**body, "prompt": "What does"}, timeout=60).json()
    assert completion["choices"][0]["text"]
    assert demo.app.chat(question, temperature=0, max_tokens=64) == answer


def test_a_streamed_answer_comes_in_pieces_and_is_the_same(demo: Demo):
    question, answer = demo.questions[5]
    chunks = demo.app.openai().chat.completions.create(
        model="docstrings",
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=64,
        stream=True,
    )
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert "".join(pieces) == answer
    assert len(pieces) > 3


def test_an_unknown_model_is_answered_as_openai_does(demo: Demo):
    body = {"model": "nobody", "messages": [{"role": "user", "content": "x"}]}
    reply = httpx.post(f"{demo.app.url}/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == 404
    assert "nobody" in reply.json()["error"]["message"]


def test_a_model_trains_while_another_answers_on_the_same_cluster(demo: Demo):
    tandem = demo.cluster.tandem()
    spec = {**TRAIN_SPEC, "name": "beside", "llamafactory": SHORT, "publish": None}
    question, answer = demo.questions[0]
    during, stop = [], threading.Event()

    def ask() -> None:
        while not stop.is_set():
            during.append((run.status, demo.app.chat(question, temperature=0, max_tokens=64)))

    run = tandem.train(spec)
    asking = threading.Thread(target=ask)
    asking.start()
    try:
        run.wait(timeout_s=300)
    finally:
        stop.set()
        asking.join()
    assert run.status == "SUCCEEDED"
    assert {served for _, served in during} == {answer}, "no answer fails or changes while the run goes on"
    assert sum(status == "RUNNING" for status, _ in during) > 5


def test_a_run_is_stopped_on_request(demo: Demo, tandem_command: list[str]):
    run = demo.cluster.tandem().train({**TRAIN_SPEC, "name": "stopped", "publish": None})
    wait_for(lambda: run.status == "RUNNING", "the run has begun")
    subprocess.run([*tandem_command, "stop", "stopped"], cwd=ROOT, check=True)
    wait_for(lambda: run.status == "STOPPED", "the run has ended")
    # Before its first step there is nothing to save, and it says so.
    assert run.error == "stopped on request; it has no checkpoint yet"


def test_a_run_that_fails_says_so_with_the_workers_last_error_line(demo: Demo):
    recipe = {**TRAIN_SPEC["llamafactory"], "learning_rate": -1.0}
    run = demo.cluster.tandem().train(
        {**TRAIN_SPEC, "name": "failing", "llamafactory": recipe, "publish": None}
    )
    with pytest.raises(RunFailed, match="Invalid learning rate: -1.0") as failure:
        run.wait(timeout_s=300)
    assert f"tandem logs {run.run_id}" in str(failure.value)
    assert "Invalid learning rate" in run.logs()
    assert (run.status, run.model) == ("FAILED", None)


def test_ray_job_submit_trains_with_plain_ray_tools(demo: Demo):
    """The first door: no `tandem` involved; the command is the one in the example's first lines."""
    from cluster.environments import interpreter

    example = ROOT / "examples" / "train" / "sft_full_zero2.yaml"
    ray = interpreter("core").with_name("ray")
    store = demo.cluster.store.uri
    done = subprocess.run(
        [
            *(ray, "job", "submit", "--address", demo.cluster.dashboard_url, "--"),
            *("python", "-m", "train_jobs", "run", example, "--store", store),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "docstrings/v2" in done.stdout
    run = Run(demo.cluster.store.run("docstrings"))
    assert (run.status, run.model) == ("SUCCEEDED", "docstrings/v2")
    assert run.metrics()["loss"].dropna().iloc[-1] < 0.1


def test_a_notebook_trains_and_serves(demo: Demo):
    """The third door, as examples/notebooks/first_light.ipynb shows it."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "examples" / "notebooks" / "first_light.ipynb", as_version=4)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": ROOT}}
    ).execute()
    shown = json.dumps([cell.get("outputs") for cell in notebook.cells])
    assert "image/png" in shown or "<img" in shown
    assert "SUCCEEDED" in shown


def test_a_cluster_is_reached_by_its_address_too(demo: Demo):
    from runtime import Tandem

    remote = Tandem(demo.cluster.dashboard_url, store=demo.cluster.store.uri)
    question, answer = demo.questions[7]
    assert remote.app("docstrings").chat(question, temperature=0, max_tokens=64) == answer
    # The code and the environments of the cluster itself, as on a machine that is not ours.
    run = remote.train({**TRAIN_SPEC, "name": "remote", "llamafactory": SHORT, "publish": None})
    assert run.wait(timeout_s=300).status == "SUCCEEDED"
    assert "SUCCEEDED" in run._repr_html_()
    with pytest.raises(ConfigError, match="app 'nobody' is not deployed. Deployed: docstrings"):
        remote.app("nobody")


def test_a_path_that_is_taken_is_refused_with_the_apps_name(demo: Demo):
    taken = {"name": "second", "model": "docstrings", "auth": "none", "route_prefix": "/docstrings"}
    with pytest.raises(
        ConfigError, match=r"route_prefix is '/docstrings', where the app 'docstrings' answers"
    ):
        demo.cluster.tandem().serve(taken)


def test_the_serve_example_is_served_asked_and_ended_by_the_command_line(
    demo: Demo, tandem_command: list[str]
):
    def command(*words: str) -> str:
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    url = f"{demo.cluster.http_url}/docstrings"
    assert f"{url}/v1" in command(*tandem_command, "serve", "examples/serve/docstrings.yaml")
    assert demo.app.url == url
    assert "[DONE]" in command("bash", "examples/http/ask.sh", demo.cluster.http_url, "docstrings")
    assert "docstrings" in command(
        sys.executable, "examples/http/ask.py", demo.cluster.http_url, "docstrings"
    )
    assert command(*tandem_command, "stop", "docstrings") == "App docstrings has ended.\n"
