"""Data files are checked row by row before they are registered, and described in LLaMA-Factory's words."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from runtime.core.errors import ConfigError
from storage.dataset_files import check_files, rows_of
from tests.conftest import ROOT

ALPACA = [
    {"instruction": "What does len do?", "input": "", "output": "Count."},
    {"instruction": "Translate.", "input": "Wie geht's?", "output": "How are you? \u2603"},
]
SHAREGPT = [
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {}}'},
            {"from": "observation", "value": "rain"},
            {"from": "gpt", "value": "Rain."},
        ]
    },
]
OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}


def human(value: str = "q") -> dict[str, Any]:
    return {"from": "human", "value": value}


def gpt(value: Any = "a") -> dict[str, Any]:
    return {"from": "gpt", "value": value}


def says(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def lines(file: Path, rows: Iterable[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def array(file: Path, rows: list[Any]) -> Path:
    file.write_text(json.dumps(rows, indent=2))
    return file


def table(file: Path, rows: list[dict[str, Any]]) -> Path:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def parquet(file: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file


def text(file: Path, content: str) -> Path:
    file.write_bytes(content.encode())
    return file


def refusal(*files: Path, info: dict[str, Any] | None = None) -> str:
    with pytest.raises(ConfigError) as refused:
        check_files(files, info)
    return str(refused.value).replace(f"{files[0].parent}/", "")


WRITERS: dict[str, Callable[[Path, list[Any]], Path]] = {
    "a.jsonl": lines,
    "lines.json": lines,
    "a.json": array,
    "a.csv": table,
    "a.parquet": parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_alpaca_rows_are_known_in_every_kind_of_file(tmp_path: Path, name: str):
    summary = check_files([WRITERS[name](tmp_path / name, ALPACA)])
    assert (summary.files, summary.rows, summary.format) == ((name,), 2, "alpaca")
    assert summary.columns == ("instruction", "input", "output")
    assert summary.info == {
        "file_name": name,
        "formatting": "alpaca",
        "columns": {"prompt": "instruction", "query": "input", "response": "output"},
    }


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "a.csv"])
def test_conversations_are_known_in_every_kind_of_file_that_holds_lists(tmp_path: Path, name: str):
    summary = check_files([WRITERS[name](tmp_path / name, SHAREGPT)])
    assert (summary.rows, summary.format) == (2, "sharegpt")
    assert summary.info["columns"] == {"messages": "conversations"}
    assert summary.info["tags"]["assistant_tag"] == "gpt"


def test_a_column_that_no_row_has_is_not_named(tmp_path: Path):
    """LLaMA-Factory's default columns fail on rows without ``input``."""
    file = lines(tmp_path / "a.jsonl", [{"instruction": "q", "output": "a", "n": 1}])
    assert check_files([file]).info["columns"] == {"prompt": "instruction", "response": "output"}


def test_a_column_that_only_a_later_row_has_is_named(tmp_path: Path):
    rows = [
        {"instruction": "q", "output": "a"},
        {"instruction": "q", "output": "a", "system": "s", "history": [["q", "a"]]},
    ]
    columns = check_files([lines(tmp_path / "a.jsonl", rows)]).info["columns"]
    assert columns == {
        "prompt": "instruction",
        "response": "output",
        "system": "system",
        "history": "history",
    }


def test_messages_in_the_style_of_openai_get_its_tags(tmp_path: Path):
    turns = [says("system", "s"), says("user", "q"), says("assistant", "a")]
    summary = check_files([lines(tmp_path / "a.jsonl", [{"messages": turns}])])
    assert summary.info == {
        "file_name": "a.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": OPENAI_TAGS,
    }


def test_text_alone_is_for_pretraining(tmp_path: Path):
    files = [
        lines(tmp_path / "a.jsonl", [{"text": "Once", "id": 1}]),
        text(tmp_path / "a.txt", "Once\n\nupon\r\na\rtime"),
    ]
    found = [check_files([file]) for file in files]
    assert [summary.info["columns"] for summary in found] == [{"prompt": "text"}] * 2
    assert [summary.rows for summary in found] == [1, 5]


def test_pairs_are_known_by_chosen_and_rejected(tmp_path: Path):
    plain = lines(tmp_path / "a.jsonl", [{"instruction": "q", "chosen": "good", "rejected": "bad"}])
    talk = lines(tmp_path / "b.jsonl", [{"conversations": [human()], "chosen": gpt(), "rejected": gpt("b")}])
    assert check_files([plain]).info["columns"] == {
        "prompt": "instruction",
        "chosen": "chosen",
        "rejected": "rejected",
    }
    assert check_files([plain]).info["ranking"] is True
    assert check_files([talk]).info["ranking"] is True


