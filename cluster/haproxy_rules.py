"""HAProxy finds the app by the request's ``model``: rules put into the config that Ray writes, then HAProxy.

    python haproxy_rules.py REAL_HAPROXY -db -f CONFIG ...

Ray starts this wherever it would start HAProxy. A request to ``/v1/...`` whose model is known gets its app's
prefix before its path; Ray's own rules then send it straight to a replica. What a model's prefix is, HAProxy
learns from the front's answers; what it does not know goes to the front. Standard library only: it runs with
every reload.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

ROUTE_HEADER = "x-tandem-route"
"""With it the front tells which prefix a model has. HAProxy takes it out of the answer."""

BY_PREFIX = ".prefix"
"""An app whose deployment's name ends like this sends requests that begin alike to the same replica."""

_MARK = "# Tandem: an app by the request's model"
_FRONTEND = re.compile(r"^frontend http_frontend\n    bind (?P<host>\S+):\d+\n", re.MULTILINE)
_PREFIX = re.compile(r"^    acl is_\S+ path (?P<prefix>/\S+)$", re.MULTILINE)
_DEPLOYMENT = re.compile(
    r'^    http-request set-var-fmt\(txn\.serve_deployment\) "(?P<deployment>[^"]+)" if is_(?P<backend>\S+) ',
    re.MULTILINE,
)
_ERRORFILE = re.compile(r"^    errorfile (?P<status>50[234]) .*$", re.MULTILINE)
_WIDE_BIND = re.compile(r"^(?P<word> +bind )\*?:(?=\d+$)", re.MULTILINE)


def amended(config: str, models_map: Path) -> str:
    """Ray's config with our rules, or as it is where it looks otherwise (the front then does it all).

    Args:
        config: The text that Ray wrote.
        models_map: File of HAProxy's map from model to prefix; it may be empty and must exist.
    """
    frontend = _FRONTEND.search(config)
    prefixes = sorted({match["prefix"] for match in _PREFIX.finditer(config)} - {"/"})
    if frontend is None or _MARK in config:
        return config
    if frontend["host"] == "127.0.0.1":
        # Statistics and metrics are nobody else's business either.
        config = _WIDE_BIND.sub(lambda match: f"{match['word']}127.0.0.1:", config)
        frontend = _FRONTEND.search(config) or frontend
    by_prefix = [m["backend"] for m in _DEPLOYMENT.finditer(config) if m["deployment"].endswith(BY_PREFIX)]
    rules = _rules(prefixes, models_map) if prefixes else ""
    rules += _prefix_rules(config, by_prefix) if by_prefix else ""
    config = config[: frontend.end()] + f"    {_MARK}\n{rules}" + config[frontend.end() :]
    for backend in by_prefix:
        config = config.replace(f"\nbackend {backend}\n", f"\nbackend {backend}\n{_BALANCE_BY_PREFIX}", 1)
    return _ERRORFILE.sub(_error, config)


def _rules(prefixes: list[str], models_map: Path) -> str:
    # One line each: HAProxy reads no line of more than 64 words.
    lines = [f"acl tandem_prefixed path_beg {prefix}/" for prefix in prefixes]
    lines += [f"acl tandem_prefixed path {prefix}" for prefix in prefixes]
    lines += [f"acl tandem_here var(txn.tandem_route) -m str {prefix}" for prefix in prefixes]
    lines += [
        "acl tandem_json req.hdr(content-type) -m beg -i application/json",
        # Until it is all there or the buffer is full: a model that comes after that is the front's work.
        # Below a prefix too: where the body came after the headers, HAProxy would not notice a client that
        # leaves.
        "acl tandem_form req.hdr(content-type) -m beg -i multipart/form-data",
        "http-request wait-for-body time 60s if METH_POST tandem_json or METH_POST tandem_form",
        _http_error(408, "The body did not come within 60 s.", "slow_body"),
        "http-request set-var(txn.tandem_model) req.body,json_query('$.model') "
        "if METH_POST tandem_json !tandem_prefixed",
        f"http-request set-var(txn.tandem_route) var(txn.tandem_model),map({models_map}) "
        "if { var(txn.tandem_model) -m found }",
        # Of an app that is gone the map still knows: only prefixes of today count.
        "http-request set-path %[var(txn.tandem_route)]%[path] if tandem_here",
        f"http-response set-map({models_map}) %[var(txn.tandem_model)] %[res.hdr({ROUTE_HEADER})] "
        f"if {{ var(txn.tandem_model) -m found }} {{ res.hdr({ROUTE_HEADER}) -m found }}",
        # The app does not know the model (an adapter moved to another app): ask the front the next time.
        f"http-response del-map({models_map}) %[var(txn.tandem_model)] "
        "if { status 404 } { var(txn.tandem_route) -m found }",
        f"http-response del-header {ROUTE_HEADER}",
    ]
    return "".join(f"    {line}\n" for line in lines)


