"""A stand-in for torchaudio in the CPU train environment.

torchaudio has no build for CPU torch of this version, and LLaMA-Factory imports it at the top of a file that
text training never runs. Importing works; using it says why it cannot.
"""

from typing import Any

__version__ = "0.0.0"


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    raise RuntimeError(
        f"torchaudio.{name} is not available: the CPU train environment has no torchaudio. "
        "Audio data needs the CUDA environment (TANDEM_FLAVOUR=cuda)."
    )