def test_several_files_go_into_the_folder_data(tmp_path: Path):
    files = [lines(tmp_path / f"{name}.jsonl", ALPACA) for name in "ba"]
    summary = check_files(files)
    assert (summary.files, summary.rows) == (("data/b.jsonl", "data/a.jsonl"), 4)
    assert summary.info["file_name"] == "data"


def test_what_the_info_says_is_kept(tmp_path: Path):
    file = lines(tmp_path / "a.jsonl", [{"q": "q", "a": "a"}])
    info = {"columns": {"prompt": "q", "response": "a"}, "num_samples": 10}
    assert check_files([file], info).info == {
        "file_name": "a.jsonl",
        "formatting": "alpaca",
        "columns": {"prompt": "q", "response": "a"},
        "num_samples": 10,
    }


def test_calls_of_tools_are_allowed_where_the_info_asks_for_openai(tmp_path: Path):
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [
        says("user", "q"),
        says("assistant", None, tool_calls=[call, call]),
        says("tool", "1"),
        says("tool", "2"),
        says("assistant", "a"),
    ]
    file = lines(tmp_path / "a.jsonl", [{"messages": turns}])
    summary = check_files([file], {"formatting": "openai"})
    assert (summary.format, summary.info["tags"]) == ("openai", OPENAI_TAGS)
    assert "line 1: messages, turn 2 has tool_calls, which formatting: sharegpt loses" in refusal(file)
    lines(file, [{"messages": turns[:3]}])
    said = "ends with 'tool', but the last turn must be an answer of 'assistant'"
    assert said in refusal(file, info={"formatting": "openai"})


# Each: what the second of two alpaca rows is, and what the refusal must say.
BAD_ALPACA = [
    ({"instruction": "q", "input": "", "output": 42}, "output is 42, but must be text"),
    ({"instruction": "q", "input": "", "output": None}, "output is null, but must be text"),
    (
        {"instruction": "q", "outptu": "a"},
        "has no output. Add it, or rename a column. Did you mean 'outptu'",
    ),
    ({"instruction": None, "input": "", "output": "a"}, "instruction is null, but must be text"),
    ({"instruction": "q", "input": 3, "output": "a"}, "input is 3, but must be text"),
    ({"instruction": "q", "output": "a" * 90, "system": ["s"]}, 'system is ["s"], but must be text'),
    ({"instruction": "q", "output": "a", "history": [["q"]]}, 'history holds ["q"], but must be a list of'),
    ({"instruction": "q", "output": "a", "tools": [{}]}, "tools is [{}], but must be a JSON list as text"),
    ({"instruction": "q", "output": "a", "tools": "f()"}, 'tools is "f()", but must be a JSON list'),
    ({"instruction": "q", "output": "a", "images": 1}, "images is 1, but must be a list of paths"),
    (["q", "a"], 'is ["q", "a"], but a row is an object'),
]


@pytest.mark.parametrize(("row", "said"), BAD_ALPACA)
def test_a_bad_alpaca_row_is_refused_with_its_line(tmp_path: Path, row: Any, said: str):
    assert f"a.jsonl, line 2: {said}" in refusal(lines(tmp_path / "a.jsonl", [ALPACA[0], row]))


BAD_TALK = [
    ("hi", 'conversations is "hi", but must be a list of turns'),
    ([], "conversations holds no turn, so there is nothing to learn from"),
    ([{"from": "system", "value": "s"}], "conversations holds only a system turn"),
    ([human()], "conversations has 1 turns and ends with 'human', but the last turn must be an answer"),
    ([human(), human(), gpt()], "conversations, turn 2 is of 'human', but 'gpt' or 'function_call' must"),
    ([gpt(), human()], "conversations, turn 1 is of 'gpt', but 'human' or 'observation' must come here"),
    ([human(), {"from": "system", "value": "s"}], "A system turn may only be the first."),
    ([human(), {"from": "bot", "value": "a"}], 'turn 2: from is "bot", which is no role here: '),
    ([human(), {"value": "a"}], 'turn 2 has no from: {"value": "a"}'),
    ([human(), {"from": "gpt"}], "turn 2: there is no value, but it must be text"),
    ([human(), gpt(None)], "turn 2: value is null, but it must be text"),
    ([human(), gpt([{"type": "text"}])], 'turn 2: value is [{"type": "text"}], but it must be text'),
    ([human(), "a"], 'turn 2 is "a", but must be an object with from and value'),
    ([human(), {"from": "function_call", "value": '{"name": "f"}'}], "but a call of a tool is JSON text"),
]


