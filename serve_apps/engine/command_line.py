"""Arguments as a mapping, spelled as the command line that vLLM's own parser reads."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any


def command_line(parser: argparse.ArgumentParser, arguments: Mapping[str, Any]) -> list[str]:
    """``{"max_model_len": 512, "enforce_eager": True}`` as ``["--max-model-len=512", "--enforce-eager"]``.

    Args:
        parser: Says which argument is a switch, a list or a single value.
        arguments: Values by argument name; None leaves an argument at its default.
    """
    actions = {action.dest: action for action in parser._actions if action.option_strings}
    words: list[str] = []
    for name, value in arguments.items():
        if value is not None:
            words += _spell(actions[name], value)
    return words


def _spell(action: argparse.Action, value: Any) -> list[str]:
    flags = [option for option in action.option_strings if option.startswith("--")]
    if isinstance(value, bool) and action.nargs == 0:
        wanted = [flag for flag in flags if flag.startswith("--no-") is not value]
        return wanted[:1]
    if isinstance(value, list) and action.nargs in ("+", "*"):
        return [flags[0], *map(_word, value)]
    return [f"{flags[0]}={_word(value)}"]


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
