"""What a row must hold, so that LLaMA-Factory neither drops it nor fails on it.

LLaMA-Factory drops bad rows with a warning at most: a lost row is refused here instead.

Source: llamafactory 0.9.5, data/converter.py, data/processor/ and data/formatter.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from runtime.core.errors import ConfigError
from runtime.core.lookup import did_you_mean
from storage.dataset_info import DatasetFormat
from storage.dataset_rows import shown

_ASKS = ("user", "observation")
_ANSWERS = ("assistant", "function")
_KINDS = (*_ASKS, *_ANSWERS, "system")


class NotText(ConfigError):
    """A value that must be text is not."""


def check_row(row: Mapping[str, Any], form: DatasetFormat) -> None:
    """Refuse a row that LLaMA-Factory would drop or fail on.

    Raises:
        ConfigError: names the field, its value and the remedy, but not the file and line.
    """
    if form.formatting == "alpaca":
        _check_alpaca(row, form)
    else:
        _check_turns(row, form)
    _text(row, form, "system", needed=False)
    _check_tools(row, form)
    for word in ("images", "videos", "audios"):
        value = form.value(row, word)
        if value is not None and not isinstance(value, str | list | dict):
            raise ConfigError(f"{form.columns[word]} is {shown(value)}, but must be a list of paths.")
    if "kto_tag" in form.columns and not isinstance(form.value(row, "kto_tag"), bool):
        name = _present(row, form.columns["kto_tag"])
        raise ConfigError(f"{name} is {shown(row[name])}, but must be true or false, without quotes.")


def _present(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        raise ConfigError(f"has no {name}. Add it, or rename a column. {did_you_mean(name, map(str, row))}")
    return name


def _text(row: Mapping[str, Any], form: DatasetFormat, word: str, *, needed: bool = True) -> None:
    value = form.value(row, word)
    if isinstance(value, str) or (value is None and not needed):
        return
    name = _present(row, form.columns[word])
    raise NotText(
        f"{name} is {shown(value)}, but must be text: LLaMA-Factory drops the row or fails on it. Write "
        "text, or remove the row."
    )


def _check_alpaca(row: Mapping[str, Any], form: DatasetFormat) -> None:
    _text(row, form, "query", needed=False)
    _text(row, form, "prompt", needed=not form.value(row, "query"))
    for word in ("chosen", "rejected") if form.ranking else ("response",):
        if word in form.columns:
            _text(row, form, word)
    history = form.value(row, "history")
    if history is None:
        return
    name = form.columns["history"]
    pairs = history if isinstance(history, list) else [history]
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise ConfigError(f"{name} holds {shown(pair)}, but must be a list of [question, answer].")


def _check_tools(row: Mapping[str, Any], form: DatasetFormat) -> None:
    tools = form.value(row, "tools")
    if not tools and (tools is None or isinstance(tools, str)):
        return
    name = form.columns["tools"]
    if not isinstance(tools, str):
        raise NotText(
            f"{name} is {shown(tools)}, but must be a JSON list as text: the loader gives objects one type "
            "in all rows, so that every tool gets the keys of all others. Write json.dumps(tools)."
        )
    if not isinstance(_parsed(tools), list):
        raise ConfigError(f"{name} is {shown(tools)}, but must be a JSON list as text.")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


# Turns


def _check_turns(row: Mapping[str, Any], form: DatasetFormat) -> None:
    name = _present(row, form.columns["messages"])
    messages = row[name]
    if not isinstance(messages, list):
        raise ConfigError(
            f"{name} is {shown(messages)}, but must be a list of turns. csv cannot hold lists: use jsonl or "
            "parquet."
        )
    kinds = [_turn(turn, f"{name}, turn {number}", form) for number, turn in enumerate(messages, 1)]
    spoken = [(number, kind) for number, kind in enumerate(kinds, 1) if (number, kind) != (1, "system")]
    if not spoken:
        held = "only a system turn" if kinds else "no turn"
        raise ConfigError(f"{name} holds {held}, so there is nothing to learn from. Remove the row.")
    if form.formatting == "openai":
        spoken = _results_joined(spoken)
    for index, (number, kind) in enumerate(spoken):
        wanted = _ANSWERS if index % 2 else _ASKS
        if kind not in wanted:
            role = _role(form, kind)
            raise ConfigError(
                f"{name}, turn {number} is of {role!r}, but {_roles(form, wanted)} must come here: turns "
                "alternate, beginning with a question, and LLaMA-Factory drops other rows. "
                + _order_remedy(form, kind)
            )
    last = spoken[-1][1]
    if form.ranking:
        _check_pair(row, form, name, last)
    elif last not in _ANSWERS:
        raise ConfigError(
            f"{name} has {len(messages)} turns and ends with {_role(form, last)!r}, but the last turn "
            f"must be an answer of {_roles(form, _ANSWERS)}: LLaMA-Factory drops other rows. Remove that "
            "turn or the row."
        )


def _results_joined(spoken: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """With ``openai``, results of tools that follow each other count as one turn."""
    return [
        turn
        for before, turn in zip([None, *spoken], spoken, strict=False)
        if before is None or (before[1], turn[1]) != ("observation", "observation")
    ]


def _order_remedy(form: DatasetFormat, kind: str) -> str:
    if kind == "system":
        return "A system turn may only be the first."
    if kind == "observation" and form.formatting == "sharegpt":
        return "Join results of tools that follow each other in one turn, or set formatting: openai."
    return "Join turns of one speaker, or remove the row."


def _check_pair(row: Mapping[str, Any], form: DatasetFormat, name: str, last: str) -> None:
    if last not in _ASKS or (form.formatting == "openai" and last == "observation"):
        raise ConfigError(
            f"{name} ends with {_role(form, last)!r}, but with ranking: true it ends with a question of "
            f"{form.tags['user_tag']!r}: the answers are in {form.columns['chosen']} and "
            f"{form.columns['rejected']}. Remove that turn or the row."
        )
    for word in ("chosen", "rejected"):
        where = _present(row, form.columns[word])
        if _turn(row[where], where, form) not in _ANSWERS:
            raise ConfigError(
                f"{where} is {shown(row[where])}, but must be a turn of {_roles(form, _ANSWERS)}."
            )


def _role(form: DatasetFormat, kind: str) -> str:
    return form.tags[f"{kind}_tag"]


def _roles(form: DatasetFormat, kinds: tuple[str, ...]) -> str:
    return " or ".join(repr(form.tags[f"{kind}_tag"]) for kind in kinds if f"{kind}_tag" in form.tags)


def _turn(turn: Any, where: str, form: DatasetFormat) -> str:
    """Check one turn. Whose it is: user, assistant, observation, function or system."""
    role_tag, content_tag = form.tags["role_tag"], form.tags["content_tag"]
    if not isinstance(turn, Mapping):
        raise ConfigError(
            f"{where} is {shown(turn)}, but must be an object with {role_tag} and {content_tag}."
        )
    role = turn.get(role_tag)
    if role is None:
        raise ConfigError(
            f"{where} has no {role_tag}: {shown(turn)}. Add it, or name the key in tags: role_tag."
        )
    kind = next((kind for kind in _KINDS if form.tags.get(f"{kind}_tag") == role), None)
    if kind is None:
        raise ConfigError(
            f"{where}: {role_tag} is {shown(role)}, which is no role here: {_roles(form, _KINDS)}. Rename "
            "it, or name your roles in tags: user_tag, assistant_tag and so on."
        )
    if turn.get("tool_calls") and kind in _ANSWERS:
        return _check_tool_calls(turn["tool_calls"], where, form)
    content = turn.get(content_tag)
    if not isinstance(content, str):
        state = f"{content_tag} is {shown(content)}" if content_tag in turn else f"there is no {content_tag}"
        raise NotText(f"{where}: {state}, but it must be text. Write text, or remove the row.")
    if kind == "function" and content.lstrip()[:1] in ("{", "["):
        calls = _parsed(content)
        for call in calls if isinstance(calls, list) else [calls]:
            if not (isinstance(call, dict) and {"name", "arguments"} <= call.keys()):
                raise ConfigError(
                    f"{where}: {content_tag} is {shown(content)}, but a call of a tool is JSON text: "
                    '{"name": ..., "arguments": {...}}.'
                )
    return kind


def _check_tool_calls(calls: Any, where: str, form: DatasetFormat) -> str:
    if form.formatting == "sharegpt":
        caller = form.tags.get("function_tag", "function_call")
        raise ConfigError(
            f"{where} has tool_calls, which formatting: sharegpt loses. Write the call as a turn of "
            f"{caller!r} whose {form.tags['content_tag']} is the text "
            '{"name": ..., "arguments": {...}}. Or set formatting: openai, which also adds '
            '"detailed thinking off" to every system prompt without tools.'
        )
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not (isinstance(function, Mapping) and {"name", "arguments"} <= function.keys()):
            raise ConfigError(
                f"{where}: tool_calls holds {shown(call)}, but must be a list of "
                '{"function": {"name": ..., "arguments": ...}}.'
            )
    return "function"
