"""A DeepSpeed checkpoint at another number of workers: DeepSpeed's universal form, made when it is needed."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from runtime.core.errors import ConfigError

_SHARDS = "*_optim_states.pt"


def needs_conversion(checkpoint: Path, num_workers: int) -> bool:
    """Whether ``checkpoint`` resumes on ``num_workers`` only in its universal form.

    Plain DDP and ZeRO-0 keep the whole optimizer in one file and resume on any number.

    Args:
        checkpoint: A checkpoint of the HF trainer, with the files of all ranks.
        num_workers: How many workers will load it.
    """
    if not (checkpoint / "latest").exists():
        return False
    shards = list(_state_folder(checkpoint).glob(_SHARDS))
    return bool(shards) and len(shards) != num_workers


def converted(checkpoint: Path, scratch: Path) -> Path:
    """``checkpoint`` in a form that resumes on any number of workers, with ``checkpoint.load_universal``.

    Args:
        checkpoint: A checkpoint of the HF trainer, with the files of all ranks. Only read; must stay there as
            long as the result is used, which links to what is the same.
        scratch: An empty folder. Takes 12 bytes for each trained parameter, twice that while it converts, and
            a copy of the checkpoint's ``*_model_states.pt``.

    Returns:
        A folder in ``scratch``.

    Raises:
        ConfigError: DeepSpeed cannot convert it.

    Source: https://www.deepspeed.ai/tutorials/universal-checkpointing/
    """
    state = _state_folder(checkpoint)
    target = scratch / checkpoint.name
    target.mkdir()
    for file in checkpoint.iterdir():
        if file != state:
            (target / file.name).symlink_to(file.absolute())
    try:
        # Also writes `latest_universal`, which names the folder of states.
        ds_to_universal.main(
            Namespace(
                input_folder=str(state),
                output_folder=str(target / f"{state.name}_universal"),
                # One means in this process: others could not be forked off a worker of Ray.
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                # Only models written for Megatron bring it along.
                inject_missing_state=True,
            )
        )
    except (AssertionError, KeyError, RuntimeError, ValueError, NotImplementedError) as error:
        workers = len(list(state.glob(_SHARDS)))
        raise ConfigError(
            f"{checkpoint} was written by {workers} workers and DeepSpeed cannot convert it for another "
            f"number ({type(error).__name__}: {error}). Set scaling.num_workers: {workers} to go on from it, "
            "or start a new run."
        ) from error
    return target


def mend_engines() -> None:
    """Make torch and DeepSpeed load right at any number of workers. Every rank, before it saves or loads.

    Seen with torch 2.13.0 and DeepSpeed 0.19.8: without it some resume with wrong losses and no word of it.
    """
    if getattr(DeepSpeedZeroOptimizer, "_mended", False):
        return
    DeepSpeedZeroOptimizer._mended = True
    # The trainer loads DDP's optimizer onto "cpu:0" where there are several workers; torch knows "cpu" only.
    torch.serialization.register_package(
        0, lambda storage: None, lambda storage, location: storage if location == "cpu:0" else None
    )
    link, load_3 = DeepSpeedZeroOptimizer._link_all_hp_params, DeepSpeedZeroOptimizer_Stage3.load_state_dict

    def link_in_order(self: Any) -> None:
        # With round_robin_gradients parameters lie in another order than the one reckoned with here: a
        # converted checkpoint had the values of one parameter under the name of another.
        given, self.bit16_groups = self.bit16_groups, self.round_robin_bit16_groups
        try:
            link(self)
        finally:
            self.bit16_groups = given

    def load_apart(self: Any, *args: Any, **kwargs: Any) -> None:
        load_3(self, *args, **kwargs)
        if folder := kwargs.get("checkpoint_folder"):
            _tell_groups_apart(self, Path(folder))

    # ZeRO-0 in 16 bits steps with gradients of zero to have Adam's states made, and Adam counts it: the
    # first real steps were up to a quarter too small, losses off by 2%. Adam makes its states itself.
    FP16_UnfusedOptimizer.initialize_optimizer_states = lambda self: None
    DeepSpeedZeroOptimizer._link_all_hp_params = link_in_order
    DeepSpeedZeroOptimizer_Stage3.load_state_dict = load_apart


def _tell_groups_apart(optimizer: Any, folder: Path) -> None:
    """What ZeRO-3's loader of universal checkpoints gives to all groups alike, given to each its own."""
    for flat in optimizer.fp32_partitioned_groups_flat:
        # All groups were given one tensor, which each of them then counts up at each step.
        state = optimizer.optimizer.state[flat]
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
    saved = torch.load(folder / "zero" / "optimizer_state.pt", weights_only=False)["param_groups"]
    # All groups were given the first one's learning rate and weight decay.
    for group, values in zip(optimizer.optimizer.param_groups, saved, strict=True):
        group.update((name, value) for name, value in values.items() if name != "params")


def _state_folder(checkpoint: Path) -> Path:
    return checkpoint / (checkpoint / "latest").read_text().strip()
