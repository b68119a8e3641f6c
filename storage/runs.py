"""A run's folder: the resolved spec, metrics as they come, checkpoints, and the result."""

from __future__ import annotations

import json
import re
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from runtime.core.errors import ConfigError, StorageError
from runtime.core.lookup import did_you_mean
from storage.commit import read_manifest, remove_committed
from storage.location import Location, side_by_side
from storage.manifest import CheckpointManifest
from storage.metrics_log import MetricsLog, read_metrics

_RUN_ID = re.compile(r"(?P<name>.+)-(\d{8}-\d{6}-[0-9a-f]{4}|[0-9a-f]{8})")


Ended = Literal["stopped", "preempted", "resized"]


@dataclass(frozen=True)
class Stop:
    """A request to save a checkpoint and leave."""

    reason: str
    """Why, in a few words."""

    ended: Ended
    """``stopped``: the run ends. ``preempted``, ``resized``: it is taken up again at once."""


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint."""

    place: Location
    manifest: CheckpointManifest


@dataclass(frozen=True)
class RunFolder:
    """One training run in the store, ``runs/<name>/<run-id>/``."""

    run_id: str
    """``<name>-<UTC date>-<time>-<4 hex digits>``, also the Ray job's submission id; of a job in a manifest
    ``<name>-<8 hex digits>``."""

    place: Location
    """The folder."""

    @property
    def name(self) -> str:
        """The name that the spec gave."""
        return self.place.key.rpartition("/")[0].rpartition("/")[2]

    @property
    def uri(self) -> str:
        """The folder's address."""
        return self.place.uri

    @property
    def created_at(self) -> str:
        """UTC, ISO 8601."""
        return str(self.record()["created_at"])

    def spec_json(self) -> str:
        """The resolved spec, as it was submitted."""
        return (self.place / "spec.json").read_bytes().decode()

    def plan(self) -> dict[str, Any]:
        """What the driver was told to do.

        Raises:
            StorageError: the run was never planned.
        """
        plan = (self.place / "plan.json").read_json()
        if plan is None:
            raise StorageError(f"{self.place / 'plan.json'}: the run has no plan. Submit its spec again.")
        return dict(plan)

    def write_plan(self, plan_json: str) -> None:
        """Keep the driver's plan."""
        (self.place / "plan.json").write_bytes(plan_json.encode())

    def begin_again(self) -> None:
        """Forget how the run ended, and any request to stop it: it goes on."""
        for name in ("stop.json", "leave.json", "result.json"):
            (self.place / name).delete()

    def record(self) -> dict[str, Any]:
        """``run.json``: when the run began and which Ray job it is."""
        record = (self.place / "run.json").read_json()
        if record is None:
            raise StorageError(
                f"{self.place / 'run.json'} is gone: somebody removed the run. See: tandem runs."
            )
        return dict(record)

    def update_record(self, **fields: Any) -> None:
        """Add ``fields`` to ``run.json``."""
        (self.place / "run.json").write_json(self.record() | fields)

    def metrics(self) -> list[dict[str, Any]]:
        """One mapping a logged step, oldest first."""
        return read_metrics(self.place / "metrics.jsonl")

    def metrics_log(self) -> MetricsLog:
        """For the one process that adds to the metrics: rank 0 of the run."""
        return MetricsLog(self.place / "metrics.jsonl")

    def result(self) -> dict[str, Any] | None:
        """How it ended: ``{"status": "succeeded", "model": ...}``, ``{"status": "failed", "error": ...}`` or
        ``{"status": "stopped", "error": ...}``; None while it goes on. The last two can be resumed."""
        result = (self.place / "result.json").read_json()
        return None if result is None else dict(result)

    def write_result(self, result: dict[str, Any]) -> None:
        """Say how the run ended, in one step."""
        (self.place / "result.json").write_json(result)

    def request_stop(self, reason: str, *, ended: Ended = "stopped") -> None:
        """Ask the workers to save a checkpoint at the end of their step and to leave.

        Args:
            reason: Why, in a few words: the run's result and log repeat it.
            ended: What then becomes of the run: ``stopped`` by a person, or taken up again at once because
                its node is being taken back (``preempted``) or there is room for more workers (``resized``).
        """
        # What the cluster asks for never takes the place of what a person asks for.
        name = "stop.json" if ended == "stopped" else "leave.json"
        (self.place / name).write_json({"reason": reason, "ended": ended, "requested_at": time.time()})

    def stop_request(self) -> Stop | None:
        """The request that stands, a person's before the cluster's; or None."""
        for name in ("stop.json", "leave.json"):
            request = (self.place / name).read_json()
            if request is not None:
                return Stop(reason=str(request["reason"]), ended=request["ended"])
        return None

    def withdraw_leave(self) -> None:
        """What the cluster asked for is done. A person's request to stop stands."""
        (self.place / "leave.json").delete()

    def take_up(self, driver: str) -> None:
        """From now on the run is this driver's; workers of an earlier one find out and leave.

        Args:
            driver: A random mark.
        """
        # Not in run.json: others write there too, and could put an old mark back.
        (self.place / "driver.json").write_json({"driver": driver, "began_at": time.time()})

    def driver(self) -> str | None:
        """The mark of the driver whose run it is."""
        found = (self.place / "driver.json").read_json()
        return None if found is None else str(found["driver"])

    def set_waiting(self, waiting: str | None) -> None:
        """Say what the run waits for, such as room on the cluster; None: for nothing."""
        (self.place / "waiting.json").write_json({"waiting": waiting})

    def waiting(self) -> str | None:
        """What the run waits for."""
        found = (self.place / "waiting.json").read_json()
        return None if found is None else found["waiting"]

    def attempts(self) -> list[dict[str, Any]]:
        """Every time that the run was taken up, in order.

        Returns:
            For each ``attempt`` (a random mark), ``began_at`` (seconds since 1970), ``num_workers``,
            ``from_step``; when it has ended ``ended`` (``succeeded``, ``failed``, ``stopped``,
            ``preempted``, ``resized``),
            ``ended_at``, ``reason`` and ``step`` (of the last committed checkpoint); ``first_step_at``, and
            after a loss ``recovery_s``: seconds from the end of the one before to this one's first step.
        """
        places = [self.place.at(entry) for entry in (self.place / "attempts").find()]
        found: dict[str, dict[str, Any]] = {}
        for place, part in zip(places, side_by_side(lambda place: place.read_json(), places), strict=True):
            found.setdefault(place.name[:4], {}).update(part or {})
        return list(found.values())

    def write_attempt(self, number: int, part: str, **fields: Any) -> None:
        """Say something of the attempt ``number`` (from 1 on). Each part has one writer."""
        (self.place / "attempts" / f"{number:04d}-{part}.json").write_json(fields)

    def write_output(self, output: dict[str, Any]) -> None:
        """Say what the training left: ``{"model": "name/v1"}``, or None where it is the folder ``output``."""
        (self.place / "output.json").write_json(output)

    def is_handed_in(self) -> bool:
        """Whether the training has left what it was for."""
        return (self.place / "output.json").stat() is not None

    def output(self) -> dict[str, Any]:
        """What the training left.

        Raises:
            StorageError: it left nothing, though it ended well.
        """
        output = (self.place / "output.json").read_json()
        if output is None:
            raise StorageError(f"{self.place / 'output.json'}: the training ended without a result.")
        return dict(output)

    def checkpoint_place(self, step: int) -> Location:
        """Where the checkpoint of a step belongs."""
        return self.place / "checkpoints" / f"step-{step:08d}"

    def checkpoints(self) -> list[Checkpoint]:
        """Committed checkpoints, by step. What an interrupted save left behind is not among them."""
        folder = self.place / "checkpoints"
        places = [folder / name for name in folder.folders()]
        manifests = side_by_side(lambda place: read_manifest(place, CheckpointManifest), places)
        found = [Checkpoint(p, m) for p, m in zip(places, manifests, strict=True) if m is not None]
        return sorted(found, key=lambda checkpoint: checkpoint.manifest.step)

    def keep_checkpoints(
        self, last: int | None, best: int | None, *, metric: str, greater_is_better: bool
    ) -> None:
        """Remove all committed checkpoints but the newest ``last`` and the ``best`` ones by ``metric``.

        Args:
            last: How many of the newest stay; None: all.
            best: How many of the best stay besides; None: none.
        """
        if last is None:
            return
        found = self.checkpoints()
        rated = [one for one in found if metric in one.manifest.metrics]
        rated.sort(key=lambda one: one.manifest.metrics[metric], reverse=greater_is_better)
        kept = {one.manifest.step for one in [*found[-last:], *rated[: best or 0]]}
        for checkpoint in found:
            if checkpoint.manifest.step not in kept:
                remove_committed(checkpoint.place)


