"""The ``model`` that a request's body names: JSON, or a form as audio is sent."""

from __future__ import annotations

import json
from email.message import Message
from email.parser import BytesHeaderParser
from typing import Any
from urllib.parse import parse_qs

from serve_apps.refusal import Refused

_MULTIPART, _URLENCODED = "multipart/form-data", "application/x-www-form-urlencoded"


class _Object(list[tuple[str, Any]]):
    """A JSON object with all its fields, also those that come twice."""


def is_form(content_type: str) -> bool:
    """Whether a body of this type is a form; everything else is read as JSON."""
    return _kind(content_type) in (_MULTIPART, _URLENCODED)


def model_in(content_type: str, body: bytes) -> str | None:
    """The model; None where the body names none.

    Raises:
        Refused: 400: the body is not what its type says, or its model depends on who reads it.
    """
    if not body:
        return None
    if _kind(content_type) == _MULTIPART:
        return _in_multipart(content_type, body)
    if _kind(content_type) == _URLENCODED:
        return parse_qs(body.decode(errors="replace")).get("model", [None])[0]
    try:
        parsed = json.loads(body, object_pairs_hook=_Object)
    except (ValueError, RecursionError):
        raise Refused(400, "The body cannot be read as JSON.", code="invalid_body") from None
    models = [value for name, value in parsed if name == "model"] if isinstance(parsed, _Object) else []
    if len(models) > 1:
        # HAProxy takes the first one: it would learn the way of another app's model.
        raise Refused(
            400, "The body has the field 'model' more than once.", code="invalid_body", param="model"
        )
    return models[0] if models and isinstance(models[0], str) else None


def _kind(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _in_multipart(content_type: str, body: bytes) -> str | None:
    """The form's field ``model``. Cut by hand, as audio is long and no parser is needed for it."""
    head = Message()
    head["content-type"] = content_type
    boundary = str(head.get_boundary("")).encode("latin-1", errors="replace")
    if not boundary:
        raise Refused(400, "The form has no boundary in its content-type.", code="invalid_body")
    for part in body.split(b"--" + boundary):
        lines, _, value = part.partition(b"\r\n\r\n")
        if b"model" not in lines:
            continue
        fields = BytesHeaderParser().parsebytes(lines.strip())
        if fields.get_param("name", header="content-disposition") == "model":
            return value.decode(errors="replace").strip()
    return None
