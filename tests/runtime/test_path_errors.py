"""A path that the operating system refuses is one line, with the path and what to do; no traceback."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from runtime.cli import main
from tests.conftest import ROOT


@pytest.mark.parametrize("file", ["/dev/null/x", "/proc/nope"])
def test_a_folder_that_cannot_be_written_is_told(file: str):
    said = CliRunner().invoke(main, ["monitoring", "rules", "--out", file])
    assert said.exit_code == 1
    (line,) = said.stderr.splitlines()
    assert line.startswith(f"Error: {file} cannot be used (N")
    assert "Choose another path" in line


def test_the_place_in_the_code_is_for_those_who_ask(tandem_command: list[str], tmp_path: Path):
    (tmp_path / "rules.yml").mkdir()
    for words, asked in (([], False), (["-v"], True)):
        command = [*tandem_command, *words, "monitoring", "rules", "--out", str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1
        assert f"Error: {tmp_path}/rules.yml cannot be used (Is a directory)" in done.stderr
        assert ("IsADirectoryError" in done.stderr) == asked
