"""The error line worth showing: vLLM's processes write it to this process's own output, not to us."""

from __future__ import annotations

import os
import re
import traceback
from pathlib import Path

_TAIL_BYTES = 256 * 1024
_ERROR_LINE = re.compile(r"(?:^|\s|\])([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Refused)): (\S.*)$")
# What vLLM raises to say that something else went wrong.
_ECHOES = (
    "Engine core initialization failed",
    "WorkerProc initialization failed",
    "See root cause",
    "See stack trace",
)


def last_error(error: BaseException) -> str:
    """The last error line that this process or its children wrote, or ``error`` itself if that says more."""
    own = "".join(traceback.format_exception_only(error)).strip()
    if not any(echo in own for echo in _ECHOES):
        return own
    written = [line for descriptor in (1, 2) for line in _errors(_tail(descriptor))]
    return written[-1] if written else own


def _errors(text: str) -> list[str]:
    found = (_ERROR_LINE.search(line.rstrip()) for line in text.splitlines())
    lines = [f"{match[1]}: {match[2]}" for match in found if match]
    return [line for line in lines if not any(echo in line for echo in _ECHOES)]


def _tail(descriptor: int) -> str:
    """The end of the file that an output descriptor writes to; empty where it is no file."""
    path = Path(f"/proc/self/fd/{descriptor}")
    try:
        if not path.resolve().is_file():
            return ""
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
