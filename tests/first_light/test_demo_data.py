from __future__ import annotations

import inspect

import pytest

from runtime.demo_data import docstring_rows


def test_the_demos_rows_are_the_same_whatever_the_process_has_imported(monkeypatch: pytest.MonkeyPatch):
    before = docstring_rows()

    def isgenerator(value: object) -> bool:
        return False

    # As modules compiled by Cython do to the process that imports them.
    monkeypatch.setattr(inspect, "isgenerator", isgenerator)
    assert docstring_rows() == before
    assert "What does inspect.isgenerator do?" in [row["instruction"] for row in before]
