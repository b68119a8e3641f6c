"""What a command was given to train: a train spec, or a file of LLaMA-Factory's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cluster.inventory import Inventory
from runtime.core.config import blamed_on, load_spec, parse_spec
from runtime.core.errors import ConfigError
from storage.location import locate
from storage.runs import RunFolder
from storage.store import Store
from train_jobs.llamafactory_file import LlamaFactoryFile, read_llamafactory
from train_jobs.plan import TrainPlan, plan_train, resolve
from train_jobs.spec import TrainSpec


@dataclass(frozen=True)
class Source:
    """A spec that can travel, and where it came from."""

    spec: TrainSpec
    origin: str
    """What an error calls it."""
    file: LlamaFactoryFile | None = None
    """The LLaMA-Factory file that it was made of."""
    notes: list[str] = field(default_factory=list)
    """What of that file was taken otherwise."""

    def plan(
        self,
        store: Store,
        *,
        inventory: Inventory | None = None,
        run: RunFolder | None = None,
        go_on_with: int | None = None,
        memory_must_fit: bool = True,
    ) -> TrainPlan:
        """The plan, with the file's notes before its own. Nothing is registered.

        Raises:
            ConfigError: it cannot run.
        """
        plan = plan_train(
            self.spec,
            store=store,
            inventory=inventory,
            run=run,
            go_on_with=go_on_with,
            new_datasets=self.file.new_entries if self.file else None,
            origin=self.origin,
            memory_must_fit=memory_must_fit,
        )
        return plan.model_copy(update={"notes": [*self.notes, *plan.notes]})

    def register(self, store: Store) -> None:
        """Put the datasets that a LLaMA-Factory file names into the store, once the plan holds."""
        if self.file is not None:
            self.file.register(store)


def read_source(
    spec: str | None, llamafactory: str | None, *, store: Store, num_workers: int | None = None
) -> Source:
    """The spec that a command line names.

    Args:
        spec: A train spec, by path or address.
        llamafactory: A file of LLaMA-Factory's, by path; exactly one of the two.
        num_workers: Takes the place of ``scaling.num_workers``.

    Raises:
        ConfigError: none or both are given, or what is given cannot be used.
    """
    if (spec is None) == (llamafactory is None):
        raise ConfigError(
            "Give one of both: a train spec (SPEC), or with --llamafactory a file of LLaMA-Factory's."
        )
    if llamafactory is not None:
        file = read_llamafactory(llamafactory, store=store, num_workers=num_workers)
        return Source(resolve(file.spec), llamafactory, file, file.notes)
    with blamed_on(spec):
        return Source(with_num_workers(resolve(_loaded(str(spec))), num_workers), str(spec))


def with_num_workers(spec: TrainSpec, num_workers: int | None) -> TrainSpec:
    """The same spec with so many workers; None leaves it as it is."""
    if num_workers is None:
        return spec
    changed: dict[str, Any] = spec.model_dump()
    changed["scaling"]["num_workers"] = num_workers
    return load_spec(TrainSpec, changed)


def _loaded(source: str) -> TrainSpec:
    if "://" in source:
        return parse_spec(TrainSpec, locate(source, field="SPEC").read_bytes().decode(), origin=source)
    return load_spec(TrainSpec, source)


def source_of(run: RunFolder) -> Source:
    """The spec of a run that goes on.

    Raises:
        ConfigError: it cannot be read.
    """
    origin = f"run {run.run_id}"
    return Source(resolve(parse_spec(TrainSpec, run.spec_json(), origin=f"{origin}.json")), origin)