class Runs:
    """The ``runs/`` of a store."""

    def __init__(self, root: Location) -> None:
        self._root = root

    def new(self, name: str, spec_json: str, *, run_id: str | None = None) -> RunFolder:
        """A fresh run folder for ``name`` that holds ``spec_json``.

        Args:
            run_id: ``<name>-<8 hex digits>``. Default: a new one.

        Raises:
            ConfigError: ``run_id`` is none of this name.
            Conflict: there is such a run.
        """
        now = datetime.now(UTC)
        run_id = run_id or f"{name}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        if not (spelled := _RUN_ID.fullmatch(run_id)) or spelled["name"] != name:
            raise ConfigError(f"the run's id is {run_id!r}. Write {name}- and 8 hexadecimal digits.")
        place = self._root / name / run_id
        (place / "spec.json").write_bytes(spec_json.encode())
        # Last: a run is listed when it has a record.
        (place / "run.json").write_bytes(
            json.dumps({"created_at": now.isoformat(timespec="microseconds")}).encode(), create_only=True
        )
        return RunFolder(run_id, place)

    def all(self, name: str | None = None) -> list[RunFolder]:
        """Runs of ``name``, or of every name, oldest first."""
        names = [name] if name else self._root.folders()
        places = [self._root / one / run_id for one in names for run_id in (self._root / one).folders()]
        records = side_by_side(lambda place: (place / "run.json").read_json(), places)
        found = [
            (str(r["created_at"]), RunFolder(p.name, p)) for p, r in zip(places, records, strict=True) if r
        ]
        return [run for _, run in sorted(found, key=lambda pair: (pair[0], pair[1].run_id))]

    def get(self, run_id: str) -> RunFolder:
        """The run with this id, or the newest run of a name.

        Raises:
            ConfigError: there is none; names what exists.
        """
        spelled = _RUN_ID.fullmatch(run_id)
        if spelled and ((place := self._root / spelled["name"] / run_id) / "run.json").stat():
            return RunFolder(run_id, place)
        named = self.all(run_id) if "/" not in run_id else []
        if named:
            return named[-1]
        known = [run.run_id for run in self.all()]
        store = self._root.uri.removesuffix("/runs")
        raise ConfigError(f"run {run_id!r} is not in {store}. {did_you_mean(run_id, known)}")


def run_at(place: Location) -> RunFolder:
    """The run whose folder is at ``place``."""
    return RunFolder(place.name, place)
