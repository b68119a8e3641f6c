"""TensorBoard's files, where the recipe asks for them (``report_to: tensorboard``), kept with the run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.core.errors import StorageError
from runtime.core.log import get_logger
from storage.location import Location, locate
from storage.runs import RunFolder
from storage.transfer import copy_folder
from train_jobs.plan import TrainPlan

_log = get_logger(__name__)


@contextmanager
def tensorboard_files(plan: TrainPlan, run: RunFolder, scratch: Path, attempt: int) -> Iterator[None]:
    """Let the trainer write them to ``tensorboard/attempt-N`` of the run's folder.

    In a folder they grow there, and can be watched; into an object store they come when the attempt ends.
    """
    wanted = plan.llamafactory.get("report_to") or []
    if "tensorboard" not in ([wanted] if isinstance(wanted, str) else wanted):
        yield
        return
    place = run.place / "tensorboard" / f"attempt-{attempt}"
    local = place.local_path()
    folder = local or scratch / "tensorboard"
    # transformers 5.6 reads it when its callback is made; `logging_dir` goes away.
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder)
    try:
        yield
    finally:
        if local is None and folder.exists():
            _send(folder, place)


def _send(folder: Path, place: Location) -> None:
    try:
        copy_folder(locate(str(folder)), place)
    except StorageError as error:
        _log.warning("TensorBoard's files were not kept: %s", error)
