"""Tandem: one Ray cluster that fine-tunes and serves large language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.app import App
    from runtime.run import Run
    from runtime.sdk import Tandem

__version__ = "0.1.0"
__all__ = ["App", "Run", "Tandem", "__version__"]

_HOME = {"Tandem": "runtime.sdk", "Run": "runtime.run", "App": "runtime.app"}


def __getattr__(name: str) -> Any:
    """Import the SDK only when it is used: the command line's help must start at once."""
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'runtime' has no attribute {name!r}")
