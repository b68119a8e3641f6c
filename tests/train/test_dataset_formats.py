"""Our idea of a dataset is LLaMA-Factory's: it loads what check_files passed, and loses what it refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas
import pytest

from runtime.core.errors import ConfigError
from storage.dataset_files import DATA_FOLDER, DatasetSummary, check_files
from tests.train.test_engine import in_train_environment

pytestmark = pytest.mark.engine

ALPACA = [
    {"instruction": "q1", "input": "more", "output": "a1"},
    {"instruction": "q2", "input": None, "output": "a2"},
]
TALK = [
    {"conversations": [{"from": "human", "value": "q1\nmore"}, {"from": "gpt", "value": "a1"}]},
    {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "q2"},
            {"from": "gpt", "value": "a2"},
        ]
    },
]
OPENAI = [
    {"messages": [{"role": "user", "content": "q1\nmore"}, {"role": "assistant", "content": "a1"}]},
    {"messages": [{"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2"}]},
]
CALL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLS = [
    {
        "messages": [
            {"role": "user", "content": "q1"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "1"},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "a1"},
        ]
    }
]
TEXT = [{"text": "q1\nmore"}, {"text": "q2"}]
PAIRS = [{"instruction": "q1\nmore", "chosen": "a1", "rejected": "no"}]
DATES = [{"instruction": "q1\nmore", "output": "2023-05-01"}]


def lines(file: Path, rows: list[Any]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


WRITERS: dict[str, Callable[[Path, list[Any]], None]] = {
    ".jsonl": lines,
    ".json": lambda file, rows: file.write_text(json.dumps(rows, indent=1)) and None,
    ".csv": lambda file, rows: pandas.DataFrame(rows).to_csv(file, index=False),
    ".parquet": lambda file, rows: pandas.DataFrame(rows).to_parquet(file),
    ".txt": lambda file, rows: file.write_text("\n".join(rows)) and None,
}

# Files of each dataset, and what is said of it.
GOOD: dict[str, tuple[dict[str, list[Any]], dict[str, Any] | None]] = {
    "alpaca-jsonl": ({"a.jsonl": ALPACA}, None),
    "alpaca-json": ({"a.json": ALPACA}, None),
    "alpaca-csv": ({"a.csv": ALPACA}, None),
    "alpaca-parquet": ({"a.parquet": ALPACA}, None),
    "alpaca-folder": ({"a.jsonl": ALPACA, "b.jsonl": ALPACA}, None),
    "no-input": ({"a.jsonl": [{"instruction": "q1\nmore", "output": "a1"}]}, None),
    "dates-json": ({"a.json": DATES}, None),
    "talk-jsonl": ({"a.jsonl": TALK}, None),
    "talk-json": ({"a.json": TALK}, None),
    "talk-parquet": ({"a.parquet": TALK}, None),
    "openai-jsonl": ({"a.jsonl": OPENAI}, None),
    "openai-folder": ({"a.parquet": OPENAI, "b.parquet": OPENAI}, None),
    "text-jsonl": ({"a.jsonl": TEXT}, None),
    "text-txt": ({"a.txt": ["q1", "", "q2"]}, None),
    "pairs": ({"a.jsonl": PAIRS}, None),
    "calls": ({"a.jsonl": CALLS}, {"formatting": "openai"}),
}
TEXT_ENTRY = {"columns": {"prompt": "text"}}
ALPACA_ENTRY = {"columns": {"prompt": "instruction", "response": "output"}}
OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "system_tag": "system",
}
OPENAI_ENTRY = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": OPENAI_TAGS}
BAD: dict[str, tuple[dict[str, list[Any]], dict[str, Any]]] = {
    "null-answer": ({"a.jsonl": [{"instruction": "q", "output": None}]}, ALPACA_ENTRY),
    "number-answer": ({"a.csv": [{"instruction": "q", "output": "42"}]}, ALPACA_ENTRY),
    "none-answer": ({"a.csv": [{"instruction": "q", "output": "None"}]}, ALPACA_ENTRY),
    "date-answer": ({"a.jsonl": DATES}, ALPACA_ENTRY),
    "absent-query": (
        {"a.jsonl": [{"instruction": "q", "output": "a"}]},
        {"columns": {**ALPACA_ENTRY["columns"], "query": "input"}},
    ),
    "two-types": ({"a.jsonl": [*TEXT, {"text": 1}]}, TEXT_ENTRY),
    "half-emoji": ({"a.jsonl": [{"text": "\ud83d"}]}, TEXT_ENTRY),
    "late-column": ({"a.jsonl": [{"text": "q" * 9_000}] * 1_200 + [TEXT[0] | {"more": "m"}]}, TEXT_ENTRY),
    "odd-turns": ({"a.jsonl": [{"messages": OPENAI[0]["messages"][:1]}]}, OPENAI_ENTRY),
    "no-turns": ({"a.jsonl": [{"messages": []}, OPENAI[0]]}, OPENAI_ENTRY),
    "half-tags": (
        {"a.jsonl": OPENAI},
        OPENAI_ENTRY | {"tags": {"role_tag": "role", "content_tag": "content"}},
    ),
    "joined-results": ({"a.jsonl": CALLS}, OPENAI_ENTRY),
    "lost-result": (
        {"a.jsonl": [{"messages": CALLS[0]["messages"][:3]}]},
        OPENAI_ENTRY | {"formatting": "openai"},
    ),
    "pattern-name": ({"a[1].jsonl": TEXT}, TEXT_ENTRY),
}

# Prints, for each folder: the error, or how many rows there are, how many have a question and the answers
# that the stage wants, and the first of them.
PROGRAM = """
import json
from pathlib import Path
from llamafactory.data.loader import _load_single_dataset
from llamafactory.data.parser import get_dataset_list
from llamafactory.hparams import DataArguments, ModelArguments
from transformers import TrainingArguments

