"""DeepSpeed presets: ``deepspeed: zero2`` in a spec means ``zero2.json`` here.

``"auto"`` is filled in by transformers from the LLaMA-Factory arguments, so that batch sizes and
precision have one home. To add a preset, add a file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runtime.core.errors import ConfigError
from runtime.core.lookup import did_you_mean
from storage.location import locate


def names() -> list[str]:
    """The presets that exist."""
    return sorted(file.stem for file in Path(__file__).parent.glob("*.json"))


def resolve(deepspeed: str | dict[str, Any] | None) -> dict[str, Any] | None:
    """The DeepSpeed configuration that a spec's ``deepspeed`` field means.

    Args:
        deepspeed: A preset's name, the path or address of a JSON file, the configuration itself, or None.

    Raises:
        ConfigError: no such preset, or the file cannot be read or holds no JSON object.
        StorageError: the address cannot be reached, or nothing is there.
    """
    if deepspeed is None or isinstance(deepspeed, dict):
        return deepspeed
    if "://" in deepspeed:
        return _parsed(locate(deepspeed, field="deepspeed").read_bytes(), deepspeed)
    if "/" not in deepspeed and not deepspeed.endswith(".json"):
        if deepspeed not in names():
            raise ConfigError(
                f"deepspeed: is {deepspeed!r}, which is no preset. {did_you_mean(deepspeed, names())} Or "
                "give the path or address of a DeepSpeed JSON file, or its content."
            )
        return _read(Path(__file__).parent / f"{deepspeed}.json")
    return _read(Path(deepspeed).expanduser())


def _read(file: Path) -> dict[str, Any]:
    try:
        return _parsed(file.read_bytes(), str(file))
    except OSError as error:
        raise ConfigError(
            f"deepspeed: is {str(file)!r}, which cannot be read ({error.strerror}). Check the path; it is "
            f"taken from {Path.cwd()}. Presets: {', '.join(names())}."
        ) from None


def _parsed(text: bytes, origin: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"deepspeed: {origin} is not valid JSON: {error}. Repair the file.") from None
    if not isinstance(content, dict):
        raise ConfigError(
            f"deepspeed: {origin} holds {type(content).__name__}, but DeepSpeed wants an object."
        )
    return content
