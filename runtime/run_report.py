"""All that is known of one run, as plain data: what it was told, where it stands, what it has kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.cli_options import in_words
from runtime.run import ENDED, Run
from storage.runs import Checkpoint

_OF_LLAMAFACTORY = (
    "stage", "finetuning_type", "template", "learning_rate", "per_device_train_batch_size",
    "gradient_accumulation_steps", "num_train_epochs", "max_steps", "cutoff_len",
)  # fmt: skip
_LAST = (
    "step", "max_steps", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_s",
    "samples_per_s", "step_time_s", "mfu", "remaining_s", "at",
)  # fmt: skip


def report(run: Run) -> dict[str, Any]:
    """The run for ``tandem runs show``.

    Returns:
        ``Run.describe``'s fields, and ``spec`` (its essentials), ``waiting`` (for what, or None),
        ``standing`` (see :func:`standing`), ``checkpoints``, ``attempts``, ``evaluations`` (lines of
        metrics) and ``metrics`` (all lines).
    """
    rows = run.folder.metrics()
    described = run.describe()
    ended = described["status"] in ENDED
    return described | {
        "spec": essentials(json.loads(run.folder.spec_json())),
        "waiting": None if ended else run.folder.waiting(),
        "standing": standing(rows) | ({"remaining_s": 0} if described["status"] == "SUCCEEDED" else {}),
        "checkpoints": [_checkpoint(checkpoint) for checkpoint in run.checkpoints()],
        "attempts": run.attempts(),
        "evaluations": [row for row in rows if is_evaluation(row)],
        "metrics": rows,
    }


def essentials(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a person asks first about a spec; fields that it does not name are left out."""
    arguments, deepspeed = spec.get("llamafactory") or {}, spec.get("deepspeed")
    found = {
        "model": spec.get("model"),
        "dataset": spec.get("dataset"),
        **{name: arguments.get(name) for name in _OF_LLAMAFACTORY},
        "deepspeed": "inline" if isinstance(deepspeed, dict) else deepspeed,
        "num_workers": (spec.get("scaling") or {}).get("num_workers"),
        "publish": (spec.get("publish") or {}).get("name"),
    }
    return {name: value for name, value in found.items() if value is not None}


def standing(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where a run stands, from its metrics: the last value of each, under its name there.

    Of ``memory_peak_bytes`` it is the largest, of ``checkpoint_stall_s`` the sum. What was never logged is
    left out.
    """
    found = {name: value for name in _LAST if (value := last(rows, name)) is not None}
    peaks = [row["memory_peak_bytes"] for row in rows if row.get("memory_peak_bytes") is not None]
    stalls = [row["checkpoint_stall_s"] for row in rows if row.get("checkpoint_stall_s") is not None]
    return (
        found
        | ({"memory_peak_bytes": max(peaks)} if peaks else {})
        | ({"checkpoint_stall_s": round(sum(stalls), 3)} if stalls else {})
    )


def last(rows: Sequence[Mapping[str, Any]], name: str) -> Any:
    """The last value of a metric, or None."""
    return next((row[name] for row in reversed(rows) if row.get(name) is not None), None)


def is_evaluation(row: Mapping[str, Any]) -> bool:
    """Whether a line of metrics is of an evaluation or a prediction."""
    return any(name.startswith(("eval_", "predict_")) for name in row)


def wall_time_s(run: Run, rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds from the run's first attempt to its end, or to its last line while it goes on.

    None where nothing tells.
    """
    attempts = run.attempts()
    began = attempts[0].get("began_at") if attempts else None
    end = (attempts[-1].get("ended_at") if attempts else None) or last(rows, "at")
    return round(end - began, 1) if began and end else None


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    manifest = checkpoint.manifest
    return {
        "step": manifest.step,
        "size_bytes": manifest.total_bytes,
        "size": in_words(manifest.total_bytes),
        "num_workers": manifest.num_workers,
        "metrics": manifest.metrics,
        "created_at": manifest.created_at,
        "uri": checkpoint.place.uri,
    }
