"""What Tandem costs around LLaMA-Factory's training, against torchrun with the same recipe in the same run.

    python benchmarks/train.py [--pairs 3] [--only speed|checkpoints|recovery] [--json FILE]

speed: the demo's recipe (100 steps, ZeRO-2, two workers on two cores) under torchrun and under Tandem, in
turn: steps a second between the first and the last step, and where the rest of the time goes. checkpoints: a
model with more than 500 MB of training state: how long a save holds training up, against the trainer's plain
local save, and how many bytes are written for it. recovery: `kill -9` of a worker, until the next step.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

# This file is named as a module of others: the checkout must come before its own folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster import local
from cluster.environments import interpreter, process_env
from cluster.processes import descendants, free_port
from runtime.demo import TRAIN_SPEC, add_demo_inputs
from runtime.run import Run
from runtime.sdk import Tandem
from storage.store import Store, open_store
from train_jobs import deepspeed_presets

ROOT = Path(__file__).resolve().parents[1]
_STEPS = 100
_SAVE_EVERY = 20
_SAVES = 3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", choices=("speed", "checkpoints", "recovery"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    found: dict[str, Any] = {"load_at_start": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as text:
        scratch = Path(text)
        os.environ |= {
            "TANDEM_HOME": str(scratch / "home"),
            "TANDEM_STORE": str(scratch / "store"),
            "TANDEM_FILE_CACHE": str(scratch / "files"),
            "PYTHONPATH": str(ROOT),
        }
        local.up(local.LocalClusterSpec(num_cpus=2, num_gpus=0, dashboard_port=0, http_port=0))
        try:
            store = open_store()
            add_demo_inputs(store)
            parts = {"speed": _speed, "checkpoints": _checkpoints, "recovery": _recovery}
            for name in [given.only] if given.only else parts:
                console.print(f"{name} ...", style="dim")
                found[name] = parts[name](store, scratch, given.pairs)
                _show(console, name, found[name])
        finally:
            local.down()
    found["load_at_end"] = os.getloadavg()[0]
    console.print(
        f"load average {found['load_at_start']:.1f} at the start, {found['load_at_end']:.1f} at the end"
    )
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


def _show(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    table = Table("what", "median", "min", "max", title=title, title_justify="left")
    for row in rows:
        values = row["values"]
        table.add_row(row["what"], *(f"{f(values):.3g}" for f in (statistics.median, min, max)))
    console.print(table)


def _row(what: str, values: list[float]) -> dict[str, Any]:
    return {"what": what, "values": values}


def _speed(store: Store, scratch: Path, pairs: int) -> list[dict[str, Any]]:
    recipe = TRAIN_SPEC["llamafactory"] | {"max_steps": _STEPS}
    raws, ours = [], []
    # The first of each warms up: page cache, byte code, the cluster's own processes.
    for number in range(pairs + 1):
        raws.append(_torchrun(store, scratch / f"raw-{number}", "docstrings-base", recipe))
        ours.append(_tandem_times(_train("speed", store, "docstrings-base", recipe)))
    raws, ours = raws[1:], ours[1:]
    return [
        _row("steps/s, torchrun", [one["steps_per_s"] for one in raws]),
        _row("steps/s, Tandem", [one["steps_per_s"] for one in ours]),
        _row(
            "ratio of the pairs",
            [b["steps_per_s"] / a["steps_per_s"] for a, b in zip(raws, ours, strict=True)],
        ),
        _row("torchrun: start to first step, s", [one["to_first_step_s"] for one in raws]),
        _row("Tandem: submit to driver's first attempt, s", [one["to_attempt_s"] for one in ours]),
        _row("Tandem: from there to first step, s", [one["to_first_step_s"] for one in ours]),
        _row("Tandem: last step to result (publishing), s", [one["to_result_s"] for one in ours]),
        _row("torchrun: whole command, s", [one["whole_s"] for one in raws]),
        _row("Tandem: submit to result, s", [one["whole_s"] for one in ours]),
    ]


def _checkpoints(store: Store, scratch: Path, pairs: int) -> list[dict[str, Any]]:
    with store.model("docstrings-base").fetch() as small:
        command = [interpreter("train"), ROOT / "benchmarks" / "train_model.py", small.path, scratch / "wide"]
        subprocess.run([str(word) for word in command], check=True, env=_env(), stdout=subprocess.DEVNULL)
    wide = store.publish_model(scratch / "wide", "wide").ref
    recipe = TRAIN_SPEC["llamafactory"] | {
        "max_steps": _SAVE_EVERY * _SAVES,
        "save_strategy": "steps",
        "save_steps": _SAVE_EVERY,
        "save_total_limit": 1,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
    }
    raw_s, our_s, written, size_mb = [], [], [], []
    for number in range(pairs):
        raw_s += _torchrun(store, scratch / f"raw-wide-{number}", wide, recipe)["saves_s"]
        run, bytes_written = _train_counting(store, wide, recipe)
        stalls = [
            line["checkpoint_stall_s"] for line in run.folder.metrics() if line.get("checkpoint_stall_s")
        ]
        our_s += stalls
        total = run.folder.checkpoints()[-1].manifest.total_bytes
        size_mb.append(total / 1e6)
        # The published model is the one thing written besides, twice: by the trainer and into the store.
        model = store.model("wide-trained").manifest
        assert model is not None
        written.append((bytes_written - 2 * model.total_bytes) / (_SAVES * total))
    return [
        _row("state of a checkpoint, MB", size_mb),
        _row("plain local save, torchrun, s", raw_s),
        _row("save holds training up, Tandem, s", our_s),
        _row("ratio of the medians", [statistics.median(our_s) / statistics.median(raw_s)]),
        _row("bytes written per checkpoint / sum of its distinct files", written),
    ]


def _recovery(store: Store, scratch: Path, pairs: int) -> list[dict[str, Any]]:
    recipe = TRAIN_SPEC["llamafactory"] | {"max_steps": 60, "save_strategy": "steps", "save_steps": 10}
    noticed, recovered = [], []
    for _ in range(pairs):
        run = _submit("recovery", store, "docstrings-base", recipe)
        _until(lambda run=run: run.folder.checkpoints(), run)
        killed_at = time.time()
        _workers()[0].kill()
        _until(
            lambda run=run: len(run.folder.attempts()) > 1 and "recovery_s" in run.folder.attempts()[1], run
        )
        first, second = run.folder.attempts()[:2]
        noticed.append(first["ended_at"] - killed_at)
        recovered.append(second["first_step_at"] - killed_at)
        run.wait(timeout_s=300)
    return [_row("kill -9 of a worker to noticed, s", noticed), _row("to the next step done, s", recovered)]


def _torchrun(store: Store, folder: Path, model: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """LLaMA-Factory's own training of the recipe; the times that it took."""
    folder.mkdir()
    with store.model(model).fetch() as base, store.dataset("docstrings").fetch() as dataset:
        arguments = recipe | {
            "do_train": True,
            "disable_tqdm": True,
            "model_name_or_path": str(base.path),
            "dataset": "docstrings",
            "dataset_dir": str(dataset.path),
            "output_dir": str(folder / "output"),
            "deepspeed": deepspeed_presets.resolve(str(TRAIN_SPEC["deepspeed"])),
            "use_cpu": True,
        }
        (folder / "arguments.json").write_text(json.dumps(arguments))
        torchrun = [str(interpreter("train").with_name("torchrun")), "--nproc_per_node", "2"]
        command = [*torchrun, "--master_port", str(free_port()), str(ROOT / "benchmarks" / "train_raw.py")]
        began = time.time()
        with (folder / "log.txt").open("w") as log:
            files = [str(folder / "arguments.json"), str(folder / "report.json")]
            subprocess.run([*command, *files], env=_env(), check=True, stdout=log, stderr=log)
    ended = time.time()
    report = json.loads((folder / "report.json").read_text())
    steps = report["steps_at"]
    return {
        "steps_per_s": (len(steps) - 1) / (steps[-1] - steps[0]),
        "to_first_step_s": steps[0] - began,
        "saves_s": report["saves_s"],
        "whole_s": ended - began,
    }


