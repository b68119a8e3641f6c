"""Machines of a plain cluster: each has an address and a TANDEM_HOME, and runs ``tandem`` as a user does."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cluster.code import code_snapshot
from cluster.environments import interpreter
from tests.plain_cluster.network import Place
from tests.train.living import kill_tree


@dataclass(frozen=True)
class Machine:
    """One machine, in its network namespace."""

    place: Place
    home: Path
    code: Path
    """Tandem as it is installed on all of them: the clone may be edited while the test runs."""

    @classmethod
    def at(cls, place: Place, folder: Path) -> Machine:
        """A machine whose TANDEM_HOME is below ``folder``."""
        return cls(place, folder / place.name, code_snapshot())

    def tandem(self, *words: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run ``tandem`` here, with these variables besides."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TANDEM_STORE"))}
        own = {
            "TANDEM_HOME": str(self.home),
            "PYTHONPATH": str(self.code),
            # Gloo asks for the host's name, which is the same in all namespaces.
            "GLOO_SOCKET_IFNAME": "eth0",
        }
        command = ["ip", "netns", "exec", self.place.name, str(interpreter("core")), "-m", "runtime", *words]
        done = subprocess.run(
            command,
            env=inherited | own | variables,
            cwd=self.code,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    def up(self, *words: str) -> dict[str, Any]:
        """``tandem up`` with these words; what it tells."""
        return dict(json.loads(self.tandem("up", *words, "--json").stdout))

    def lose(self) -> None:
        """As a machine that loses its power."""
        state = json.loads((self.home / "node.json").read_text())
        kill_tree(psutil.Process(state["pid"]))
