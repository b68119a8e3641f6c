"""vLLM's arguments, checked without vLLM: names, types and choices from catalogue.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from runtime.core.lookup import did_you_mean

CATALOGUE = Path(__file__).with_name("catalogue.json")

_SERVE = "Ray Serve listens and routes; set route_prefix, or Serve's http_options"
_REPLICAS = "replicas are Ray Serve's; set autoscaling.min_replicas and max_replicas"
_ONE_NODE = "a replica lives on one node; spread the model over its GPUs with engine.tensor_parallel_size"
_TLS = "TLS ends before the cluster, at your load balancer or ingress"
_KEYS = "keys are the app's own: leave the spec's auth at keys, and make one with: tandem keys create NAME"

OWNED: dict[str, str] = {
    "model": "set the spec's own field model",
    "served_model_name": "clients use the spec's name, and its version such as name/v1",
    "api_key": _KEYS,
    "hf_token": "secrets never enter a spec; set HF_TOKEN in the environment of the cluster",
    "middleware": "Tandem runs vLLM's application as it is",
    "config": "write vLLM's arguments here, under engine",
    "log_config_file": "Ray keeps the replica's log",
    **dict.fromkeys(
        ["host", "port", "uds", "root_path", "grpc", "grpc_port", "headless", "uvicorn_log_level"], _SERVE
    ),
    **dict.fromkeys(
        ["ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers", "enable_ssl_refresh"],
        _TLS,
    ),
    **dict.fromkeys(["nnodes", "node_rank", "master_addr", "master_port"], _ONE_NODE),
    "api_server_count": _REPLICAS,
}
"""Arguments that vLLM has and Tandem sets: name to what to do instead."""

_SECRETS = ("api_key", "hf_token")

_PYTHON = {
    "boolean": bool,
    "integer": int,
    "number": float,
    "string": str,
    "array": list,
    "object": dict,
    "null": type(None),
}


def owned(name: str) -> str | None:
    """Why an argument is not the user's to set, and what to do instead; None where it is."""
    if name.startswith(("data_parallel_", "dp_supervisor_")):
        return _REPLICAS
    return OWNED.get(name)


@cache
def arguments() -> Mapping[str, Mapping[str, Any]]:
    """Every argument of the pinned vLLM: name to ``{"types": [...], "choices": [...]}``."""
    return json.loads(CATALOGUE.read_text())["arguments"]  # type: ignore[no-any-return]


def faults(engine: Mapping[str, Any]) -> list[str]:
    """One line for each argument that vLLM would not take or Tandem sets itself; empty when all is well."""
    found = (_fault(name, value) for name, value in engine.items())
    return [fault for fault in found if fault]


def _fault(name: str, value: Any) -> str | None:
    field = f"engine.{name}"
    if name in _SECRETS:
        return f"{field}: does not belong in a spec: {OWNED[name]}."  # the value is not repeated
    if reason := owned(name):
        return f"{field}: is {value!r}, but Tandem sets it: {reason}."
    entry = arguments().get(name)
    if entry is None:
        spelled = name.replace("-", "_")
        known = [known for known in arguments() if not owned(known)]
        hint = f"Did you mean {spelled!r}?" if spelled in known else did_you_mean(name, known)
        return f"{field}: vLLM has no such argument (value {value!r}). {hint}"
    if entry["types"] and not any(_is(value, kind) for kind in entry["types"]):
        return f"{field}: is {value!r}, but vLLM takes {_words(entry['types'])}. {_remedy(value, entry)}"
    choices = entry.get("choices")
    if choices and value is not None and value not in choices:
        hint = did_you_mean(str(value), map(str, choices))
        return f"{field}: is {value!r}, which vLLM does not know. {hint}"
    return None


def _is(value: Any, kind: str) -> bool:
    # A bool is an int in Python, but `max_num_seqs: true` is a mistake.
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _PYTHON[kind])


def _words(kinds: list[str]) -> str:
    hidden = {"null", "integer"} if "number" in kinds else {"null"}
    return " or ".join(kind for kind in kinds if kind not in hidden)


def _remedy(value: Any, entry: Mapping[str, Any]) -> str:
    if isinstance(value, str) and {"integer", "number", "boolean"} & set(entry["types"]):
        return "Write it without quotes."
    return "Correct the value, or leave it out for vLLM's default."
