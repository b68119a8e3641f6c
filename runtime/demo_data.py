"""Real questions and answers that every machine has: the docstrings of Python's standard library."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator

MODULES = (
    "json", "os.path", "shutil", "statistics", "textwrap", "random", "math", "itertools", "functools",
    "string", "glob", "tempfile", "heapq", "bisect", "copy", "pprint", "fnmatch", "linecache", "secrets",
    "socket", "threading", "subprocess", "inspect", "ast", "dis", "tokenize", "zipfile", "tarfile", "gzip",
    "csv", "difflib", "html", "urllib.parse", "logging", "argparse", "asyncio", "calendar", "locale",
    "pickle", "base64", "struct", "types", "contextlib", "warnings", "traceback", "operator", "keyword",
)  # fmt: skip
"""Modules that import fast and quietly on every platform."""

_SHORT_CHARS = (12, 72)
"""Answers outside these lengths are left out: too little to learn, or more than a line."""


def docstring_rows() -> list[dict[str, str]]:
    """Alpaca rows in a fixed order: ``What does json.dumps do?`` and the docstring's first line.

    An answer stands once: two questions with one answer would hide a model that mixes them up.
    """
    # In an interpreter of its own: packages replace functions of the standard library in the process that
    # imports them (Cython's do in inspect), and with one row more or less another model is trained.
    done = subprocess.run([sys.executable, "-I", "-S", __file__], check=True, capture_output=True, text=True)
    rows: list[dict[str, str]] = json.loads(done.stdout)
    return rows


def _rows() -> list[dict[str, str]]:
    rows, answers = [], set()
    for name, first_line in _first_lines():
        if first_line in answers or not _SHORT_CHARS[0] <= len(first_line) <= _SHORT_CHARS[1]:
            continue
        answers.add(first_line)
        rows.append({"instruction": f"What does {name} do?", "input": "", "output": first_line})
    return rows


def _first_lines() -> Iterator[tuple[str, str]]:
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in sorted(getattr(module, "__all__", None) or vars(module)):
            value = getattr(module, name, None)
            if name.startswith("_") or not inspect.isroutine(value):
                continue
            lines = (inspect.getdoc(value) or "").strip().splitlines()
            # The C functions' first line may be their signature, which answers nothing.
            if lines and lines[0].isascii() and "(" not in lines[0]:
                yield f"{module_name}.{name}", lines[0].strip()


if __name__ == "__main__":
    json.dump(_rows(), sys.stdout)
