"""What Ray Serve says of an app, in one readable piece: the cause, without the tracebacks around it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# How Python prints an exception of ours; what follows is the message, to the end or to the next traceback.
_OURS = re.compile(
    r"^runtime\.core\.errors\.\w+: (?P<message>.*?)"
    r"(?=\n\nThe above exception|\n\nDuring handling|\nTraceback |\Z)",
    re.MULTILINE | re.DOTALL,
)
_ANY_ERROR = re.compile(r"^(?P<message>[A-Za-z_][\w.]*(?:Error|Exception): .*)$", re.MULTILINE)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def why(application: Mapping[str, Any]) -> str:
    """Why an app is in the state that it is in.

    Args:
        application: Serve's details of one app, as its REST API gives them: ``applications[name]``.

    Returns:
        Tandem's own message where the app failed with one, else the last error line, else what Serve says;
        empty when Serve says nothing.
    """
    deployments = (application.get("deployments") or {}).values()
    messages = [*(d.get("message") or "" for d in deployments), application.get("message") or ""]
    texts = [_COLOUR.sub("", message).strip() for message in messages]
    for pattern in (_OURS, _ANY_ERROR):
        found = [match["message"].strip() for text in texts for match in pattern.finditer(text)]
        if found:
            return found[-1]
    return "\n".join(text for text in texts if text)
