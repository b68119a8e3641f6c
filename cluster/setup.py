"""Build the environments: ``python3 -m cluster.setup`` (``make setup``), with any Python 3.9 or newer.

Virtual environments cannot be moved, so each is built in place under an exclusive lock and its stamp is
written last. A folder without a stamp was interrupted: it is removed and built again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.environments import (
    NAMES,
    PYTHON_VERSION,
    SHIPPED,
    STAMP,
    environment_dir,
    flavour,
    interpreter,
    pins,
    stamp,
    standins,
    version_of,
)
from cluster.lock import locked
from cluster.uv import find_uv, uv_env
from runtime.core.errors import EnvironmentFault, TandemError
from runtime.core.places import cache_root

DISK_BYTES = {
    ("core", "cpu"): 1e9,
    ("train", "cpu"): 3e9,
    ("serve", "cpu"): 4e9,
    ("core", "cuda"): 1e9,
    ("train", "cuda"): 12e9,
    ("serve", "cuda"): 15e9,
    ("dev", "cpu"): 1e9,
    ("dev", "cuda"): 1e9,
}
"""What each takes when uv's own cache is empty, measured with du and rounded up (CUDA: from wheel sizes)."""


def ensure(names: Sequence[str] = SHIPPED) -> None:
    """Build those of ``names`` that are not built yet, one after the other (uv itself works in parallel).

    Raises:
        EnvironmentFault: no Python 3.11, no uv, no room, or an installation that failed.
    """
    names = [name for name in names if not _is_overridden(name)]
    base_version = _common_python()
    missing = [name for name in names if not _is_current(name, base_version)]
    if not missing:
        return
    _check_disk(missing)
    uv, variables = find_uv(), _build_env()
    base = base_python(uv)
    for name in missing:
        _build(name, uv, variables, base)


def _is_overridden(name: str) -> bool:
    return bool(os.environ.get(f"TANDEM_PYTHON_{name.upper()}"))


def _common_python() -> str | None:
    """The Python version of the environments that are built; the core one decides."""
    stamps = [stamp(environment_dir(name)) for name in NAMES]
    return next((content["python"] for content in stamps if content), None)


def _is_current(name: str, python: str | None) -> bool:
    content = stamp(environment_dir(name))
    return content is not None and content["python"] == python


def base_python(uv: Path) -> Path:
    """The Python 3.11 that all environments are made from, so that Ray finds one version everywhere.

    Args:
        uv: Asked last; it knows interpreters outside PATH, its own among them.

    Raises:
        EnvironmentFault: there is none on this machine.
    """
    stamps = [stamp(environment_dir(name)) for name in NAMES]
    known = [content["base"] for content in stamps if content]
    running = str(getattr(sys, "_base_executable", sys.executable))
    on_path = shutil.which(f"python{PYTHON_VERSION}")
    command = [str(uv), "python", "find", "--no-python-downloads", "--no-project", PYTHON_VERSION]
    found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    for candidate in [*known, running, on_path, found]:
        if candidate and _is_wanted(Path(candidate)):
            return _unwrapped(Path(candidate))
    raise EnvironmentFault(
        f"Tandem needs Python {PYTHON_VERSION} and found none (this is {sys.version.split()[0]}, PATH has no "
        f"python{PYTHON_VERSION}). Install it, for example with: uv python install {PYTHON_VERSION}, then "
        "run make setup again."
    )


def _is_wanted(python: Path) -> bool:
    try:
        return version_of(python).startswith(f"{PYTHON_VERSION}.")
    except EnvironmentFault:
        return False


def _unwrapped(python: Path) -> Path:
    """The interpreter behind a virtual environment or a version manager's shim."""
    command = [str(python), "-c", "import sys; print(sys._base_executable)"]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def _check_disk(missing: Sequence[str]) -> None:
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    needed = sum(DISK_BYTES[name, flavour()] for name in missing)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise EnvironmentFault(
            f"{root} has {free / 1e9:.1f} GB free, but the environments {', '.join(missing)} need about "
            f"{needed / 1e9:.0f} GB. Free some room, or set TANDEM_CACHE to a folder on another disk."
        )


