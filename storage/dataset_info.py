"""An entry of ``dataset_info.json``: LLaMA-Factory's words for a dataset's format, and how to detect it.

Source: llamafactory 0.9.5, data/parser.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from runtime.core.config import ConfigModel, load_spec
from runtime.core.errors import ConfigError

_ELSEWHERE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "subset", "folder")
_SAME_NAME = ("system", "tools", "images", "videos", "audios")
_DEFAULT_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}
_NEEDED_TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag")


class DatasetColumns(ConfigModel):
    """The column for each of LLaMA-Factory's words. A word that is left out has no column, and no default."""

    prompt: str | None = None
    """alpaca: the question."""
    query: str | None = None
    """alpaca: more of the question, put on the next line."""
    response: str | None = None
    """alpaca: the answer."""
    history: str | None = None
    """alpaca: earlier turns, a list of [question, answer]."""
    messages: str | None = None
    """sharegpt, openai: the list of turns."""
    system: str | None = None
    """The system prompt."""
    tools: str | None = None
    """The tools' descriptions: a JSON list, as text."""
    images: str | None = None
    """Paths of images."""
    videos: str | None = None
    """Paths of videos."""
    audios: str | None = None
    """Paths of sounds."""
    chosen: str | None = None
    """With ranking: the better answer."""
    rejected: str | None = None
    """With ranking: the worse answer."""
    kto_tag: str | None = None
    """Whether the answer is wanted: true or false."""


class DatasetTags(ConfigModel):
    """The keys and roles of turns. Once ``tags`` is given, a tag that is left out has no default."""

    role_tag: str | None = None
    """The key of a turn's role."""
    content_tag: str | None = None
    """The key of a turn's text."""
    user_tag: str | None = None
    """The role that asks."""
    assistant_tag: str | None = None
    """The role that answers."""
    observation_tag: str | None = None
    """The role that holds a tool's result."""
    function_tag: str | None = None
    """The role that calls a tool."""
    system_tag: str | None = None
    """The role that holds the system prompt, in the first turn."""


class DatasetInfo(ConfigModel):
    """An entry of ``dataset_info.json`` for local files, in LLaMA-Factory's words."""

    file_name: str | None = None
    """The data file or the folder of data files, relative to the dataset's folder."""
    formatting: Literal["alpaca", "sharegpt", "openai"] | None = None
    """alpaca: question and answer. sharegpt: turns. openai: turns with tool_calls; it also adds
    "detailed thinking off" to every system prompt without tools."""
    ranking: bool | None = None
    """Whether rows hold a better and a worse answer."""
    split: Literal["train"] | None = None
    """Local files are all in the split train."""
    num_samples: int | None = Field(None, ge=1)
    """Rows that are drawn at random for training."""
    columns: DatasetColumns | None = None
    """Which column holds what."""
    tags: DatasetTags | None = None
    """The keys and roles of turns."""


@dataclass(frozen=True)
class DatasetFormat:
    """How rows are to be read, resolved as LLaMA-Factory resolves an entry."""

    formatting: str
    ranking: bool
    columns: Mapping[str, str]
    """Word to column."""
    tags: Mapping[str, str]
    """Word to key or role. Of no meaning for alpaca."""

    def value(self, row: Mapping[str, Any], word: str) -> Any:
        """What ``row`` holds for ``word``, None where nothing is."""
        return row.get(self.columns[word]) if word in self.columns else None

    def entry(self, names: Collection[str]) -> dict[str, Any]:
        """The entry of ``dataset_info.json``, with those columns that are in ``names``."""
        columns = {word: name for word, name in self.columns.items() if name in names}
        entry: dict[str, Any] = {"formatting": self.formatting, "columns": columns}
        if self.ranking:
            entry["ranking"] = True
        if self.formatting != "alpaca":
            entry["tags"] = dict(self.tags)
        return entry

    def text_paths(self) -> list[str]:
        """The columns that must stay text in the loader, as ``Columns`` names them."""
        words = ["prompt", "query", "response", "system"]
        paths = [self.columns[word] for word in words if word in self.columns]
        content = self.tags["content_tag"]
        paths += [f"{self.columns['messages']}[].{content}"] if "messages" in self.columns else []
        for word in ("chosen", "rejected"):
            if word in self.columns:
                paths += [self.columns[word], f"{self.columns[word]}.{content}"]
        return paths


