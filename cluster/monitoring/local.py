"""Prometheus beside a cluster of this machine: its files, its command, and whether it answers.

It is the cluster's supervisor that starts it (``cluster.supervisor``), so that it ends with the cluster.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from cluster.monitoring.prometheus import SCRAPE_S, prometheus_config, to_text
from cluster.monitoring.rules import rule_groups
from cluster.supervised import companion_lives
from runtime.core.errors import ClusterError, EnvironmentFault

_RETENTION = ("15d", "4GB")
"""What is older goes, and the oldest where there is more."""


@dataclass(frozen=True)
class Monitoring:
    """Prometheus as it is about to be started."""

    command: tuple[str, ...]
    config: Path
    """Its configuration, by which it is told from somebody else's."""

    url: str


def prepare(
    folder: Path,
    *,
    discovery: str,
    cluster: str,
    port: int,
    haproxy: Sequence[str] = (),
    haproxy_port: int | None = None,
    scrape_s: float = SCRAPE_S,
    hold_s: float | None = None,
) -> Monitoring:
    """Write Prometheus' files below ``folder``, where its data lies as well and outlives the cluster.

    Args:
        discovery: See :func:`cluster.monitoring.prometheus.prometheus_config`; so are the others but
        port: On 127.0.0.1, where Prometheus listens.
        hold_s: See :func:`cluster.monitoring.rules.rule_groups`.

    Raises:
        EnvironmentFault: Prometheus is not installed, or does not take the configuration.
    """
    program, checker = _program("prometheus"), _program("promtool")
    folder.mkdir(parents=True, exist_ok=True)
    rules, config = folder / "rules.yml", folder / "prometheus.yml"
    rules.write_text(to_text({"groups": rule_groups(hold_s=hold_s)}))
    config.write_text(
        to_text(
            prometheus_config(
                discovery=discovery,
                cluster=cluster,
                rule_files=[str(rules)],
                haproxy=haproxy,
                haproxy_port=haproxy_port,
                scrape_s=scrape_s,
            )
        )
    )
    _check(checker, config)
    return Monitoring(_command(program, config, folder / "data", port), config, f"http://127.0.0.1:{port}")


def wait_until_ready(started: Monitoring, state_file: Path, log: Path, timeout_s: float = 60) -> None:
    """Return when this very Prometheus answers queries.

    Args:
        state_file: Where the supervisor that started it wrote who it is.
        log: Where it writes.

    Raises:
        ClusterError: it has ended, or does not answer in that time; names ``log``.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        ready = _is_ready(started)
        if not companion_lives(state_file):
            raise ClusterError(
                f"Prometheus, which was to answer at {started.url}, has ended. See {log}: if its address is "
                "already in use, end the program that listens there or choose another --prometheus-port."
            )
        if ready:
            return
        if time.monotonic() > deadline:
            raise ClusterError(
                f"Prometheus did not answer at {started.url} within {timeout_s:.0f} s. See {log}; mend what "
                "it says, or leave --monitoring out."
            )
        time.sleep(0.1)


def _is_ready(started: Monitoring) -> bool:
    """Whether who answers there is ready, and was started with our configuration."""
    # Not as Ray's API is asked: Ray's token is none of Prometheus' business.
    try:
        ready = httpx.get(f"{started.url}/-/ready", timeout=2, trust_env=False)
        flags = httpx.get(f"{started.url}/api/v1/status/flags", timeout=2, trust_env=False).json()
        return ready.status_code == 200 and flags["data"]["config.file"] == str(started.config)
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return False


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise EnvironmentFault(
            f"--monitoring needs the program {name}, which is not on PATH. Install Prometheus (Debian and "
            "Ubuntu: apt install prometheus; macOS: brew install prometheus; else its releases), or leave "
            "--monitoring out."
        )
    return found


def _check(checker: str, config: Path) -> None:
    done = subprocess.run([checker, "check", "config", str(config)], capture_output=True, text=True)
    if done.returncode:
        raise EnvironmentFault(
            f"this machine's Prometheus does not take {config}:\n{done.stdout}{done.stderr}It may be too old "
            "(2.42 is known to work): install a newer one, or leave --monitoring out."
        )


def _command(program: str, config: Path, data: Path, port: int) -> tuple[str, ...]:
    age, size = _RETENTION
    return (
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={data}",
        f"--storage.tsdb.retention.time={age}",
        f"--storage.tsdb.retention.size={size}",
        # Whoever reaches it may read and query everything: this machine only.
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    )
