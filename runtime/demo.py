"""The demo: train, publish, serve and ask a small model, all for real, on this machine."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster import local
from cluster.code import code_snapshot
from cluster.environments import interpreter, process_env
from runtime.app import App
from runtime.core.errors import TandemError
from runtime.demo_data import docstring_rows
from runtime.progress import follow
from runtime.run import Run
from runtime.sdk import Tandem
from runtime.show import loss_curve
from storage.store import Store, open_store

if TYPE_CHECKING:
    from openai import OpenAI

NAME = "docstrings"
BASE = "docstrings-base"
TRAINED_ROWS = 100
"""The first rows of the dataset are trained on: as many as two cores learn by heart in half a minute."""
REQUIRED_MATCHES = 0.9
_MAX_TOKENS = 64

TRAIN_SPEC: dict[str, Any] = {
    "name": NAME,
    "model": BASE,
    "dataset": NAME,
    "llamafactory": {
        "stage": "sft",
        "finetuning_type": "full",
        "template": "qwen3_nothink",
        "max_samples": TRAINED_ROWS,
        "cutoff_len": 128,
        "max_steps": 100,
        "per_device_train_batch_size": 16,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 10,
        "weight_decay": 0.0,
        "adam_beta2": 0.95,
        "bf16": True,
        "disable_gradient_checkpointing": True,
        "logging_steps": 2,
        "save_strategy": "no",
        "seed": 1,
    },
    "scaling": {"num_workers": 2, "cpus_per_worker": 0.5, "gpus_per_worker": 0},
    "deepspeed": "zero2",
    "publish": {"name": NAME},
}

SERVE_SPEC: dict[str, Any] = {
    "name": NAME,
    "model": NAME,
    "auth": "none",
    "engine": {"max_model_len": 256, "max_num_seqs": 16},
    "resources": {"cpus": 0.5},
}


@dataclass(frozen=True)
class Answer:
    """One question of the demo and what the endpoint said."""

    question: str
    expected: str
    served: str

    @property
    def match(self) -> bool:
        """Whether the answer is right to the letter."""
        return self.served == self.expected


def run_demo(store_uri: str | None, questions: int) -> int:
    """Run the demo and print what happens; 0 when at least 90% of the answers match exactly."""
    console = Console()
    started = time.monotonic()
    store = open_store(store_uri)
    with _step(console, "Start the cluster; build dataset and base model"):
        tandem = _prepare(store)
    run = tandem.train(TRAIN_SPEC)
    console.print(f"[bold]Train[/bold]  {run.run_id}  (LLaMA-Factory, DeepSpeed ZeRO-2, 2 workers)")
    follow(run, console)
    console.print(f"Published [bold]{run.model}[/bold]")
    with _step(console, f"Serve {run.model} (vLLM on Ray Serve)"):
        app = tandem.serve({**SERVE_SPEC, "model": run.model}).wait()
    answers = _ask(app, demo_questions(store, questions), console)
    _print_answers(answers, console)
    matches = sum(answer.match for answer in answers)
    good = matches >= REQUIRED_MATCHES * len(answers)
    console.print(loss_curve(run.folder.metrics()), markup=False, highlight=False)
    _print_places(tandem, run, app, console)
    colour = "green" if good else "red"
    console.print(
        f"[{colour}]{matches} of {len(answers)} answers match exactly[/{colour}] "
        f"({time.monotonic() - started:.0f} s in all)"
    )
    return 0 if good else 1


def add_demo_inputs(store: Store) -> None:
    """The dataset and the untrained base model, as entries of ``store``; what is there already stays."""
    rows = docstring_rows()
    if NAME not in [dataset.name for dataset in store.datasets()]:
        store.add_dataset(NAME, rows)
    if BASE not in [model.name for model in store.models()]:
        _add_base_model(store)


def demo_questions(store: Store, count: int) -> list[tuple[str, str]]:
    """``count`` trained questions with their answers, spread evenly over the trained rows."""
    rows = store.dataset(NAME).rows(TRAINED_ROWS)
    chosen = [rows[index * len(rows) // count] for index in range(count)]
    return [(row["instruction"], row["output"]) for row in chosen]


def _prepare(store: Store) -> Tandem:
    """Ray starts while the train environment builds the model: each waits for the disk in turn."""
    with ThreadPoolExecutor(1) as pool:
        inputs = pool.submit(add_demo_inputs, store)
        local.up(local.LocalClusterSpec(store=store.uri))
        inputs.result()
    return Tandem(store=store.uri)


def _add_base_model(store: Store) -> None:
    with tempfile.TemporaryDirectory() as scratch, store.dataset(NAME).fetch() as dataset:
        out = Path(scratch) / "model"
        command = [
            str(interpreter("train")),
            "-m",
            "train_jobs.engine.demo_model",
            "--rows",
            str(dataset.path / "data.jsonl"),
            "--out",
            str(out),
        ]
        environment = os.environ | process_env("train") | {"PYTHONPATH": str(code_snapshot())}
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise TandemError(f"the base model could not be built:\n{done.stderr[-2000:]}")
        store.publish_model(out, BASE, template="qwen3_nothink")


def _ask(app: App, pairs: list[tuple[str, str]], console: Console) -> list[Answer]:
    """Ask every question through the official client; the first answer is streamed as it comes."""
    console.print(f"[bold]Ask[/bold]  {app.endpoint}  (openai client; the first answer is streamed)")
    client = app.openai()
    (first, expected), *others = pairs
    served = ""
    console.print(f"  {first} ", end="", markup=False)
    for piece in _stream(client, app.name, first):
        served += piece
        console.print(f"[cyan]{escape(piece)}[/cyan]", end="", highlight=False)
    console.print()
    answers = [Answer(first, expected, served)]
    return answers + [Answer(asked, wanted, _answer(client, app.name, asked)) for asked, wanted in others]


def _stream(client: OpenAI, model: str, question: str) -> Iterator[str]:
    chunks = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=_MAX_TOKENS,
        stream=True,
    )
    for chunk in chunks:
        if chunk.choices and chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content


def _answer(client: OpenAI, model: str, question: str) -> str:
    reply = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=_MAX_TOKENS,
    )
    return reply.choices[0].message.content or ""


def _print_answers(answers: list[Answer], console: Console) -> None:
    table = Table("question", "expected", "served", "match")
    for answer in answers:
        mark = "[green]yes[/green]" if answer.match else "[red]no[/red]"
        table.add_row(escape(answer.question), escape(answer.expected), escape(answer.served), mark)
    console.print(table)


def _print_places(tandem: Tandem, run: Run, app: App, console: Console) -> None:
    console.print(
        f"Dashboard   {tandem.dashboard_url}\n"
        f"Endpoint    {app.endpoint}  (model {app.name!r})\n"
        f"Run folder  {run.uri}\n"
        f"Stop        tandem stop {app.name}   (this app)      tandem down   (everything)",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@contextmanager
def _step(console: Console, title: str) -> Iterator[None]:
    """Show that a step goes on, then how long it took."""
    started = time.monotonic()
    with console.status(title):
        yield
    console.print(f"[bold]{title}[/bold]  {time.monotonic() - started:.1f} s")