def read_info(info: Mapping[str, Any] | None) -> DatasetInfo:
    """``info`` checked, before any row is seen.

    Raises:
        ConfigError: an unknown word, or words with which LLaMA-Factory would read no row.
    """
    for word in _ELSEWHERE:
        if word in (info or {}):
            raise ConfigError(f"{word} is for data that is elsewhere, but here are files. Leave it out.")
    try:
        given = load_spec(DatasetInfo, info or {})
    except ConfigError as error:
        raise ConfigError(str(error).removeprefix("spec: ")) from None
    if given.tags:
        for tag in _NEEDED_TAGS:
            if getattr(given.tags, tag) is None:
                raise ConfigError(
                    f"tags leaves out {tag}, and LLaMA-Factory takes no default once tags is given. "
                    f"Add it, for example {tag}: {_DEFAULT_TAGS[tag]}."
                )
    if given.columns:
        _check_columns(given, given.columns)
    return given


def _check_columns(given: DatasetInfo, columns: DatasetColumns) -> None:
    words = columns.model_dump(exclude_none=True)
    talks = given.formatting in ("sharegpt", "openai") or (given.formatting is None and "messages" in words)
    needed = ["messages"] if talks else ["prompt"]
    if given.ranking:
        needed += ["chosen", "rejected"]
    elif "chosen" in words or "rejected" in words:
        raise ConfigError("columns names chosen or rejected, but ranking is not true. Add ranking: true.")
    if given.ranking and "kto_tag" in words:
        raise ConfigError("columns names kto_tag, but ranking is true: a dataset is one of both.")
    if "kto_tag" in words and not talks:
        needed.append("response")
    for word in needed:
        if word not in words:
            raise ConfigError(
                f"columns leaves out {word}, and LLaMA-Factory takes no default once columns is given. "
                f"Add {word} and the name of its column."
            )


def resolve_format(given: DatasetInfo, row: Mapping[str, Any]) -> DatasetFormat:
    """The format of a dataset whose first row is ``row``: what ``given`` says, and detected what it does not.

    Raises:
        ConfigError: the format cannot be told.
    """
    columns = given.columns.model_dump(exclude_none=True) if given.columns else None
    formatting = given.formatting or _formatting_of(row, columns, has_tags=given.tags is not None)
    ranking = given.ranking
    if ranking is None:
        ranking = columns is None and "chosen" in row and "rejected" in row
    if columns is None:
        columns = _columns_of(row, formatting, ranking=ranking)
    tags = given.tags.model_dump(exclude_none=True) if given.tags else None
    return DatasetFormat(formatting, ranking, columns, tags or _tags_of(row.get(columns.get("messages", ""))))


def _formatting_of(row: Mapping[str, Any], columns: Mapping[str, str] | None, *, has_tags: bool) -> str:
    if columns is not None:
        return "sharegpt" if "messages" in columns else "alpaca"
    if has_tags or _list_column(row):
        return "sharegpt"
    if "instruction" in row or _is_plain_text(row):
        return "alpaca"
    raise ConfigError(
        f"its columns are {', '.join(row) or 'none'}, which is no format that can be told: alpaca rows have "
        "instruction and output, sharegpt rows a list called conversations or messages, rows for pretraining "
        "no other text than text. Rename the columns, or name them in the info, for example columns: "
        "{prompt: question, response: answer}."
    )


def _list_column(row: Mapping[str, Any]) -> str | None:
    return next((name for name in ("conversations", "messages") if isinstance(row.get(name), list)), None)


def _is_plain_text(row: Mapping[str, Any]) -> bool:
    return "instruction" not in row and [n for n, v in row.items() if isinstance(v, str)] == ["text"]


def _columns_of(row: Mapping[str, Any], formatting: str, *, ranking: bool) -> dict[str, str]:
    """Columns under LLaMA-Factory's usual names. Later rows may have optional ones that ``row`` has not."""
    optional = {word: word for word in _SAME_NAME}
    if formatting == "alpaca":
        if _is_plain_text(row):
            return {"prompt": "text"}
        own = {"prompt": "instruction", "query": "input"} | ({} if ranking else {"response": "output"})
        optional["history"] = "history"
    else:
        own = {"messages": _list_column(row) or "conversations"}
    if ranking:
        own |= {"chosen": "chosen", "rejected": "rejected"}
    elif "kto_tag" in row:
        own["kto_tag"] = "kto_tag"
    return own | optional


def _tags_of(messages: Any) -> dict[str, str]:
    first = messages[0] if isinstance(messages, list) and messages else None
    is_openai = isinstance(first, Mapping) and first.get("role") is not None and first.get("from") is None
    return _OPENAI_TAGS if is_openai else _DEFAULT_TAGS
