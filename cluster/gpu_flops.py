"""What a GPU can do at best: dense bfloat16 tensor FLOPs by product, from the vendors' datasheets."""

from __future__ import annotations

_TERA = 1e12
_DENSE_BF16_TFLOPS = {
    # The datasheets' figures with sparsity are twice these. V100 and T4 have float16 only.
    "B200": 2250, "GH200": 989, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989,
    "A100": 312, "L40S": 362, "L40": 181, "L4": 121, "A40": 150, "A10G": 70, "A10": 125, "A30": 165,
    "RTX 6000 Ada": 364, "RTX A6000": 155, "RTX A5000": 111, "RTX A4000": 77,
    "RTX 4090": 165, "RTX 4080": 97, "RTX 3090": 71, "RTX 3060": 25, "V100": 125, "T4": 65,
}  # fmt: skip


def peak_flops(product: str) -> float | None:
    """Dense bfloat16 FLOPs a second of a GPU, by its name as NVML and torch spell it; None where unknown.

    The longest name that stands in ``product`` counts: ``NVIDIA H100 PCIe`` is no ``H100`` with SXM.
    """
    words = product.replace("-", " ").lower()
    for name in sorted(_DENSE_BF16_TFLOPS, key=len, reverse=True):
        if f" {name.lower()} " in f" {words} " or words.endswith(name.lower()):
            return _DENSE_BF16_TFLOPS[name] * _TERA
    return None
