"""Prometheus and promtool for tests: the machine's own, else Debian's package, fetched but not installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from cluster.lock import locked
from runtime.core.places import cache_root

_APT_S = 300.0


def prometheus_folder(cache: Path | None = None) -> Path:
    """The folder with both programs.

    Args:
        cache: Where a fetched package is kept. Default: below Tandem's cache.

    Raises:
        LookupError: there are none, and none could be fetched; says why.
    """
    found = shutil.which("prometheus"), shutil.which("promtool")
    if all(found):
        return Path(str(found[0])).parent
    return fetched(cache or cache_root() / "test-tools" / "prometheus")


def fetched(cache: Path) -> Path:
    """The same from Debian's package, unpacked below ``cache`` once."""
    programs = cache / "unpacked" / "usr" / "bin"
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / "lock", waiting_for="it fetches Prometheus"):
        if not (programs / "promtool").exists():
            _unpack(_package(cache), cache / "unpacked")
    return programs


def _package(cache: Path) -> Path:
    if not shutil.which("apt-get"):
        raise LookupError("prometheus is not installed, and there is no apt-get to fetch it with")
    first = _apt(cache, "download", "prometheus")
    if first.returncode:
        # A fresh machine has no lists of packages yet.
        _apt(cache, "update")
        first = _apt(cache, "download", "prometheus")
    packages = sorted(cache.glob("prometheus_*.deb"))
    if first.returncode or not packages:
        raise LookupError(f"prometheus is not installed, and apt-get could not fetch it: {first.stderr}")
    return packages[-1]


def _apt(cache: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["apt-get", "-q", *words], cwd=cache, capture_output=True, text=True, timeout=_APT_S, check=False
    )


def _unpack(package: Path, folder: Path) -> None:
    new = folder.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    subprocess.run(["dpkg-deb", "-x", str(package), str(new)], check=True, timeout=_APT_S)
    new.rename(folder)
    package.unlink()
