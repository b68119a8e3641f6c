"""What vLLM makes of a model's weights in 16 bits while it loads them: ``engine.quantization``.

Source: vLLM 0.32, config/quantization.py (``_ONLINE_SHORTHANDS``) and model_executor/layers/quantization/.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.gpus import Gpu

# Of the first product of each: later ones have more (8.6, 12.0). Source: NVIDIA, CUDA GPU compute capability.
_CAPABILITY = {
    "Pascal": 60,
    "Volta": 70,
    "Turing": 75,
    "Ampere": 80,
    "Ada": 89,
    "Hopper": 90,
    "Blackwell": 100,
}


@dataclass(frozen=True)
class Online:
    """One way to quantize while loading."""

    linear_bytes: float | None
    """Of a parameter of a linear layer, its scales with it; None: it stays as it is."""

    expert_bytes: float
    """Of a parameter of a routed expert."""

    capability: int = 75
    """The least compute capability, times ten, that vLLM starts on, or that its kernels are built for."""


ONLINE = {
    "fp8": Online(1.0, 1.0),
    "fp8_per_tensor": Online(1.0, 1.0),
    "fp8_per_channel": Online(1.0, 1.0),
    "fp8_per_block": Online(1.0 + 4 / 128**2, 1.0 + 4 / 128**2),
    "mxfp8": Online(1.0 + 1 / 32, 1.0 + 1 / 32),
    # vLLM starts with it from 75 on; the kernel that packs the weights is Triton's, which begins at 80.
    "mxfp4": Online(0.5 + 1 / 32, 0.5 + 1 / 32, 80),
    "experts_int8": Online(None, 1.0, 80),
    "int8_per_channel_weight_only": Online(None, 1.0),
    "nvfp4_per_token": Online(None, 0.5 + 1 / 16, 100),
    # Since 0.28 of a plugin, vllm-bnb-plugin, which is not in the pinned environment.
    "bitsandbytes": Online(0.5 + 4 / 64, 0.5 + 4 / 64),
    "fp_quant": Online(0.5, 0.5, 100),
}
"""By vLLM's own names. Formats that only a model's own files can have are not among them."""


def can_compute(gpu: Gpu, capability: int) -> bool:
    """Whether a GPU has at least this compute capability, times ten."""
    return _CAPABILITY.get(gpu.architecture, 0) >= capability