@pytest.mark.parametrize(("talk", "said"), BAD_TALK)
def test_a_bad_conversation_is_refused_with_the_turn(tmp_path: Path, talk: Any, said: str):
    rows = [SHAREGPT[0], {"conversations": talk}]
    found = refusal(lines(tmp_path / "a.jsonl", rows))
    assert found.startswith("a.jsonl, line 2: conversations")
    assert said in found


def test_pairs_need_both_answers_and_end_with_a_question(tmp_path: Path):
    info = {"ranking": True}
    plain = lines(tmp_path / "a.jsonl", [{"instruction": "q", "chosen": "good", "rejected": None}])
    assert "line 1: rejected is null, but must be text" in refusal(plain, info=info)
    talk = {"conversations": [human()], "chosen": gpt(), "rejected": human()}
    file = lines(tmp_path / "b.jsonl", [talk])
    assert "but must be a turn of 'gpt' or 'function_call'" in refusal(file)
    lines(file, [talk | {"conversations": [human(), gpt()]}])
    assert "conversations ends with 'gpt', but with ranking: true it ends with a question" in refusal(file)
    lines(file, [{"conversations": [human()], "chosen": gpt()}])
    assert "line 1: has no rejected" in refusal(file, info=info)


def test_a_kto_tag_is_true_or_false(tmp_path: Path):
    info = {"columns": {"prompt": "q", "response": "a", "kto_tag": "good"}}
    file = lines(
        tmp_path / "a.jsonl", [{"q": "q", "a": "a", "good": True}, {"q": "q", "a": "a", "good": "no"}]
    )
    assert 'line 2: good is "no", but must be true or false' in refusal(file, info=info)


def test_the_first_bad_row_of_each_kind_of_file_is_found(tmp_path: Path):
    rows = [ALPACA[0]] * 3 + [{"instruction": "a,\nb", "input": "c", "output": None}]
    places = {name: refusal(write(tmp_path / name, rows)).split(":")[0] for name, write in WRITERS.items()}
    assert places == {
        "a.jsonl": "a.jsonl, line 4",
        "lines.json": "lines.json, line 4",
        "a.json": "a.json, row 4 (line 17)",
        "a.csv": "a.csv, line 5",
        "a.parquet": "a.parquet, row 4",
    }


def test_lines_of_csv_are_counted_as_an_editor_counts_them(tmp_path: Path):
    file = text(
        tmp_path / "a.csv", 'instruction,output\r\n"two\r\nlines",a\r\n\r\n"x ""y"" z",b\r\nc,None\r\n'
    )
    found = refusal(file)
    assert found.startswith("a.csv, line 6: output is null, but must be text")
    assert "words such as None, NA and null are nothing" in found
    text(file, 'instruction,output\n"two\nlines",a\n\n"x ""y"" z",b\n')
    assert list(rows_of(file)) == [
        ("line 2", {"instruction": "two\nlines", "output": "a"}),
        ("line 5", {"instruction": 'x "y" z', "output": "b"}),
    ]


def test_a_csv_column_of_numbers_is_no_text(tmp_path: Path):
    file = text(tmp_path / "a.csv", 'instruction,output\n1+1?,"2"\n2+2?,4\n')
    assert "a.csv, line 2: output is 2, but must be text" in refusal(file)
    text(file, "instruction,output\n1+1?,2\n2+2?,four\n")
    assert check_files([file]).rows == 2


def test_a_long_cell_of_csv_is_no_fault(tmp_path: Path):
    rows = [{"instruction": "q", "output": "long " * 50_000}]
    assert check_files([table(tmp_path / "a.csv", rows)]).rows == 1


