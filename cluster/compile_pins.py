"""Compile ``cluster/pins/*.in`` to ``*.txt`` with uv, and check that every compiled set still resolves."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

from cluster.environments import PINS, PYTHON_VERSION
from cluster.uv import find_uv, uv_env
from runtime.core.errors import EnvironmentFault

PLATFORM = "x86_64-manylinux_2_28"
# No host and no folder of the machine that compiled may reach the files.
ANONYMOUS = ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]


def compile_all() -> None:
    """Write every ``*.txt`` anew, as new as the ranges in its ``*.in`` allow."""
    for source in sorted(PINS.glob("*.in")):
        started = time.monotonic()
        _compile(source, source.with_suffix(".txt"))
        print(
            f"{source.with_suffix('.txt').name}: compiled in {time.monotonic() - started:.0f} s", flush=True
        )


def check_all() -> None:
    """Resolve every ``*.in`` under its own pins and refuse a set that comes out differently.

    This is all that a machine without a GPU can say about the CUDA sets.

    Raises:
        EnvironmentFault: a set does not resolve or its ``*.txt`` is stale.
    """
    with tempfile.TemporaryDirectory() as scratch:
        for source in sorted(PINS.glob("*.in")):
            pinned, resolved = source.with_suffix(".txt"), Path(scratch) / source.name
            _compile(source, resolved, "--constraint", str(pinned))
            if resolved.read_text() != pinned.read_text():
                raise EnvironmentFault(
                    f"{pinned.name} is not what {source.name} resolves to. Run: make pins."
                )
            print(f"{pinned.name}: resolves", flush=True)


def _compile(source: Path, target: Path, *more: str) -> None:
    overrides = ["--override", str(PINS / "override-cpu.txt")] if source.stem.endswith("-cpu") else []
    where = ["--python-version", PYTHON_VERSION, "--python-platform", PLATFORM]
    command = [str(find_uv()), "pip", "compile", "--quiet", *where, *ANONYMOUS, *overrides, *more]
    is_cuda = source.stem.endswith("-cuda")
    done = subprocess.run(
        [*command, str(source), "-o", str(target)], env=_without_folders() if is_cuda else uv_env()
    )
    if done.returncode:
        raise EnvironmentFault(f"{source.name} does not resolve; uv's message is above. Change its ranges.")
    if is_cuda and "+cpu" in target.read_text():
        raise EnvironmentFault(
            f"{target.name} would have a package built for CPUs (+cpu). Take its folder or index out of "
            "pip's and "
            "uv's configuration, and run: make pins."
        )


def _without_folders() -> dict[str, str]:
    """Without folders of wheels and further indexes: a CPU build of torch there counts as newer than
    PyPI's."""
    variables = uv_env()
    for name in ("UV_FIND_LINKS", "UV_INDEX", "UV_EXTRA_INDEX_URL"):
        variables.pop(name, None)
    return variables