def _build_env() -> dict[str, str]:
    variables = uv_env()
    # Byte code is what makes LLaMA-Factory import in 9 s and not in 29 s; some machines turn it off.
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    variables.pop("PYTHONPATH", None)
    return variables


def _build(name: str, uv: Path, variables: dict[str, str], base: Path) -> None:
    folder = environment_dir(name)
    with locked(Path(f"{folder}.lock"), waiting_for=f"the {name} environment") as lock:
        if _is_current(name, version_of(base)):
            return
        started = time.monotonic()
        print(f"Building the {name} environment ({flavour()}) in {folder}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        _install(name, folder, uv, variables, base, lock)
        _write_stamp(folder, base)
        print(f"Built the {name} environment in {time.monotonic() - started:.0f} s", file=sys.stderr)


def _install(name: str, folder: Path, uv: Path, variables: dict[str, str], base: Path, lock: int) -> None:
    def run(*arguments: str, silent: bool = False) -> int:
        output = subprocess.DEVNULL if silent else None
        # Without a terminal there is no progress to show, only a list of 150 packages.
        command = [str(uv), *([] if sys.stderr.isatty() else ["--quiet"]), *arguments]
        return subprocess.run(
            command, env=variables, pass_fds=(lock,), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ).returncode

    _refuse_failure(run("venv", "--quiet", "--no-project", "--python", str(base), str(folder)), name, folder)
    install = ["pip", "install", "--python", str(folder / "bin" / "python"), "--no-deps"]
    torch = next((line for line in pins(name).read_text().splitlines() if line.startswith("torch==")), "")
    if "+cpu" in torch and run(*install, "--dry-run", torch, silent=True):
        # No configured place has CPU torch: let uv use the index it knows for it.
        install += ["--torch-backend", "cpu"]
    _refuse_failure(run(*install, "--compile-bytecode", "-r", str(pins(name))), name, folder)
    for module in standins(name):
        shutil.copy(module, _site_packages(folder))


def _refuse_failure(code: int, name: str, folder: Path) -> None:
    if code:
        raise EnvironmentFault(
            f"The {name} environment could not be built in {folder}; uv's message is above. If a package was "
            "not found, set pip's index-url or find-links (or UV_DEFAULT_INDEX, UV_FIND_LINKS) and run "
            "make setup again: what was downloaded is kept."
        )


def _site_packages(folder: Path) -> Path:
    return folder / "lib" / f"python{PYTHON_VERSION}" / "site-packages"


def _write_stamp(folder: Path, base: Path) -> None:
    content = {"python": version_of(folder / "bin" / "python"), "base": str(base)}
    unfinished = folder / f"{STAMP}.new"
    unfinished.write_text(json.dumps(content))
    unfinished.rename(folder / STAMP)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of ``python3 -m cluster.setup``; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python3 -m cluster.setup", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all but dev"
    )
    parser.add_argument(
        "--print", dest="show", metavar="NAME", choices=NAMES, help="print an interpreter's path"
    )
    parser.add_argument(
        "--compile", action="store_true", help="write cluster/pins/*.txt anew from the *.in files"
    )
    parser.add_argument(
        "--check", action="store_true", help="resolve every pinned set, the CUDA ones included"
    )
    options = parser.parse_args(arguments)
    try:
        return _act(options)
    except TandemError as error:
        print(f"tandem: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("tandem: interrupted. Run the same command again; it goes on from here.", file=sys.stderr)
        return 130


def _act(options: argparse.Namespace) -> int:
    from cluster import clone_venv, compile_pins

    if options.show:
        print(interpreter(options.show))
    elif options.compile:
        compile_pins.compile_all()
    elif options.check:
        compile_pins.check_all()
    else:
        names = options.names or SHIPPED
        ensure(names)
        if "core" in names:
            clone_venv.ensure()
    return 0


if __name__ == "__main__":
    sys.exit(main())
