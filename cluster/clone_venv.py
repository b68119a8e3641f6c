"""``.venv/`` in a clone: a light view on the cached core environment, with this clone's code.

``. .venv/bin/activate`` gives ``python``, ``tandem``, ``ray`` and ``serve``. It holds no packages of its own,
so it is made in a fraction of a second and made again when the clone or the cache has moved.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

from cluster.environments import PYTHON_VERSION, interpreter
from cluster.lock import locked
from runtime.core.errors import EnvironmentFault
from runtime.core.places import cache_root

CLONE = Path(__file__).resolve().parent.parent
VIEW = CLONE / ".venv"
STAMP = "tandem.json"
COMMANDS = {"tandem": "runtime.cli:main", "ray": "ray.scripts.scripts:main", "serve": "ray.serve.scripts:cli"}
# The form of pip and uv for paths that a kernel's #! line cannot hold: too long, or with spaces.
SCRIPT = """\
#!/bin/sh
'''exec' '{python}' "$0" "$@"
' '''
import sys

from {module} import {function}

sys.exit({function}())
"""


def ensure() -> None:
    """Make ``.venv/``, or leave it when it already looks at this clone and the present core environment.

    Outside a clone (an installed distribution) there is nothing to make.

    Raises:
        EnvironmentFault: there is a ``.venv`` that is not ours.
    """
    wanted = {"core": str(interpreter("core")), "clone": str(CLONE)}
    if not (CLONE / "pyproject.toml").exists() or _content() == wanted:
        return
    place = hashlib.sha256(str(CLONE).encode()).hexdigest()[:12]
    with locked(cache_root() / "environments" / f"clone-{place}.lock", waiting_for=str(VIEW)):
        if _content() != wanted:
            _make(wanted)
            print(f"{VIEW} is ready. Use it with: . .venv/bin/activate", file=sys.stderr)


def _make(wanted: dict[str, str]) -> None:
    _refuse_foreign()
    shutil.rmtree(VIEW, ignore_errors=True)
    VIEW.mkdir()
    (VIEW / STAMP).write_text("{}")
    subprocess.run([wanted["core"], "-m", "venv", "--without-pip", str(VIEW)], check=True)
    _write_path(Path(wanted["core"]))
    for name, target in COMMANDS.items():
        _write_script(name, *target.split(":"))
    (VIEW / STAMP).write_text(json.dumps(wanted))


def _content() -> dict[str, str] | None:
    try:
        content: dict[str, str] = json.loads((VIEW / STAMP).read_text())
    except (OSError, ValueError):
        return None
    return content


def _refuse_foreign() -> None:
    if VIEW.exists() and not (VIEW / STAMP).exists():
        raise EnvironmentFault(f"{VIEW} is not Tandem's. Move it away and run make setup again.")


def _write_path(core: Path) -> None:
    """Put the core environment's packages and this clone on the path, the clone last."""
    packages = core.parent.parent / "lib" / f"python{PYTHON_VERSION}" / "site-packages"
    own = VIEW / "lib" / f"python{PYTHON_VERSION}" / "site-packages"
    (own / "tandem.pth").write_text(f"import site; site.addsitedir({str(packages)!r})\n{CLONE}\n")


def _write_script(name: str, module: str, function: str) -> None:
    script = VIEW / "bin" / name
    script.write_text(SCRIPT.format(python=VIEW / "bin" / "python", module=module, function=function))
    script.chmod(0o755)
