"""What a plain cluster's head tells the machines that join, kept in Ray's own key-value store.

    python -m cluster.plain.record write HEAD:PORT < RECORD
    python -m cluster.plain.record read HEAD:PORT

In a process of its own: Ray reads the token's variables once, when it is imported.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.auth import token_variables
from cluster.cluster_spec import ClusterSpec
from cluster.code import code_root, code_snapshot
from cluster.environments import SHIPPED, describe, interpreter
from runtime.core.config import ConfigModel, parse_spec
from runtime.core.errors import ClusterError
from runtime.core.places import file_cache

_KEY, _NAMESPACE = b"record", b"tandem"
_TIMEOUT_S = 60.0


class Machine(ConfigModel):
    """What must be equal on all machines of a cluster: a worker's interpreter and code are named by path."""

    ray: str
    python: str
    interpreters: dict[str, str]
    """Of core, train and serve."""

    code: str
    """The folder with Tandem's own packages, named by their content."""

    file_cache: str
    """Where models and datasets are kept on the machine."""


class Record(ConfigModel):
    """What the head tells."""

    name: str
    machine: Machine
    store: str
    """Root address of the store."""

    mark: str
    """A file in the store, and what is in it: who reads it has the same store."""

    mark_content: str
    http_port: int
    has_token: bool
    """Whether Ray asks for one here."""

    spec: ClusterSpec | None
    """The cluster spec, where the head was given one."""


def this_machine() -> Machine:
    """This machine's.

    Raises:
        EnvironmentFault: an environment is not built.
    """
    core = describe("core")
    return Machine(
        ray=core.ray or "none",
        python=core.python,
        interpreters={name: str(interpreter(name)) for name in SHIPPED},
        code=str(code_snapshot()),
        file_cache=str(file_cache()),
    )


def write_record(address: str, record: Record, token_file: Path | None) -> None:
    """Keep it with the head at ``address``, ``ip:port``, until the cluster ends."""
    _ray_process("write", address, token_file, record.to_json())


def read_record(address: str, token_file: Path | None) -> Record:
    """What the head at ``address`` tells.

    Raises:
        ClusterError: it does not answer, does not take the token, or was not started by ``tandem up --head``.
    """
    text = _ray_process("read", address, token_file)
    if not text.strip():
        raise ClusterError(
            f"the cluster at {address} was not started by `tandem up --head`, so nobody knows its store. "
            "Start its head so."
        )
    return parse_spec(Record, text, origin=f"the record of {address}")


def _ray_process(what: str, address: str, token_file: Path | None, text: str = "") -> str:
    command = [str(interpreter("core")), "-m", __name__, what, address]
    env: Mapping[str, str] = {"PYTHONPATH": str(code_root()), **token_variables(token_file)}
    try:
        done = subprocess.run(
            command, input=text, env=dict(env), capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(
            f"Ray at {address} did not answer within {_TIMEOUT_S:.0f} s. Is the port open between the "
            "machines?"
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ClusterError(f"Ray at {address} does not answer as a cluster's head does: {last}")
    return done.stdout


def _main(arguments: list[str]) -> None:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    what, address = arguments
    gcs: Any = GcsClient(address=address)
    if what == "write":
        gcs.internal_kv_put(_KEY, sys.stdin.read().encode(), True, _NAMESPACE)
    else:
        sys.stdout.write((gcs.internal_kv_get(_KEY, _NAMESPACE) or b"").decode())


if __name__ == "__main__":
    _main(sys.argv[1:])