_PREFIX_BYTES = 512
"""So much of a prompt decides: longer than what all prompts of an app begin with, shorter than a document."""

# In this order: what is common first, since a miss costs a look through the body.
_BEGINNINGS = (
    "messages[0].content",
    "messages[0].content[0].text",
    "prompt",
    "input",
    "input[0].content",
)

_TOKENS = (0, 8, 16, 32, 64, 96, 128)
"""Of a prompt of token ids HAProxy can take single ones only; of one of texts, the first."""

# Bounded loads: a replica with half as many requests again as the others gets no more of its own.
_BALANCE_BY_PREFIX = """    balance hash var(txn.tandem_prefix)
    hash-type consistent djb2 avalanche
    hash-balance-factor 150
"""


def _prefix_rules(config: str, backends: list[str]) -> str:
    """What a request begins with: the prompt, or the system's and the first message of the user.

    So a conversation stays with the replica that has its beginning in the KV cache.
    """
    paths = [m["prefix"] for name in backends for m in re.finditer(_path_acl(name), config, re.MULTILINE)]
    text = f"bytes(0,{_PREFIX_BYTES})"
    tokens = ".".join(f"%[var(txn.tandem_token_{n})]" for n in _TOKENS)
    lines = [f"acl tandem_by_prefix path_beg {path}/" for path in paths]
    lines += [
        "acl tandem_has_prefix var(txn.tandem_prefix) -m found",
        "acl tandem_system req.body,json_query('$.messages[0].role') -m str system developer",
        *(
            f"http-request set-var(txn.tandem_prefix) req.body,json_query('$.{field}'),{text} "
            "if METH_POST tandem_json tandem_by_prefix !tandem_has_prefix"
            for field in _BEGINNINGS
        ),
        f"http-request set-var(txn.tandem_user) req.body,json_query('$.messages[1].content'),{text} "
        "if METH_POST tandem_json tandem_by_prefix tandem_system",
        'http-request set-var-fmt(txn.tandem_prefix) "%[var(txn.tandem_prefix)]%[var(txn.tandem_user)]" '
        "if { var(txn.tandem_user) -m found }",
        *(
            f"http-request set-var(txn.tandem_token_{n}) req.body,json_query('$.prompt[{n}]') "
            "if METH_POST tandem_json tandem_by_prefix !tandem_has_prefix"
            for n in _TOKENS
        ),
        f'http-request set-var-fmt(txn.tandem_prefix) "{tokens}" '
        "if !tandem_has_prefix { var(txn.tandem_token_0) -m found }",
    ]
    return "".join(f"    {line}\n" for line in lines)


def _path_acl(backend: str) -> str:
    return rf"^    acl is_{re.escape(backend)} path (?P<prefix>/\S+)$"


def _error(match: re.Match[str]) -> str:
    """No replica answered, or one was lost on the way."""
    line = _http_error(int(match["status"]), "No replica answered. Try again.", "no_replica")
    return f"    {line} hdr retry-after 1"


def _http_error(status: int, message: str, code: str) -> str:
    """A refusal of HAProxy's own in OpenAI's shape."""
    error = {"message": message, "type": "server_error", "param": None, "code": code}
    text = json.dumps({"error": error}).replace('"', '\\"')
    return f'http-error status {status} content-type application/json string "{text}"'


def main(arguments: list[str]) -> None:
    """Amend the config and become HAProxy."""
    binary, *rest = arguments
    config = Path(rest[rest.index("-f") + 1])
    models_map = config.with_name("models.map")
    models_map.touch()
    config.write_text(amended(config.read_text(), models_map))
    os.execv(binary, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
