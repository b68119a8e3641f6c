"""DeepSpeed's compiled ops: built once into the environment, loaded by every later run."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from cluster.lock import locked
from runtime.core.errors import ConfigError


def ensure_ops(deepspeed_config: dict[str, Any], *, use_gpu: bool) -> None:
    """Have the compiled ops that ``deepspeed_config`` needs loaded in this process. Every rank calls it.

    The first call on a machine compiles for some minutes; all others wait for it or find it done.

    Args:
        deepspeed_config: DeepSpeed's configuration.
        use_gpu: Whether training is on a GPU. The optimizer's op runs on the CPU either way.

    Raises:
        ConfigError: an op cannot be compiled here.

    Source: ``accelerate.Accelerator._prepare_deepspeed``: it puts DeepSpeedCPUAdam in AdamW's place.
    """
    if not needs_cpu_adam(deepspeed_config):
        return
    folder = extensions_dir()
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    # Ray does not put the environment's programs on PATH. And another ninja would build everything anew.
    os.environ["PATH"] = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    with locked(folder.parent / f"{folder.name}.lock", waiting_for="it builds or loads DeepSpeed's cpu_adam"):
        # torch's own lock is a file that a killed compiler leaves, and then everybody waits for ever. Whoever
        # holds ours is alone here.
        (folder / "cpu_adam" / "lock").unlink(missing_ok=True)
        _load_cpu_adam(use_gpu=use_gpu)


def needs_cpu_adam(deepspeed_config: dict[str, Any]) -> bool:
    """Whether accelerate or DeepSpeed will put the compiled DeepSpeedCPUAdam in AdamW's place."""
    offload = (deepspeed_config.get("zero_optimization") or {}).get("offload_optimizer") or {}
    forced: bool = deepspeed_config.get("zero_force_ds_cpu_optimizer", True)
    return forced and offload.get("device", "none") != "none"


def extensions_dir() -> Path:
    """Where this machine's compiled ops are: in the environment, one folder for each kind of processor.

    They are compiled for the processor at hand: on another one of a shared home they could end in an illegal
    instruction.
    """
    info = Path("/proc/cpuinfo")
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", info.read_text() if info.exists() else "", re.M)
    mark = hashlib.sha256(" ".join(sorted(flags[1].split())).encode() if flags else b"").hexdigest()[:12]
    return Path(sys.prefix) / "torch_extensions" / mark


def _load_cpu_adam(*, use_gpu: bool) -> None:
    from deepspeed.ops.op_builder import CPUAdamBuilder

    try:
        CPUAdamBuilder().load(verbose=False)
    except Exception as error:
        compiler = os.environ.get("CXX", "c++")
        if shutil.which(compiler) is None:
            reason, remedy = f"this machine has no C++ compiler ({compiler})", "Install g++"
        else:
            reason, remedy = f"compiling it failed: {_first_error(error)}", "Mend the compiler"
        raise ConfigError(
            "deepspeed.zero_optimization.offload_optimizer needs DeepSpeed's compiled cpu_adam, and "
            f"{reason}. {remedy}, or set deepspeed.zero_force_ds_cpu_optimizer: false to train with torch's "
            f"own AdamW, {'slower with a large model' if use_gpu else 'with the same losses'}."
        ) from error


def _first_error(error: BaseException) -> str:
    """The compiler's first error, or the first line of all."""
    lines = str(error).splitlines() or [type(error).__name__]
    return next((line.strip() for line in lines if "error:" in line), lines[0])
