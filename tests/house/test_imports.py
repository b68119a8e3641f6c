"""The house's walls: who may import whom, and what stays light."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import grimp

from cluster.environments import interpreter

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("runtime", "storage", "cluster", "train_jobs", "serve_apps")
ENGINES = ("torch", "vllm", "llamafactory", "deepspeed", "transformers")

# Imports every module it is given, then tells which of the unwanted ones that brought in.
LOADED = """
import importlib, json, sys
modules, unwanted = json.loads(sys.argv[1])
for module in modules:
    importlib.import_module(module)
print(json.dumps([name for name in unwanted if name in sys.modules]))
"""


def core_modules() -> list[str]:
    """Every module of ours outside the engine folders; ``__main__`` files act when imported."""
    files = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    names = (".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files)
    kept = (name.removesuffix(".__init__") for name in names if not name.endswith("__main__"))
    return sorted(name for name in kept if ".engine" not in name and ".standins" not in name)


def loaded(modules: list[str], unwanted: tuple[str, ...]) -> list[str]:
    """Which of ``unwanted`` are loaded after ``modules`` were imported in a fresh core interpreter."""
    done = subprocess.run(
        [str(interpreter("core")), "-c", LOADED, json.dumps([modules, unwanted])],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_imports_go_down_and_only_engines_import_engines():
    linter = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert linter, "import-linter is part of the dev environment: run make test"
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_ground_floor_imports_nothing_of_ours():
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    below = graph.find_upstream_modules("runtime.core", as_package=True)
    assert below == set()


def test_every_core_module_imports_in_the_core_environment_without_an_engine():
    modules = core_modules()
    assert {"runtime.cli", "cluster.environments", "train_jobs.plan", "serve_apps.build"} <= set(modules)
    assert loaded(modules, ENGINES) == []


def test_the_command_line_starts_without_what_is_slow_to_import():
    assert loaded(["runtime", "runtime.cli"], ("ray", "pandas", "openai", "matplotlib", "fastapi")) == []
