"""What optimizers keep per trained parameter, by transformers' names for them (``optim``)."""

from __future__ import annotations

_ADAM_BYTES = 8.0
"""First and second moment in 32 bits."""

_STATE_BYTES = {
    "sgd": 0.0,
    "lomo": 0.0,
    "adamw_torch_4bit": 1.0,
    "lion_8bit": 1.0,
    "paged_lion_8bit": 1.0,
    "rmsprop_bnb_8bit": 1.0,
    "adamw_8bit": 2.0,
    "adamw_bnb_8bit": 2.0,
    "adamw_torch_8bit": 2.0,
    "paged_adamw_8bit": 2.0,
    "ademamix_8bit": 3.0,
    "paged_ademamix_8bit": 3.0,
    "adagrad": 4.0,
    "lion_32bit": 4.0,
    "paged_lion_32bit": 4.0,
    "rmsprop": 4.0,
    "rmsprop_bnb": 4.0,
    "rmsprop_bnb_32bit": 4.0,
    "schedule_free_sgd": 4.0,
    "ademamix": 12.0,
    "paged_ademamix_32bit": 12.0,
}
"""Every other is an Adam, or keeps no more than one."""

_FACTORED = ("adafactor", "adalomo")
_LIKE_PARAMETERS = (
    "adamw_torch", "adamw_torch_fused", "adagrad", "rmsprop", "schedule_free_sgd", "schedule_free_adamw",
    "schedule_free_radam",
)  # fmt: skip
"""Keep their states in the parameters' own type (``zeros_like``). Those of bitsandbytes and torchao, and
Adafactor's, have a type of their own."""


def state_bytes(optim: str, *, hidden_size: int, parameter_bytes: int = 4) -> float:
    """Bytes of optimizer states per trained parameter.

    Args:
        optim: transformers' name. An unknown one counts as Adam in 32 bits, which few exceed.
        hidden_size: Of the model: factored optimizers keep a row and a column of each matrix.
        parameter_bytes: Of a parameter as the optimizer has it: 4, or 2 where it is trained in 16 bits.

    Source: the optimizers' own ``init_state`` (torch 2.13, bitsandbytes 0.49, torchao 0.18, schedulefree 1.4,
    transformers 5.6), and their states after steps on parameters in 32 and in 16 bits.
    """
    if optim in _FACTORED:
        return 8.0 / hidden_size
    in_32_bits = _STATE_BYTES.get(optim, _ADAM_BYTES)
    return in_32_bits * parameter_bytes / 4 if optim in _LIKE_PARAMETERS else in_32_bits


def is_paged(optim: str) -> bool:
    """Whether its states move to the host when the GPU is full (unified memory)."""
    return optim.startswith("paged_")
