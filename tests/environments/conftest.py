"""A clone in miniature: the real builder with three small packages as pins, and a cache of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UV = re.findall(r"^uv==.*$", (ROOT / "cluster/pins/core.txt").read_text(), re.MULTILINE)[0]
PINS = {
    "core.txt": f"idna==3.20\n{UV}\n",
    "train-cpu.txt": "six==1.17.0\n",
    "serve-cpu.txt": "idna==3.20\n",
}


@dataclass
class Clone:
    """One clone and the variables its commands run with."""

    root: Path
    cache: Path
    variables: dict[str, str] = field(default_factory=dict)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cluster.setup", *arguments]

    def env(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
        own = {"TANDEM_CACHE": str(self.cache), "TANDEM_FLAVOUR": "cpu", "PYTHONDONTWRITEBYTECODE": "1"}
        return {**inherited, **own, **self.variables}

    def setup(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.root,
            env=self.env(),
            capture_output=True,
            text=True,
            timeout=120,
        )

    def interpreter(self, name: str) -> Path:
        return Path(self.setup("--print", name).stdout.strip())


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    root = tmp_path / "a clone"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "cluster", root / "cluster", ignore=ignored)
    shutil.copytree(ROOT / "runtime" / "core", root / "runtime" / "core", ignore=ignored)
    shutil.copy(ROOT / "runtime" / "__init__.py", root / "runtime" / "__init__.py")
    (root / "pyproject.toml").touch()
    for file, text in PINS.items():
        (root / "cluster" / "pins" / file).write_text(text)
    return Clone(root, tmp_path / "cache")
