"""Prometheus' own programs, for tests that ask them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.servers.prometheus_binaries import prometheus_folder


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder with prometheus and promtool."""
    try:
        return prometheus_folder()
    except LookupError as error:
        pytest.skip(str(error))


@pytest.fixture
def on_path(programs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, on PATH as where Prometheus is installed."""
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return programs
