"""A run's folder: the resolved spec, metrics as they come, checkpoints, and the result."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storage.commit import new_folder, write_json


@dataclass(frozen=True)
class RunFolder:
    """One training run in the store, ``runs/<name>/<run-id>/``."""

    run_id: str
    """``<name>-<UTC date>-<time>-<4 hex digits>``; also the Ray job's submission id."""

    path: Path
    """The folder."""

    @property
    def name(self) -> str:
        """The name that the spec gave."""
        return self.path.parent.name

    @property
    def uri(self) -> str:
        """The folder's address."""
        return str(self.path)

    @property
    def created_at(self) -> str:
        """UTC, ISO 8601."""
        return str(self.record()["created_at"])

    def spec_json(self) -> str:
        """The resolved spec, as it was submitted."""
        return (self.path / "spec.json").read_text()

    def record(self) -> dict[str, Any]:
        """``run.json``: when the run began and which Ray job it is."""
        return dict(json.loads((self.path / "run.json").read_text()))

    def update_record(self, **fields: Any) -> None:
        """Add ``fields`` to ``run.json``."""
        write_json(self.path / "run.json", self.record() | fields)

    def metrics(self) -> list[dict[str, Any]]:
        """One mapping a logged step, oldest first; a line that is still being written is left out."""
        try:
            text = (self.path / "metrics.jsonl").read_text()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind("\n") + 1]
        return [json.loads(line) for line in whole.splitlines()]

    def append_metrics(self, values: dict[str, Any]) -> None:
        """Add one line. One writer at a time: rank 0 of the run."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")

    def result(self) -> dict[str, Any] | None:
        """``{"status": "succeeded", "model": ...}``, ``{"status": "failed", "error": ...}``, or None yet."""
        try:
            return dict(json.loads((self.path / "result.json").read_text()))
        except FileNotFoundError:
            return None

    def write_result(self, result: dict[str, Any]) -> None:
        """Say how the run ended, in one step."""
        write_json(self.path / "result.json", result)


def new_run(runs_root: Path, name: str, spec_json: str) -> RunFolder:
    """A fresh run folder for ``name`` that holds ``spec_json``."""
    now = datetime.now(UTC)
    run_id = f"{name}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    final = runs_root / name / run_id
    with new_folder(final) as scratch:
        (scratch / "spec.json").write_text(spec_json)
        write_json(scratch / "run.json", {"created_at": now.isoformat(timespec="microseconds")})
        (scratch / "checkpoints").mkdir()
    return RunFolder(run_id=run_id, path=final)


def list_runs(runs_root: Path, name: str | None) -> list[RunFolder]:
    """Runs of ``name``, or of every name, oldest first."""
    folders = runs_root.glob(f"{name or '*'}/*/run.json")
    runs = [
        RunFolder(run_id=f.parent.name, path=f.parent) for f in folders if not f.parent.name.startswith(".")
    ]
    return sorted(runs, key=lambda run: (run.created_at, run.run_id))