BROKEN = [
    ("a.jsonl", '{"text": "a"}\n{"text": "b"\n', "a.jsonl, line 2, column 13: is not JSON: Expecting ','"),
    ("a.jsonl", '{"text": "a"} {"text": "b"}\n', "line 1, column 15: is not JSON: a line holds one whole"),
    ("a.jsonl", '{\n  "text": "a"\n}\n', "a.jsonl, line 1, column 2: is not JSON"),
    ("a.jsonl", '{"text": "a", "text": "b"}\n', "the key 'text' occurs twice in one object"),
    ("a.jsonl", '{"text": "a", "n": NaN}\n', "NaN is no number of JSON, write null"),
    ("a.jsonl", '{"text": "cut \\ud83d"}\n', "line 1: holds one half of a \\ud... pair"),
    ("a.json", '[\n{"text": "a"},\n{"text": }\n]', "a.json, line 3, column 10: is not JSON: Expecting value"),
    ("a.json", '[\n{"text": "a"}\n{"text": "b"}]', "line 3, column 1: is not JSON: a comma or ] must follow"),
    ("a.json", '[{"text": "a"}', "line 1, column 15: is not JSON: a comma or ] must follow"),
    ("a.json", '[{"text": "a"}]\n[]', "line 2, column 1: is not JSON: something follows the array"),
    ("a.json", '[{"text": "a"}, 7]', "row 2 (line 1): is 7, but a row is an object"),
    ("a.json", '\ufeff[{"text": "a"}]', "a.json: begins with a byte order mark"),
    ("a.json", "[]", "a.json: has no rows"),
    ("a.jsonl", " \n\n", "a.jsonl: has no rows"),
    ("a.jsonl", "", "a.jsonl: is empty (0 bytes)"),
    ("a.csv", "text\n", "a.csv: has no rows"),
    ("a.csv", "text,n\na,1\nb\n", "a.csv, line 3: has 1 cells, but the header has 2 (text, n)"),
    ("a.csv", "text,n\na,1,2\n", "a.csv, line 2: has 3 cells, but the header has 2"),
    ("a.csv", 'text,n\na,1\n"b,1\n', "a.csv, line 3: is not csv: unexpected end of data"),
    ("a.csv", "text,text\na,b\n", "a.csv, line 1: the header names 'text' twice"),
    ("a.csv", "What?,Because.\nWhy?,Therefore.\n", "A csv file begins with a line of column names."),
    ("a.parquet", "PAR1", "a.parquet: is not a whole parquet file"),
    ("a.txt", "\ufefftext\n", "a.txt: begins with a byte order mark"),
    ("a.jsonl", '{"question": "q"}\n', "its columns are question, which is no format that can be told"),
    ("a.jsonl.gz", "x", "a.jsonl.gz: its suffix is '.gz'"),
    ("a.JSONL", "x", "Rename it to .jsonl."),
    ("a[1].jsonl", "x", "a[1].jsonl cannot be the name of a data file"),
    ("dataset_info.json", "{}", "dataset_info.json cannot be the name of a data file"),
]


@pytest.mark.parametrize(("name", "content", "said"), BROKEN)
def test_a_broken_file_is_refused_where_it_breaks(tmp_path: Path, name: str, content: str, said: str):
    assert said in refusal(text(tmp_path / name, content))


def test_what_is_not_utf8_is_refused_with_line_and_byte(tmp_path: Path):
    for name in ("a.jsonl", "a.csv", "a.txt"):
        file = tmp_path / name
        file.write_bytes(b'{"text": "a"}\n{"text": "\xe9"}\n')
        assert f"{name}, line 2, byte 11: 0xe9 is not UTF-8" in refusal(file)


def test_a_byte_order_mark_is_no_fault_where_the_loader_skips_it(tmp_path: Path):
    files = [
        text(tmp_path / "a.jsonl", '\ufeff{"text": "a"}\n'),
        text(tmp_path / "a.csv", "\ufefftext\na\n"),
    ]
    assert [check_files([file]).columns for file in files] == [("text",)] * 2


def test_files_that_make_no_dataset_together_are_refused(tmp_path: Path):
    one, other = lines(tmp_path / "a.jsonl", ALPACA), table(tmp_path / "b.csv", ALPACA)
    assert "different suffixes (.csv, .jsonl)" in refusal(one, other)
    (tmp_path / "sub").mkdir()
    assert "2 files are called a.jsonl" in refusal(one, lines(tmp_path / "sub" / "a.jsonl", ALPACA))
    assert "is a folder. Name the data files in it" in refusal(tmp_path / "sub")
    assert "nowhere.jsonl: does not exist" in refusal(tmp_path / "nowhere.jsonl")
    assert "b.jsonl: has no rows" in refusal(one, text(tmp_path / "b.jsonl", "\n"))
    with pytest.raises(ConfigError, match="no data files are given"):
        check_files([])


@pytest.mark.parametrize(("suffix", "write"), [("jsonl", lines), ("parquet", parquet)])
def test_files_with_different_columns_cannot_be_one_table(tmp_path: Path, suffix: str, write: Any):
    one = write(tmp_path / f"a.{suffix}", ALPACA)
    more = write(tmp_path / f"b.{suffix}", [ALPACA[0] | {"source": "web"}])
    assert f"b.{suffix}: source is " in (found := refusal(one, more))
    assert f"but in a.{suffix} it is absent" in found
    assert "input is absent, but in a." in refusal(
        one, write(tmp_path / f"c.{suffix}", [{"instruction": "q", "output": "a"}])
    )


