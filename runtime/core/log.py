"""Logging: one logger per module under ``tandem``; only the command line configures output."""

from __future__ import annotations

import logging


def get_logger(name: str) -> logging.Logger:
    """The logger for a module, ``tandem.<name>``. Call it with ``__name__``."""
    return logging.getLogger(f"tandem.{name}")


def configure(verbose: bool) -> None:
    """Send Tandem's log to standard error: warnings, or everything when ``verbose``."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("tandem").setLevel(logging.DEBUG if verbose else logging.WARNING)
