"""The command line: quick to start, and a wrong word is answered with one line and exit code 2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

COMMANDS = [
    "setup", "up", "down", "status", "doctor", "train", "sweep", "serve", "runs", "models", "logs", "stop",
    "demo", "plan", "gpus", "simulate", "adapters", "keys", "batch", "datasets", "storage",
]  # fmt: skip

TRAIN = {
    "name": "t",
    "model": "base",
    "dataset": "rows",
    "llamafactory": {"stage": "sft", "template": "qwen3"},
}
SERVE = {"name": "s", "model": "base", "engine": {}}


@pytest.fixture
def run(home: Path, tmp_path: Path):
    """Run the command line with a store of this test's own, which holds a model and a dataset."""
    from storage.store import open_store

    store = open_store(str(tmp_path / "store"))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text('{"num_attention_heads": 8}')
    store.publish_model(tmp_path / "m", "base")
    store.add_dataset("rows", [{"instruction": "a", "output": "b"}])

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        import os

        env = os.environ | {"TANDEM_STORE": store.uri, "TANDEM_HOME": str(tmp_path / "home")}
        return subprocess.run(
            [sys.executable, "-m", "runtime", *words],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=env,
            check=False,
        )

    return command


@pytest.fixture
def spec(tmp_path: Path):
    """Write a spec file and return its path."""

    def write(data: object) -> str:
        path = tmp_path / "spec.yaml"
        path.write_text(json.dumps(data))
        return str(path)

    return write


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run, command: str):
    done = run(command, "--help")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()[2].strip()) > 25


def test_help_loads_nothing_heavy():
    """`tandem --help` answers in a tenth of a second because nothing is imported that it does not need."""
    script = (
        "import sys\nfrom runtime.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('ray', 'pandas', 'httpx', 'openai', 'rich', 'psutil') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_dry_runs_print_the_resolved_plan(run, spec):
    plan = json.loads(run("train", spec(TRAIN), "--dry-run").stdout)
    assert plan["base"] == "base/v1"
    assert plan["llamafactory"]["template"] == "qwen3"
    plan = json.loads(run("serve", spec(SERVE), "--dry-run").stdout)
    assert plan["spec"]["model"] == "base/v1"
    assert plan["spec"]["route_prefix"] == "/s"


@pytest.mark.parametrize(
    ("command", "data", "said"),
    [
        ("train", {**TRAIN, "modle": "x"}, "modle: unknown field (value 'x'). Did you mean 'model'?"),
        ("train", {**TRAIN, "scaling": {"num_workers": "many"}}, "scaling.num_workers: is 'many'"),
        ("train", {**TRAIN, "model": "bas"}, "Did you mean 'base'?"),
        ("train", {**TRAIN, "dataset": "row"}, "Did you mean 'rows'?"),
        ("train", {**TRAIN, "llamafactory": {"template": "qwen33"}}, "llamafactory.template: is 'qwen33'"),
        ("train", {**TRAIN, "llamafactory": {"learning_rte": 1}}, "Did you mean 'learning_rate'?"),
        (
            "train",
            {**TRAIN, "llamafactory": {"output_dir": "/x"}},
            "llamafactory.output_dir: is '/x', but Tandem",
        ),
        ("train", {**TRAIN, "scaling": {"num_workers": 5000}}, "5000 x cpus_per_worker 0.5 is 2500 CPUs"),
        ("train", {**TRAIN, "deepspeed": "zero9"}, "deepspeed"),
        ("serve", {**SERVE, "engine": {"tensor_paralel_size": 2}}, "Did you mean 'tensor_parallel_size'?"),
        ("serve", {**SERVE, "engine": {"tensor_parallel_size": 3}}, "does not divide the 8"),
        ("serve", {**SERVE, "engine": {"max_num_seqs": "many"}}, "engine.max_num_seqs: is 'many'"),
        ("serve", {**SERVE, "resources": {"cpus": 5000}}, "5000"),
        ("serve", {**SERVE, "model": "bse"}, "Did you mean 'base'?"),
        ("serve", {"model": "base"}, "name: is required"),
    ],
)
def test_a_wrong_spec_is_refused_in_one_message_with_exit_code_2(run, spec, command, data, said):
    path = spec(data)
    done = run(command, path, "--dry-run")
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert path in done.stderr, "the message names the file"
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_spec_may_name_its_own_store(run, spec, tmp_path: Path):
    from storage.store import open_store

    other = open_store(str(tmp_path / "other store"))
    other.publish_model(tmp_path / "m", "elsewhere")
    plan = json.loads(
        run("serve", spec({**SERVE, "model": "elsewhere", "store": other.uri}), "--dry-run").stdout
    )
    assert (plan["spec"]["store"], plan["spec"]["model"]) == (other.uri, "elsewhere/v1")


def test_an_adapter_is_refused_where_whole_weights_are_needed(run, spec, tmp_path: Path):
    from storage.store import open_store

    (tmp_path / "m" / "adapter_config.json").write_text("{}")
    store = open_store(str(tmp_path / "store"))
    store.publish_model(tmp_path / "m", "lora", kind="adapter", base="base/v1")
    for command, data in (("train", TRAIN), ("serve", SERVE)):
        done = run(command, spec({**data, "model": "lora"}), "--dry-run")
        assert done.returncode == 2
        assert "model is 'lora/v1', an adapter over base/v1" in done.stderr


def test_an_address_that_is_none_and_a_store_that_cannot_be_are_refused(run, spec):
    done = run("train", spec(TRAIN), "--address", "head:8265")
    assert (done.returncode, "Give the dashboard's URL" in done.stderr) == (2, True), done.stderr
    done = run("models", "--store", "/proc/none")
    assert (done.returncode, "'/proc/none' cannot be used" in done.stderr) == (1, True), done.stderr


def test_brackets_in_a_message_are_shown_as_they_are(capsys):
    from runtime.show import print_table

    print_table([{"name": "a", "message": "[type=value_error] see [/v1/models]"}], ["name", "message"])
    assert "[type=value_error] see [/v1/models]" in capsys.readouterr().out


def test_what_does_not_exist_is_answered_without_a_traceback(run):
    for words in (["logs", "nobody"], ["train", "nowhere.yaml"], ["serve", "nowhere.yaml"]):
        done = run(*words)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("Error: ")
        assert "Traceback" not in done.stderr


def test_nothing_to_list_and_nothing_to_end_is_no_error(run):
    assert json.loads(run("runs", "--json").stdout) == []
    assert json.loads(run("models", "--json").stdout)[0]["model"] == "base/v1"
    assert json.loads(run("status", "--json").stdout)["cluster"] is None
    assert run("down").stdout == "No local cluster runs.\n"
