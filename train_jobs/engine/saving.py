"""Saving and going on as transformers and LLaMA-Factory do it, mended where something would be lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llamafactory.extras.constants import V_HEAD_SAFE_WEIGHTS_NAME
from llamafactory.train.callbacks import PissaConvertCallback
from llamafactory.train.rm.trainer import PairwiseTrainer
from peft import load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.trainer_callback import CallbackHandler

from train_jobs.engine.checkpoints import CheckpointCallback


def mend_saving() -> None:
    """Have checkpoints taken when they are whole, reward models saved and resumed, PiSSA converted right.

    Every rank calls it before it trains.

    Source: llamafactory 0.9.5, train/callbacks.py and train/rm/trainer.py; transformers 5.6.0.
    """
    if getattr(CallbackHandler, "_mended", False):
        return
    CallbackHandler._mended = True
    on_save, save = CallbackHandler.on_save, PairwiseTrainer._save

    def on_save_ours_last(self: Any, *args: Any, **kwargs: Any) -> Any:
        # LLaMA-Factory's trainers add callbacks that still write to the checkpoint (a reward model's adapter
        # and value head, a processor); CheckpointCallback moves it away.
        self.callbacks.sort(key=lambda callback: isinstance(callback, CheckpointCallback))
        return on_save(self, *args, **kwargs)

    def save_tied_once(self: Any, output_dir: str | None = None, state_dict: Any = None) -> None:
        # LLaMA-Factory means to do it, but compares objects: tied weights are two of them in a state_dict,
        # and safetensors refuses their common memory.
        found = self.model.state_dict() if state_dict is None else state_dict
        save(self, output_dir, _without_doubles(found))

    def load(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        # transformers finds no model that it knows in there, and fails. Only adapters come here:
        # LLaMA-Factory resumes no other reward model, and DeepSpeed loads by itself what it saved.
        checkpoint = Path(resume_from_checkpoint)
        inner = self.model.pretrained_model
        set_peft_model_state_dict(inner, load_peft_weights(str(checkpoint), device="cpu"))
        self.model.load_state_dict(load_file(checkpoint / V_HEAD_SAFE_WEIGHTS_NAME), strict=False)

    CallbackHandler.on_save = on_save_ours_last
    PairwiseTrainer._save = save_tied_once
    PairwiseTrainer._load_from_checkpoint = load
    # It keeps the adapter as it was at first, to take it off at the end. When training begins again from a
    # checkpoint that is loaded already, and no longer the first.
    PissaConvertCallback.on_init_end = PissaConvertCallback.on_train_begin
    PissaConvertCallback.on_train_begin = TrainerCallback.on_train_begin


def _without_doubles(state_dict: dict[str, Any]) -> dict[str, Any]:
    seen: set[tuple[int, Any]] = set()
    kept = {}
    for name, tensor in state_dict.items():
        place = (tensor.data_ptr(), tensor.shape)
        # A tensor without memory lies nowhere: ZeRO-3's shards, for one.
        if tensor.data_ptr() and place in seen:
            continue
        seen.add(place)
        kept[name] = tensor
    return kept