model = ModelArguments(model_name_or_path="unused", cache_dir=CACHE)
training = TrainingArguments(output_dir="unused", use_cpu=True)
found = {}
for folder in sorted(Path(ROOT).iterdir()):
    data = DataArguments(dataset_dir=str(folder))
    try:
        [entry] = get_dataset_list(["d"], str(folder))
        rows = _load_single_dataset(entry, model, data, training)
    except Exception as error:
        found[folder.name] = {"error": f"{type(error).__name__}: {error}"}
        continue
    answers = 2 if entry.ranking else 1 if entry.response or entry.formatting != "alpaca" else 0
    kept = [r for r in rows if len(r["_prompt"]) % 2 == 1 and len(r["_response"]) == answers]
    first = kept[0]["_prompt"] + kept[0]["_response"] if kept else []
    found[folder.name] = {
        "rows": len(rows), "kept": len(kept), "turns": [[t["role"], t["content"]] for t in first]
    }
print(json.dumps(found))
"""


def load(root: Path) -> Any:
    """What LLaMA-Factory makes of the dataset in each folder of ``root``."""
    names = f"ROOT = {str(root)!r}\nCACHE = {str(root.with_name('cache'))!r}\n"
    return in_train_environment(names + PROGRAM)


def write(folder: Path, files: Mapping[str, list[Any]]) -> list[Path]:
    folder.mkdir(parents=True)
    for name, rows in files.items():
        WRITERS[Path(name).suffix](folder / name, rows)
    return [folder / name for name in files]


def register(root: Path, name: str, files: list[Path], info: Mapping[str, Any]) -> None:
    """Lay out the dataset as its folder in a store."""
    target = root / name / (DATA_FOLDER if len(files) > 1 else "")
    target.mkdir(parents=True)
    for file in files:
        (target / file.name).write_bytes(file.read_bytes())
    (root / name / "dataset_info.json").write_text(json.dumps({"d": info}))


def test_llamafactory_loads_every_row_that_was_checked(tmp_path: Path):
    summaries: dict[str, DatasetSummary] = {}
    for name, (content, info) in GOOD.items():
        files = write(tmp_path / "in" / name, content)
        summaries[name] = check_files(files, info)
        register(tmp_path / "out", name, files, summaries[name].info)
    found = load(tmp_path / "out")
    rows = {name: summary.rows for name, summary in summaries.items()}
    assert {name: (of.get("rows"), of.get("kept")) for name, of in found.items()} == {
        name: (count, count) for name, count in rows.items()
    }, found
    firsts = {name: of["turns"] for name, of in found.items()}
    assert firsts.pop("pairs") == [["user", "q1\nmore"], ["assistant", "a1"], ["assistant", "no"]]
    assert firsts.pop("text-jsonl") == [["user", "q1\nmore"]]
    assert firsts.pop("text-txt") == [["user", "q1"]]
    assert firsts.pop("dates-json") == [["user", "q1\nmore"], ["assistant", "2023-05-01"]]
    assert [role for role, _ in firsts.pop("calls")] == ["user", "function", "observation", "assistant"]
    assert firsts == {name: [["user", "q1\nmore"], ["assistant", "a1"]] for name in firsts}


def test_llamafactory_loses_or_fails_on_what_is_refused(tmp_path: Path):
    for name, (content, info) in BAD.items():
        files = write(tmp_path / "in" / name, content)
        with pytest.raises(ConfigError):
            check_files(files, info)
        register(tmp_path / "out", name, files, {"file_name": files[0].name} | info)
    found = load(tmp_path / "out")
    harmless = {name: of for name, of in found.items() if "error" not in of and of["kept"] == of["rows"]}
    assert list(harmless) == ["lost-result"], found
    # Its row is kept, but without the tool's result.
    assert [role for role, _ in harmless["lost-result"]["turns"]] == ["user", "function"]
