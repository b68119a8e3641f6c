"""The request log: one JSON line per request, never a key, a body only when asked for."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from serve_apps.tally import Tally

_log = logging.getLogger("tandem.requests")


def log_to_stderr() -> None:
    """Let the lines go to standard error as they are: in a Serve replica, to its log file."""
    if not _log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    _log.propagate = False


def log_request(tally: Tally, **fields: Any) -> None:
    """Write one line.

    Args:
        tally: Its counts.
        fields: What else is known: app, method, path, status, queued_s, request_id, traceparent, prompt.
    """
    line = {
        "at": round(time.time(), 3),
        "key_id": tally.key_id,
        "model": tally.model,
        "prompt_tokens": tally.prompt_tokens,
        "completion_tokens": tally.completion_tokens,
        "ttft_s": _since(tally, tally.first_token_at),
        "latency_s": _since(tally, time.monotonic()),
        **fields,
    }
    _log.info("%s", json.dumps(line, ensure_ascii=False))


def _since(tally: Tally, at: float | None) -> float | None:
    return None if at is None else round(at - tally.began_at, 6)
