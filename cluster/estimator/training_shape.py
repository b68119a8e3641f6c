"""A training as the estimator looks at it."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.estimator.activations import Precision
from cluster.estimator.model import ModelShape


@dataclass(frozen=True)
class Swap:
    """Weights on a disk (``offload_param.device: nvme``): what of them is in the host's memory."""

    buffer_count: int = 5
    buffer_size: int = 100_000_000
    """Numbers, not bytes, as of all sizes here."""

    max_in_cpu: int = 1_000_000_000


@dataclass(frozen=True)
class Zero:
    """DeepSpeed's ZeRO, in its own words."""

    stage: int
    offload_optimizer: bool = False
    """To the host's memory or its disk."""

    offload_param: bool = False
    """The same."""

    optimizer_buffer_count: int | None = None
    """``offload_optimizer.buffer_count`` where that is to a disk; None: it is not."""

    param_swap: Swap | None = None
    """Where ``offload_param`` is to a disk; None: it is not."""

    sub_group_size: int = 1_000_000_000
    """Numbers, not bytes."""

    reduce_bucket_size: int = 500_000_000
    """Numbers, not bytes."""

    max_live_parameters: int = 1_000_000_000
    overlap_comm: bool = False

    @property
    def optimizer_on_disk(self) -> bool:
        """Whether the optimizer's states are on the host's disk."""
        return self.optimizer_buffer_count is not None


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated at a time, in the trainer's words: batches that pass without gradients."""

    per_device_eval_batch_size: int
    logits_bytes: int = 10
    """For each token and word of the vocabulary, of logits and what the loss makes of them; 0: the model
    writes answers (``predict_with_generate``) and needs the last token's only."""

    max_new_tokens: int = 0
    """Of an answer; 0: none is written."""

    num_beams: int = 1


@dataclass(frozen=True)
class TrainingShape:
    """Everything about a training that decides how much memory one of its workers needs."""

    model: ModelShape
    trained: int
    """Parameters that are trained; of LoRA, the adapter's."""

    frozen_bytes: int
    """Of the weights that are not, as they are loaded."""

    precision: Precision
    optim: str = "adamw_torch"
    zero: Zero | None = None
    """None: plain DDP, which one worker alone uses, too."""

    num_workers: int = 1
    per_device_train_batch_size: int = 1
    gradient_accumulation_steps: int = 1
    cutoff_len: int = 2048
    """Tokens of the longest row, and of every packed one."""

    rows_at_once: int = 1
    """Rows that one row of the dataset becomes: 2 of a pair (DPO, reward models)."""

    gradient_checkpointing: bool = True
    lora_rank: int = 0
    """0: no adapter is trained."""

    reference_bytes: int = 0
    """Of a second model that the loss compares with."""

    flash_attention: bool = True
    evaluation: Evaluation | None = None
    """None: it does not evaluate."""

    @property
    def tokens(self) -> int:
        """That pass through the model at a time."""
        return self.per_device_train_batch_size * self.cutoff_len * self.rows_at_once

    @property
    def accumulates(self) -> bool:
        """Whether gradients are there in the forward pass already."""
        return self.gradient_accumulation_steps > 1
