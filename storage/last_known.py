"""What a store said last, for when it does not answer: small JSON values, kept on this node."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from runtime.core.errors import Unreachable
from runtime.core.log import get_logger
from runtime.core.places import file_cache
from storage.local_files import write_json
from storage.patience import patience

_log = get_logger(__name__)

PATIENCE_S = 5.0
"""How long a store is waited for whose last answer is known."""


def answer(address: str, ask: Callable[[], Any]) -> Any:
    """What ``ask`` returns; where the store cannot be reached, what it returned last time, with a warning.

    Args:
        address: Names the question, for good: the same address always asks the same.
        ask: Returns plain JSON data, or None for "there is nothing", which is not kept.

    Raises:
        Unreachable: the store does not answer, and never did on this node.
    """
    file = _file(address)
    known = _read(file)
    try:
        with patience(PATIENCE_S) if known is not None else nullcontext():
            found = ask()
    except Unreachable as error:
        if known is None:
            raise
        _log.warning("%s Going on with what it said last time about %s.", error, address)
        return known
    try:
        if found is None:
            # What was removed must not come back when the store is silent.
            file.unlink(missing_ok=True)
        elif found != known:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, found)
    except OSError as error:
        # The answer is there, and only its memory is not.
        _log.warning("%s: %s; it will not be known when the store is silent", file, error.strerror)
    return found


def _read(file: Path) -> Any:
    with suppress(OSError, ValueError):
        return json.loads(file.read_text())
    return None


def _file(address: str) -> Path:
    return file_cache() / "known" / f"{hashlib.sha256(address.encode()).hexdigest()[:32]}.json"
