"""A sweep spec becomes its trials: each an ordinary train spec, all of them checked before one starts."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from cluster.inventory import Inventory
from runtime.core.config import ConfigModel, load_spec
from runtime.core.errors import ConfigError
from runtime.core.lookup import did_you_mean
from storage.store import Store
from train_jobs.arguments import catalogue
from train_jobs.plan import TrainPlan, plan_train, resolve
from train_jobs.spec import TrainSpec
from train_jobs.sweep_spec import LISTS, Asha, SweepSpec

_NOT_SEARCHED = {
    "name": "The runs are named after the sweep.",
    "publish": "A sweep publishes nothing.",
}


class Trial(ConfigModel):
    """One run of a sweep, before it starts."""

    params: dict[str, Any]
    """The searched fields and their values here."""

    spec: TrainSpec
    """The whole train spec with ``params`` in it, resolved."""


class SweepPlan(ConfigModel):
    """What a sweep will run. ``--dry-run`` prints it; the sweep's job reads it back from ``sweep.json``."""

    name: str
    """Name of the sweep and its runs."""

    store_uri: str
    """The store's address."""

    metric: str
    """What trials are compared by."""

    mode: Literal["min", "max"]
    """Whether a low or a high value is good."""

    max_concurrent_trials: int
    """How many runs at once."""

    asha: Asha | None
    """Whether and when poor trials are stopped."""

    trials: list[Trial]
    """The runs, in the order of their start."""


def plan_sweep(
    spec: SweepSpec,
    *,
    store: Store,
    inventory: Inventory,
    folder: Path,
    origin: str = "spec",
) -> SweepPlan:
    """The trials of ``spec`` on this store and this cluster; random values are drawn here, from its seed.

    Args:
        inventory: The cluster's nodes and cards.
        folder: Where a relative path in ``train`` begins: the folder of the sweep's file.
        origin: What to call the spec in an error: its file, where it came from one.

    Raises:
        ConfigError: the search or one of the trials cannot work; names its values and every fault of it.
    """
    base = _base(spec, folder)
    if faults := [fault for field in spec.search if (fault := _field_fault(field))]:
        raise ConfigError(f"{origin}: cannot be run.\n" + "\n".join(f"  {fault}" for fault in faults))
    drawn = list(_draw(spec))
    trials, plans = [], []
    for number, params in enumerate(drawn, start=1):
        called = f"{origin}: trial {number} of {len(drawn)} ({in_words(params)})"
        try:
            resolved = resolve(load_spec(TrainSpec, _with(base | {"name": spec.name}, params)))
        except ConfigError as error:
            raise ConfigError(f"{called}: {str(error).removeprefix('spec: ')}") from None
        plans.append(plan_train(resolved, store=store, inventory=inventory, origin=called))
        trials.append(Trial(params=params, spec=resolved))
    return SweepPlan(
        name=spec.name,
        store_uri=store.uri,
        metric=spec.metric or _default_metric(trials),
        mode=spec.mode,
        max_concurrent_trials=spec.max_concurrent_trials or _that_fit(plans, inventory.resources),
        asha=spec.asha,
        trials=trials,
    )


def in_words(params: Mapping[str, Any]) -> str:
    """``learning_rate=0.001, num_workers=2``: the last word of a field is enough for people."""
    return ", ".join(f"{field.rpartition('.')[2]}={_short(value)}" for field, value in params.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _base(spec: SweepSpec, folder: Path) -> dict[str, Any]:
    """The train spec as it is before anything is put in."""
    if isinstance(spec.train, str):
        file = folder / Path(spec.train).expanduser()
        base = load_spec(TrainSpec, file).model_dump(mode="json", exclude_unset=True)
    else:
        base = dict(spec.train)
    if base.get("publish") is not None:
        raise ConfigError(
            f"train.publish: is {base['publish']!r}, but a sweep would publish every trial. Remove it; when "
            "the sweep has ended, publish the best run: tandem models publish NAME <the run's uri>/output."
        )
    return base


def _field_fault(field: str) -> str | None:
    first = field.partition(".")[0]
    if first in _NOT_SEARCHED:
        return f"search.{field}: cannot be searched. {_NOT_SEARCHED[first]} Remove it."
    if first in TrainSpec.model_fields:
        return None
    if field in catalogue()["arguments"]:
        return f"search.{field}: is an argument of LLaMA-Factory. Write llamafactory.{field}."
    return f"search.{field}: a train spec has no such field. {did_you_mean(first, TrainSpec.model_fields)}"


def _draw(spec: SweepSpec) -> Iterator[dict[str, Any]]:
    """The values of each trial, as Tune's own generator draws them, in plain Python."""
    from numpy.random import default_rng
    from ray import tune
    from ray.tune.search.variant_generator import generate_variants

    space = {}
    for field, distribution in spec.search.items():
        ((word, values),) = distribution.items()
        space[field] = getattr(tune, word)(values) if word in LISTS else getattr(tune, word)(*values)
    # One generator for all draws: a number here would begin anew with each.
    random_state = default_rng(spec.seed)
    for _ in range(spec.num_samples):
        for params, _ in generate_variants(space, random_state=random_state):
            # Tune names a field by the path to it, here a path of one.
            yield {path[0]: _plain(value, spec.search[path[0]]) for path, value in params.items()}


def _plain(value: Any, distribution: Mapping[str, Any]) -> Any:
    """A number of numpy as one of Python, without the tail of a step of 0.1 (0.30000000000000004)."""
    if distribution.keys() & set(LISTS):
        return value
    plain = value.item() if hasattr(value, "item") else value
    return float(f"{plain:.12g}") if isinstance(plain, float) else plain


def _with(base: dict[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with each dotted field set."""
    spec = copy.deepcopy(base)
    for field, value in params.items():
        *parents, last = field.split(".")
        inner = spec
        for depth, parent in enumerate(parents, start=1):
            found = inner.get(parent)
            if found is not None and not isinstance(found, dict):
                raise ConfigError(
                    f"search.{field}: train.{'.'.join(parents[:depth])} is {found!r}, which has no fields. "
                    "Search it as a whole, or write it out in the train spec."
                )
            inner[parent] = found or {}
            inner = inner[parent]
        inner[last] = value
    return spec


def _default_metric(trials: list[Trial]) -> str:
    evaluates = [
        trial.spec.llamafactory.get("do_eval") or trial.spec.llamafactory.get("eval_strategy", "no") != "no"
        for trial in trials
    ]
    return "eval_loss" if all(evaluates) else "loss"


def _that_fit(plans: list[TrainPlan], cluster: Mapping[str, float]) -> int:
    """How many of the largest trial the whole cluster holds."""
    fits = [
        int(cluster.get(resource, 0.0) // (plan.min_workers * amount))
        for plan in plans
        for resource, amount in plan.resources_per_worker.items()
        if amount > 0
    ]
    # Tune takes none for no limit.
    return max(1, min([*fits, len(plans)]))
