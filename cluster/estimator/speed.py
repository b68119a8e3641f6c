"""How fast a training would be, as a range: from the GPU's FLOPs and the share of them that is reached."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.estimator.training_shape import TrainingShape

MFU = (0.2, 0.5)
"""Model FLOPs utilization of real trainings, on one node or with fast networks. Source: PaLM (0.46), Llama 3
(0.38 to 0.43), and what single GPUs reach with small batches (0.2 and more)."""


@dataclass(frozen=True)
class Speed:
    """A range."""

    least_tokens_per_s: float
    most_tokens_per_s: float
    flops_per_token: float

    def seconds(self, tokens: float) -> tuple[float, float]:
        """For so many tokens: at best, at worst."""
        return tokens / self.most_tokens_per_s, tokens / self.least_tokens_per_s


def flops_per_token(shape: TrainingShape) -> float:
    """2 FLOPs a parameter forward, 2 back through it, 2 for the gradient of a trained one; attention besides.

    With gradient checkpointing the forward pass is made twice. Source: Kaplan et al. 2020, section 2.1.
    """
    model = shape.model
    active = model.parameters.active
    # Queries by keys and scores by values, over half of the rows' tokens on average.
    attention = 2 * model.layers * model.attention_heads * model.head_dim * shape.cutoff_len
    forward = 2.0 * active + attention
    trained = min(shape.trained, active)
    return forward * (2 if shape.gradient_checkpointing else 1) + forward + 2.0 * trained + attention


def training_speed(shape: TrainingShape, peak_flops: float) -> Speed:
    """Of all workers together.

    Args:
        peak_flops: Dense 16-bit FLOPs a second of each GPU.
    """
    each = flops_per_token(shape)
    least, most = (mfu * peak_flops * shape.num_workers / each for mfu in MFU)
    return Speed(least, most, each)
