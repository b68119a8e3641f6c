"""Tandem's side of the storage benchmark.

python -m benchmarks.storage_tandem copy JOB             one measurement
python -m benchmarks.storage_tandem --opens STORE NAME   a model's first opening, and 20 that find it cached
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.storage_child import Job, main, measured
from storage.location import Location, locate
from storage.store import open_store
from storage.transfer import copy_file, copy_folder

_OPENINGS = 20


def place_in_store(job: Job) -> Location:
    """Where the job's files are, or will be, in the store."""
    return locate(job.prefix if job.store == "local" else f"{job.store}://{job.bucket}/{job.prefix}")


def copy(job: Job) -> Callable[[], object]:
    """``copy_folder``, or ``copy_file`` for a single file."""
    ends = (locate(job.folder), place_in_store(job))
    source, target = ends if job.direction == "up" else ends[::-1]
    if job.is_folder:
        return lambda: copy_folder(source, target)
    (name,) = job.names
    return lambda: copy_file(source / name, target / name)


def openings(store_uri: str, model: str) -> dict[str, Any]:
    """What the first opening took, and the milliseconds of those after it.

    Returns:
        ``first``, as of :func:`measured`; ``fetch_ms``, the version known; ``find_and_fetch_ms``, by name.
    """
    store = open_store(store_uri)
    version = store.model(model)
    return {
        "first": measured(lambda: version.fetch().close()),
        "fetch_ms": [_taken_ms(lambda: version.fetch().close()) for _ in range(_OPENINGS)],
        "find_and_fetch_ms": [
            _taken_ms(lambda: store.model(model).fetch().close()) for _ in range(_OPENINGS)
        ],
    }


def _taken_ms(action: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    action()
    return (time.perf_counter() - started_s) * 1000


if __name__ == "__main__":
    if sys.argv[1] == "--opens":
        print(json.dumps(openings(*sys.argv[2:])))
    else:
        main({"copy": copy})
