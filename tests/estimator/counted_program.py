"""What torch and transformers allocate, counted: optimizers' states, and an evaluation's logits.

python -m tests.estimator.counted_program      # in the train environment
"""

from __future__ import annotations

import json
import tempfile
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer, TrainingArguments

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "adagrad", "rmsprop", "sgd")
TYPES = (torch.float32, torch.bfloat16)
WIDTH = 512
ROWS, TOKENS, WORDS = 4, 128, 60_000


def main() -> None:
    """Print the bytes per parameter by optimizer and type, and those per token and word by type, as JSON."""
    states = {optim: {str(dtype): _states(optim, dtype) for dtype in TYPES} for optim in OPTIMIZERS}
    logits = {str(dtype): _logits(dtype) for dtype in TYPES}
    print(json.dumps({"states": states, "logits": logits}))


def _arguments(**more: Any) -> TrainingArguments:
    return TrainingArguments(output_dir=tempfile.mkdtemp(), use_cpu=True, report_to=[], **more)


def _states(optim: str, dtype: torch.dtype) -> float:
    layer = torch.nn.Linear(WIDTH, WIDTH, bias=False, dtype=dtype)
    kind, options = Trainer.get_optimizer_cls_and_kwargs(_arguments(optim=optim), layer)  # type: ignore[arg-type]
    optimizer = kind(layer.parameters(), **options)
    layer(torch.ones(2, WIDTH, dtype=dtype)).float().sum().backward()
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.nbytes for value in kept if torch.is_tensor(value)) / WIDTH**2


class _Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 2 * ROWS

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        tokens = torch.arange(TOKENS) + row
        return {"input_ids": tokens, "labels": tokens, "attention_mask": torch.ones_like(tokens)}


def _logits(dtype: torch.dtype) -> float:
    """At the peak of an evaluation, whose layers are next to nothing beside its logits."""
    config = Qwen3Config(
        vocab_size=WORDS, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).to(dtype)
    trainer = Trainer(model=model, args=_arguments(per_device_eval_batch_size=ROWS), eval_dataset=_Rows())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        trainer.evaluate()
    events = [one for one in profiled.profiler.kineto_results.events() if one.name() == "[memory]"]
    there = peak = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        there += event.nbytes()
        peak = max(peak, there)
    return peak / (ROWS * TOKENS * WORDS)


if __name__ == "__main__":
    main()
