"""uv: found or installed, and told what pip is configured to use. Standard library only.

uv does not read pip's configuration, so a mirror or a folder of wheels that an administrator set for pip is
handed on through uv's own variables. What the user set for uv wins.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from cluster.environments import PINS, pins
from runtime.core.errors import EnvironmentFault
from runtime.core.places import cache_root

OLDEST_UV = (0, 7)
"""The first with everything used here, ``--torch-backend`` included."""


def find_uv() -> Path:
    """uv from PATH, beside this interpreter, or a pinned one of ours in the cache, installed when missing.

    Raises:
        EnvironmentFault: there is none and pip cannot install it.
    """
    private = cache_root() / "tools" / f"uv-{_pinned_uv()}"
    places = [shutil.which("uv"), Path(sys.executable).parent / "uv", private / "bin" / "uv"]
    for place in places:
        if place and _version(Path(place)) >= OLDEST_UV:
            return Path(place)
    return _install_uv(private)


def _pinned_uv() -> str:
    found = re.search(r"^uv==(\S+)$", pins("core").read_text(), re.MULTILINE)
    if not found:
        raise EnvironmentFault(f"{PINS / 'core.txt'} does not pin uv. Add uv to core.in and run: make pins.")
    return found.group(1)


def _version(uv: Path) -> tuple[int, ...]:
    """uv's version, or () when the file does not run."""
    try:
        done = subprocess.run([str(uv), "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ()
    return tuple(int(number) for number in re.findall(r"\d+", done.stdout.split()[1])[:2])


def _install_uv(private: Path) -> Path:
    """A virtual environment of uv alone, made with pip (which knows its own indexes)."""
    print(f"uv is not installed; putting {private.name} into {private}", file=sys.stderr)
    private.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(private, ignore_errors=True)
    requirement = private.name.replace("-", "==")
    steps = [
        [sys.executable, "-m", "venv", str(private)],
        [str(private / "bin" / "python"), "-m", "pip", "install", "--quiet", requirement],
    ]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
            raise EnvironmentFault(
                f"uv is missing and could not be installed: {' '.join(step)} said: {reason[0]}. "
                "Install uv yourself (https://docs.astral.sh/uv) or, on Debian, python3-venv, and try again."
            )
    return private / "bin" / "uv"


def uv_env() -> dict[str, str]:
    """The process's environment with pip's settings added under uv's names."""
    settings = pip_settings()
    return {**_translated(settings), **os.environ}


def pip_settings() -> dict[str, str]:
    """pip's configuration as pip itself resolves it: files, then ``PIP_*`` variables, which win.

    Returns:
        Values by option name (``find-links``, ``index-url``); lists stay separated by white space.
    """
    rank = {"global": 0, "install": 1, ":env:": 2}
    found: dict[str, tuple[int, str]] = {}
    for section, option, value in filter(None, map(_setting, _pip_config_list())):
        # Like pip, pass over what is set to nothing.
        if value and section in rank and rank[section] >= found.get(option, (0, ""))[0]:
            found[option] = (rank[section], value)
    variables = {
        name[4:].lower().replace("_", "-"): value
        for name, value in os.environ.items()
        if name.startswith("PIP_") and value
    }
    return {**{option: value for option, (_, value) in found.items()}, **variables}


def _pip_config_list() -> list[str]:
    """The lines of ``pip config list``, from the first interpreter that has a pip: our own have none."""
    base = getattr(sys, "_base_executable", None)
    for python in filter(None, (sys.executable, base, shutil.which("python3"))):
        done = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout.splitlines()
    return []


def _setting(line: str) -> tuple[str, str, str] | None:
    """``global.find-links='/wheels'`` as its three parts."""
    key, separator, value = line.partition("=")
    section, dot, option = key.rpartition(".")
    if not separator or not dot:
        return None
    try:
        return section, option, str(ast.literal_eval(value))
    except (SyntaxError, ValueError):
        return section, option, value


def _translated(settings: dict[str, str]) -> dict[str, str]:
    """pip's options under uv's variable names."""
    renamed = {
        "UV_FIND_LINKS": ",".join(settings.get("find-links", "").split()),
        "UV_DEFAULT_INDEX": settings.get("index-url", ""),
        "UV_INDEX": settings.get("extra-index-url", ""),
        "UV_NO_INDEX": "1" if settings.get("no-index", "").lower() in ("1", "true", "yes", "on") else "",
        "UV_INSECURE_HOST": settings.get("trusted-host", ""),
        "UV_HTTP_TIMEOUT": settings.get("default-timeout", settings.get("timeout", "")),
        "SSL_CERT_FILE": settings.get("cert", ""),
        "HTTP_PROXY": settings.get("proxy", ""),
        "HTTPS_PROXY": settings.get("proxy", ""),
    }
    if renamed["UV_INDEX"]:
        # pip looks for a version on every index; uv stops at the first that knows the name.
        renamed["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return {name: " ".join(value.split()) for name, value in renamed.items() if value}
