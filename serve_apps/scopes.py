"""What a key opens: which routes, and which models by the name in the request's body."""

from __future__ import annotations

import json
from typing import Any

from serve_apps.admission import Replay
from serve_apps.refusal import ASGI, Refused
from storage.keys import KeyRecord

_MAX_HEADER_BYTES = 200

_ADMIN_BELOW_V1 = {"/v1/load_lora_adapter", "/v1/unload_lora_adapter"}

# /invocations is not among them: there a header of SageMaker's says the model, whatever the body says.
# vLLM's other routes put the engine to sleep, change its weights, call into its workers: they want an admin's
# key, and so does whatever a newer vLLM adds outside /v1 and /v2.
_INFERENCE = {
    "/classify", "/cohere/v2/chat", "/detokenize", "/generative_scoring", "/inference/v1/generate",
    "/pooling", "/rerank", "/score", "/tokenize", "/tokenizer_info",
    "/docs", "/load", "/metrics", "/openapi.json", "/ready", "/readyz", "/version",
}  # fmt: skip


def header(scope: ASGI, wanted: bytes) -> str | None:
    """The first header of a name (lower case), cut to 200 bytes: it may go into a log."""
    found = next((value for name, value in scope["headers"] if name == wanted), None)
    return found[:_MAX_HEADER_BYTES].decode("latin-1") if found else None


def is_inference(path: str) -> bool:
    """Whether a key for inference opens the path (without the app's prefix)."""
    return path in _INFERENCE or (path.startswith(("/v1/", "/v2/")) and path not in _ADMIN_BELOW_V1)


def check_permission(key: KeyRecord, path: str) -> None:
    """Refuse a path that the key does not open.

    Raises:
        Refused: 403.
    """
    if key.scopes.permissions != "admin" and not is_inference(path):
        raise Refused(
            403,
            f"The API key {key.id} is for inference, and {path} wants one for admin: "
            "tandem keys create NAME --admin",
            type="permission_error",
            code="permission_denied",
        )


async def allowed_model(key: KeyRecord, scope: ASGI, receive: Replay, *, default: str) -> str:
    """The model that the request names, when the key's scope has it.

    Args:
        receive: The request's; the body can be read from it again afterwards.
        default: What a request without a model means.

    Raises:
        Refused: 403: it has not; 400: the body cannot be read.
    """
    if scope["type"] == "websocket":
        # Its model comes in a later message, and may change.
        raise _not_in_scope(key, "a WebSocket's model")
    body = await receive.body()
    names = await _models_in(scope, body, default)
    for name in [default if name is None else name for name in names]:
        if not isinstance(name, str) or not key.allows_model(name):
            raise _not_in_scope(key, f"model {name!r:.200}")
    return default if names[-1] is None else str(names[-1])


async def _models_in(scope: ASGI, body: bytes, default: str) -> list[Any]:
    """Every value of ``model`` in a body, JSON or form; ``default`` where there is none."""
    if (header(scope, b"content-type") or "").lower().startswith("multipart/form-data"):
        return await _models_in_form(scope, body) or [default]
    try:
        # All of them: where a field comes twice, the next reader may take the other one.
        pairs = json.loads(body, object_pairs_hook=list) if body else []
        return [value for name, value in pairs if name == "model"] or [default]
    except (ValueError, TypeError, RecursionError):
        raise _unreadable() from None


async def _models_in_form(scope: ASGI, body: bytes) -> list[Any]:
    """The ``model`` fields of a form, read by what the application behind reads it with (audio comes so)."""
    from starlette.exceptions import HTTPException
    from starlette.formparsers import MultiPartException
    from starlette.requests import Request

    async def receive() -> ASGI:
        return {"type": "http.request", "body": body}

    try:
        async with Request(scope, receive).form() as form:
            return form.getlist("model")
    # AssertionError: python-multipart is not installed (the core environment, where no audio is heard).
    except (HTTPException, MultiPartException, AssertionError):
        raise _unreadable() from None


def _unreadable() -> Refused:
    return Refused(400, "The body cannot be read. Send JSON with a field 'model'.", code="invalid_body")


def _not_in_scope(key: KeyRecord, what: str) -> Refused:
    return Refused(
        403,
        f"{what} is not in the scope of the API key {key.id}, which has: {', '.join(key.scopes.models)}.",
        type="permission_error",
        code="model_not_allowed",
        param="model",
    )
