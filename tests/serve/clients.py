"""Programs that people point at an OpenAI endpoint, each asked for one small thing. Shared by tests."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from cluster.environments import interpreter, process_env

QUESTION: list[Any] = [{"role": "user", "content": "What does os.getcwd do?"}]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look up a function of Python.",
        # Only of a strict tool does vLLM hold the arguments to the schema; of others they are any JSON.
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"module": {"enum": ["os", "json"]}, "deep": {"type": "boolean"}},
            "required": ["module", "deep"],
            "additionalProperties": False,
        },
    },
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"kind": {"enum": ["function", "class"]}, "is_pure": {"type": "boolean"}},
    "required": ["kind", "is_pure"],
    "additionalProperties": False,
}


def curl(url: str, body: dict[str, Any], *options: str) -> str:
    """What plain curl prints."""
    command = ["curl", "--silent", "--show-error", "--fail-with-body", "--noproxy", "*", *options, url]
    sent = ["--header", "Content-Type: application/json", "--data", json.dumps(body)]
    return subprocess.run([*command, *sent], check=True, capture_output=True, text=True, timeout=120).stdout


def vllm_bench(base_url: str, model: str, tokenizer: Path, folder: Path, *, requests: int) -> dict[str, Any]:
    """The result file of vLLM's own load generator, run in the serve environment."""
    # Through its module: the `vllm` command looks for a distribution that the CPU build is not called.
    script = (
        "import argparse; from vllm.benchmarks.serve import add_cli_args, main; "
        "parser = argparse.ArgumentParser(); add_cli_args(parser); main(parser.parse_args())"
    )
    words = {
        "--backend": "openai",
        "--base-url": base_url,
        "--endpoint": "/v1/completions",
        "--model": model,
        "--tokenizer": str(tokenizer),
        "--dataset-name": "random",
        "--random-input-len": "16",
        "--random-output-len": "8",
        "--num-prompts": str(requests),
        "--max-concurrency": "4",
        "--ready-check-timeout-sec": "0",
        "--result-dir": str(folder),
        "--result-filename": "bench.json",
    }
    flags = ["--ignore-eos", "--save-result", "--disable-tqdm"]
    command = [str(interpreter("serve")), "-c", script, *(w for pair in words.items() for w in pair), *flags]
    proxies = {"NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    environment = os.environ | process_env("serve") | proxies
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return dict(json.loads((folder / "bench.json").read_text()))
