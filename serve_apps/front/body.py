"""The ``model`` that a request's body names: JSON, or a form as audio is sent."""

from __future__ import annotations

import email
import email.policy
import json
from urllib.parse import parse_qs

from serve_apps.refusal import Refused


def model_in(content_type: str, body: bytes) -> str | None:
    """The model; None where the body names none.

    Raises:
        Refused: 400: the body is not what its type says.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if not body:
        return None
    if kind == "multipart/form-data":
        return _in_multipart(content_type, body)
    if kind == "application/x-www-form-urlencoded":
        return parse_qs(body.decode(errors="replace")).get("model", [None])[0]
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "The body cannot be read as JSON.", code="invalid_body") from None
    model = parsed.get("model") if isinstance(parsed, dict) else None
    return model if isinstance(model, str) else None


def _in_multipart(content_type: str, body: bytes) -> str | None:
    # A form is a MIME message less its first header, so the mail parser of the standard library reads it.
    head = f"Content-Type: {content_type}\r\n\r\n".encode("latin-1", errors="replace")
    message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
    for part in message.iter_parts():
        if part.get_param("name", header="content-disposition") == "model":
            payload = part.get_payload(decode=True)
            return payload.decode(errors="replace").strip() if isinstance(payload, bytes) else None
    return None