def test_a_column_holds_one_kind_of_value(tmp_path: Path):
    rows = [{"text": "a", "id": 1}, {"text": "b", "id": 1.5}, {"text": "c", "id": "x"}]
    found = refusal(lines(tmp_path / "a.jsonl", rows))
    assert 'line 3: id is "x" (text), but number in the rows before' in found
    rows = [{"text": "a", "meta": [{"n": 1}]}, {"text": "b", "meta": [{"n": [1]}]}]
    assert "line 2: meta[].n is [1] (list), but integer" in refusal(lines(tmp_path / "a.jsonl", rows))


def test_the_first_piece_of_a_file_must_know_every_column(tmp_path: Path):
    """The loader takes types from the first 10 MB of JSON lines and the first 10000 rows of csv."""
    row = {"instruction": "q", "output": "a" * 100_000}
    late = row | {"input": "x"}
    file = lines(tmp_path / "a.jsonl", [row] * 106 + [late])
    assert 'line 107: input is "x" (text), but null or absent in the first piece' in refusal(file)
    assert check_files([lines(file, [late] + [row] * 106)]).rows == 107
    text(tmp_path / "a.csv", "instruction,input,output\n" + "q,,a\n" * 10_000 + "q,x,a\n")
    assert 'a.csv, line 10002: input is "x" (text), but null' in refusal(tmp_path / "a.csv")
    text(tmp_path / "b.csv", "id,instruction,output\n" + "A1,q,a\n" * 10_000 + "7,q,a\n")
    assert check_files([tmp_path / "b.csv"]).rows == 10_001


def test_answers_that_are_all_dates_would_become_timestamps(tmp_path: Path):
    rows = [{"instruction": "Norm: 1. May 2023", "output": "2023-05-01"}] * 2
    assert "every output is a date" in refusal(lines(tmp_path / "a.jsonl", rows))
    assert check_files([array(tmp_path / "a.json", rows)]).rows == 2
    rows.append({"instruction": "Norm: soon", "output": "unknown"})
    assert check_files([lines(tmp_path / "a.jsonl", rows)]).rows == 3
    talk = [{"conversations": [human("2023-05-01"), gpt("2023-05-01 10:00")]}]
    assert "every conversations[].value is a date" in refusal(lines(tmp_path / "b.jsonl", talk))


WRONG_INFO = [
    ({"formating": "alpaca"}, "formating: unknown field (value 'alpaca'). Did you mean 'formatting'?"),
    ({"columns": {"promt": "q"}}, "columns.promt: unknown field (value 'q'). Did you mean 'prompt'?"),
    ({"formatting": "chatml"}, "formatting: is 'chatml': Input should be 'alpaca', 'sharegpt' or 'openai'"),
    ({"columns": {"response": "output"}}, "columns leaves out prompt, and LLaMA-Factory takes no default"),
    ({"formatting": "sharegpt", "columns": {"prompt": "q"}}, "columns leaves out messages"),
    ({"tags": {"role_tag": "role", "content_tag": "content"}}, "tags leaves out user_tag, and LLaMA-Factory"),
    ({"columns": {"prompt": "instruction", "chosen": "output"}}, "ranking is not true. Add ranking: true."),
    ({"ranking": True, "columns": {"prompt": "instruction"}}, "columns leaves out chosen"),
    ({"columns": {"prompt": "instruction", "kto_tag": "k"}}, "columns leaves out response"),
    ({"columns": {"prompt": "instruction", "query": "inputs"}}, "columns.query is 'inputs', but no row has"),
    ({"hf_hub_url": "a/b"}, "hf_hub_url is for data that is elsewhere"),
    ({"file_name": "b.json"}, "file_name is 'b.json', but the data will be at 'a.jsonl'. Leave it out."),
]


@pytest.mark.parametrize(("info", "said"), WRONG_INFO)
def test_an_info_that_cannot_work_is_refused(tmp_path: Path, info: dict[str, Any], said: str):
    assert said in refusal(lines(tmp_path / "a.jsonl", ALPACA), info=info)


def test_the_first_rows_are_read_without_the_rest(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n\n{"text": "b"}\nnot json\n')
    rows = rows_of(file)
    assert [next(rows), next(rows)] == [("line 1", {"text": "a"}), ("line 3", {"text": "b"})]


def test_a_value_is_cut_in_a_message(tmp_path: Path):
    row = {"instruction": "q", "output": ["a" * 500]}
    found = refusal(lines(tmp_path / "a.jsonl", [row]))
    assert f'output is ["{"a" * 55}..., but must be text' in found


def test_pandas_and_pyarrow_are_not_loaded_before_they_are_needed():
    program = "import sys, storage.dataset_files; print({'pandas', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
