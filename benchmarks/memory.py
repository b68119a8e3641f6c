"""Estimated against measured: the peak memory of real trainings and of an engine, on what this machine has.

    python benchmarks/memory.py [--only train|serve] [--calibrate] [--json FILE]

Without a GPU the peak is the process's resident memory; with one, what NVML says that it holds of the card.
With --calibrate what no formula tells (what a process takes by itself, what its allocator wastes) is taken
from these measurements and written to cluster/estimator/calibrations/, a file a product of GPU.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

# This file is named as a module of others: the checkout must come before its own folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster import local
from cluster.environments import interpreter, process_env
from cluster.estimator.calibration import Calibration, calibration, slug
from cluster.estimator.words import gib
from cluster.nvml import read_cards
from runtime.demo import add_demo_inputs
from runtime.sdk import Tandem
from storage.store import Store

ROOT = Path(__file__).resolve().parents[1]
_STEPS = 6
_TOKENS = 512
_WIDTHS = {"demo": None, "45m": (768, 6), "120m": (1024, 10)}
_GPU_WIDTHS = {"demo": None, "330m": (1536, 12), "1100m": (2304, 20)}


@dataclass(frozen=True)
class Case:
    """One training."""

    model: str
    recipe: dict[str, Any]
    deepspeed: str | None = None
    num_workers: int = 1

    @property
    def name(self) -> str:
        """For people."""
        how = "checkpointing" if not self.recipe["disable_gradient_checkpointing"] else ""
        words = [self.model, self.recipe["finetuning_type"], self.deepspeed or "", how]
        workers = f"x{self.num_workers}" if self.num_workers > 1 else ""
        return " ".join(word for word in (*words, workers) if word)


def cases(*, on_gpu: bool) -> list[Case]:
    """Trainings that differ in one thing each."""
    _, middle, large = _GPU_WIDTHS if on_gpu else _WIDTHS
    full = _recipe("full")
    found = [
        Case("demo", full),
        Case(middle, full),
        Case(large, full),
        Case(middle, _recipe("full", disable_gradient_checkpointing=False)),
        Case(middle, _recipe("lora")),
        Case(middle, full, "zero2"),
    ]
    if on_gpu:
        return found
    lora = _recipe("lora")
    pairs = (("zero2", full), ("zero3", full), ("zero3", lora))
    return [*found, *(Case(middle, recipe, deepspeed, 2) for deepspeed, recipe in pairs)]


def _recipe(finetuning_type: str, **more: Any) -> dict[str, Any]:
    return {
        "stage": "sft",
        "finetuning_type": finetuning_type,
        "template": "qwen3_nothink",
        "cutoff_len": _TOKENS,
        # Rows of one length, filled: what is estimated.
        "packing": True,
        "max_steps": _STEPS,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "bf16": True,
        "save_strategy": "no",
        "disable_gradient_checkpointing": True,
        **more,
    }


def measured(tandem: Tandem, case: Case, *, on_gpu: bool) -> dict[str, Any]:
    """One training: what was estimated, and what it took at its peak."""
    spec = {
        "name": "memory",
        "model": case.model,
        "dataset": "docstrings",
        "llamafactory": case.recipe,
        "deepspeed": case.deepspeed,
        "scaling": {"num_workers": case.num_workers, "gpus_per_worker": 1 if on_gpu else 0},
    }
    plan = tandem.plan_train(spec)
    run = tandem.train(spec)
    seen = 0
    while run.status in ("PENDING", "RUNNING"):
        held = [one["used_bytes"] or 0 for one in tandem.gpus().shares if one["holder"] == run.run_id]
        seen = max([seen, *held])
        time.sleep(0.3)
    run.wait()
    peak = max(line.get("memory_peak_bytes", 0) for line in run.folder.metrics())
    assert plan.memory is not None
    process = plan.memory.terms["process"]
    return {
        "case": case.name,
        "estimated_bytes": plan.memory.needed_bytes,
        "measured_bytes": max(seen, peak) if on_gpu else peak,
        "beside_process_bytes": plan.memory.needed_bytes - process,
        "allocated_bytes": peak,
    }


def serving(tandem: Tandem) -> dict[str, Any]:
    """One engine: what it takes by itself, before its weights and its cache."""
    app = tandem.serve({"name": "memory", "model": "demo", "auth": "none", "engine": {"max_model_len": 512}})
    app.wait()
    app.chat("Hello?", max_tokens=8)
    plan = tandem.plan_serve(
        {"name": "memory", "model": "demo", "auth": "none", "engine": {"max_model_len": 512}}
    )
    assert plan.memory is not None
    deadline, used = time.monotonic() + 30, 0
    while not used and time.monotonic() < deadline:
        used = max(
            (one["used_bytes"] or 0 for one in tandem.gpus().shares if one["holder"] == "memory"), default=0
        )
        time.sleep(0.3)
    app.stop()
    return {
        "case": "serve demo",
        "estimated_bytes": plan.memory.needed_bytes,
        "measured_bytes": used,
        "beside_process_bytes": plan.memory.needed_bytes - plan.memory.terms["process"],
    }


def add_models(store: Store, scratch: Path, *, on_gpu: bool) -> None:
    """The models of the cases, made here."""
    add_demo_inputs(store)
    with store.model("docstrings-base").fetch() as small:
        for name, size in (_GPU_WIDTHS if on_gpu else _WIDTHS).items():
            if size is None:
                store.publish_model(small.path, name)
                continue
            hidden, layers = size
            command = [str(interpreter("train")), str(ROOT / "benchmarks" / "train_model.py")]
            command += [str(small.path), str(scratch / name), f"--hidden-size={hidden}"]
            command += [f"--num-hidden-layers={layers}"]
            env = process_env("train") | {"PYTHONPATH": str(ROOT)}
            subprocess.run(command, env=env, check=True, capture_output=True)
            store.publish_model(scratch / name, name)


def calibrated(rows: list[dict[str, Any]], served: dict[str, Any] | None, product: str | None) -> Calibration:
    """What the measurements say of the machine."""
    now = calibration(product)
    changes: dict[str, Any] = {
        "product": product or "cpu",
        "source": f"measured: benchmarks/memory.py, {_today()}",
    }
    if rows and product is None:
        own = [row["measured_bytes"] - row["beside_process_bytes"] for row in rows]
        changes["train_process_bytes"] = round(statistics.median(own))
    elif rows:
        # Two unknowns, the context and the waste: a line through what NVML says over what torch allocated.
        slope, intercept = statistics.linear_regression(
            [row["allocated_bytes"] for row in rows], [row["measured_bytes"] for row in rows]
        )
        changes |= {
            "train_process_bytes": max(0, round(intercept)),
            "fragmentation": round(max(0.0, slope - 1), 3),
        }
    if served:
        changes["serve_process_bytes"] = max(0, served["measured_bytes"] - served["beside_process_bytes"])
    return now.model_copy(update=changes)


def _in_words(row: dict[str, Any]) -> str:
    estimated, taken = row["estimated_bytes"], row["measured_bytes"]
    return f"{row['case']:30} estimated {gib(estimated)}, measured {gib(taken)}: {estimated / taken - 1:+.1%}"


def _today() -> str:
    return time.strftime("%Y-%m-%d")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("train", "serve"))
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    cards = read_cards()
    product = cards[0].product if cards else None
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as text:
        scratch = Path(text)
        os.environ |= {
            "TANDEM_HOME": str(scratch / "home"),
            "TANDEM_STORE": str(scratch / "store"),
            "TANDEM_FILE_CACHE": str(scratch / "files"),
        }
        local.up(local.LocalClusterSpec(num_cpus=4, num_gpus=len(cards), dashboard_port=0, http_port=0))
        try:
            tandem = Tandem()
            add_models(tandem.store, scratch, on_gpu=bool(cards))
            rows = []
            for case in [] if given.only == "serve" else cases(on_gpu=bool(cards)):
                rows.append(measured(tandem, case, on_gpu=bool(cards)))
                console.print(_in_words(rows[-1]), style="dim")
            served = None if given.only == "train" else serving(tandem)
        finally:
            local.down()
    shown = [*rows, *([served] if served else [])]
    off = [abs(row["estimated_bytes"] / row["measured_bytes"] - 1) for row in shown]
    console.print("\n".join(_in_words(row) for row in shown))
    console.print(f"{product or 'CPU'}: median {statistics.median(off):.1%} off, at most {max(off):.1%}")
    if given.calibrate:
        made = calibrated(rows, served, product)
        file = ROOT / "cluster" / "estimator" / "calibrations" / f"{slug(product or 'cpu')}.json"
        file.write_text(made.to_json() + "\n")
        console.print(f"wrote {file}")
    if given.json:
        given.json.write_text(json.dumps({"product": product, "rows": shown}, indent=1))


if __name__ == "__main__":
    main()
