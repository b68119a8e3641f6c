"""Reads LLaMA-Factory's own YAML and JSON files as LLaMA-Factory reads them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from runtime.core.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML as OmegaConf takes it, which LLaMA-Factory reads with: 1e-4 is a number, and a date is text."""


_FLOAT = "tag:yaml.org,2002:float"
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _FLOAT, re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+"), list("-+.0123456789")
)


def read(path: Path) -> dict[str, Any]:
    """The file's arguments.

    Raises:
        ConfigError: it cannot be read, is no mapping, or takes a value from elsewhere (``${...}``).
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}). Check the path; it is taken from {Path.cwd()}."
        ) from None
    try:
        data = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=_Loader)
    except ValueError as error:
        raise ConfigError(f"{path}: is not valid JSON: {error}. Repair it there.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        # Not the parser's own text: it quotes the line, which may hold a secret.
        raise ConfigError(f"{path}: is not valid YAML{where}. Repair it there.") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds no arguments of LLaMA-Factory, but {type(data).__name__}.")
    for name, value in data.items():
        if isinstance(value, str) and "${" in value:
            raise ConfigError(
                f"{path}: {name} takes its value from elsewhere (${{...}}). Write the value there."
            )
    return {str(name): value for name, value in data.items()}