def _submit(name: str, store: Store, model: str, recipe: dict[str, Any]) -> Run:
    spec = TRAIN_SPEC | {"name": name, "model": model, "llamafactory": recipe}
    return Tandem(store=store.uri).train(spec | {"publish": {"name": f"{model.partition('/')[0]}-trained"}})


def _train(name: str, store: Store, model: str, recipe: dict[str, Any]) -> Run:
    return _submit(name, store, model, recipe).wait(timeout_s=900)


def _train_counting(store: Store, model: str, recipe: dict[str, Any]) -> tuple[Run, int]:
    """A run, and the bytes that its workers wrote to disks (what they send each other does not count)."""
    run = _submit("wide", store, model, recipe)
    _until(run.folder.metrics, run)
    processes = _workers()
    seen: dict[int, int] = {}
    while run.status not in ("SUCCEEDED", "FAILED", "STOPPED"):
        for process in processes:
            try:
                seen[process.pid] = process.io_counters().write_bytes
            except psutil.Error:
                continue
        time.sleep(0.02)
    run.raise_if_failed()
    return run, sum(seen.values())


def _tandem_times(run: Run) -> dict[str, float]:
    """Where the time of a run went; the metrics carry the wall clock of each logged step."""
    lines = [line for line in run.folder.metrics() if "loss" in line]
    attempt = run.folder.attempts()[0]
    submitted = datetime.fromisoformat(run.folder.created_at).timestamp()
    steps = lines[-1]["step"] - 1
    ended = (Path(run.uri) / "result.json").stat().st_mtime
    return {
        "steps_per_s": steps / (lines[-1]["at"] - attempt["first_step_at"]),
        "to_attempt_s": attempt["began_at"] - submitted,
        "to_first_step_s": attempt["first_step_at"] - attempt["began_at"],
        "to_result_s": ended - lines[-1]["at"],
        "whole_s": ended - submitted,
    }


def _until(condition: Any, run: Run, timeout_s: float = 300) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        run.raise_if_failed()
        if time.monotonic() > deadline:
            raise TimeoutError(run.run_id)
        time.sleep(0.02)


def _workers() -> list[psutil.Process]:
    running = local.current()
    assert running is not None
    return [p for p in descendants(running.pid) if "ray::RayTrainWorker" in "".join(p.cmdline())]


def _env() -> dict[str, str]:
    return os.environ | process_env("train")


if __name__ == "__main__":
    main()
