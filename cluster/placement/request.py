"""What is asked of a placement, and what it answers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from cluster.inventory import Share
from runtime.core.errors import ConfigError
from runtime.core.lookup import did_you_mean

Kind = Literal["train", "serve", "other"]
Strategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]

UNITS = 10_000
"""Ray counts resources in ten-thousandths, as integers: so do we, and 3 x 0.3333 fits on a card, exactly."""

_TOO_MUCH = (1 << 62) // UNITS
"""Amounts are added up in 64 bits, counted in ten-thousandths: what no node has is refused before that."""

ANY = "any"
"""The ``accelerator_type`` that lets one request mix GPU products."""


def in_units(amount: float) -> int:
    """Ten-thousandths of a resource, rounded as Ray rounds: half up."""
    return math.floor(amount * UNITS + 0.5)


@dataclass(frozen=True)
class Request:
    """Workers that start together, or not at all."""

    name: str
    """A run's id or an app's name."""

    kind: Kind = "other"
    """``serve`` spreads its groups over nodes; other kinds pack them."""

    groups: int = 1
    """Replicas of an app; 1 for a training run."""

    workers_per_group: int = 1
    """Ranks that work together: tensor x pipeline parallel size, or a run's ``num_workers``. No two of them
    share a card; workers of different groups may."""

    gpus_per_worker: float = 0
    """0, a fraction of a card, or 1."""

    cpus_per_worker: float = 0
    memory_bytes_per_worker: int = 0
    """Of the node's memory."""

    card_bytes_per_worker: int = 0
    """What the worker needs of its card: ``gpus_per_worker`` of the card must be at least so much, where its
    memory is known."""

    accelerator_type: str | None = None
    """A GPU product in Ray's words (``A100``); None: one product for all workers, the smallest cards that
    hold them; ``any``: products may mix."""

    strategy: Strategy = "PACK"
    """Ray's, for the workers of one group. With PACK, the group of a serve app stays on one node wherever a
    node of the cluster is large enough for it, free or not; larger groups take as few nodes as possible."""

    def __post_init__(self) -> None:
        for field in ("groups", "workers_per_group"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field} is {getattr(self, field)}. Set it to 1 or more.")
        for field in ("cpus_per_worker", "memory_bytes_per_worker", "card_bytes_per_worker"):
            if not 0 <= getattr(self, field) < _TOO_MUCH:
                raise ConfigError(
                    f"{field} is {getattr(self, field):g}. Set it to a number from 0 on that a node can have."
                )
        if self.strategy not in get_args(Strategy):
            known = did_you_mean(self.strategy, get_args(Strategy))
            raise ConfigError(f"strategy is {self.strategy!r}, which Ray does not know. {known}")
        self._check_gpus()

    def _check_gpus(self) -> None:
        given = self.gpus_per_worker
        if not 0 <= given <= 1:
            raise ConfigError(
                f"gpus_per_worker is {given:g}, and a worker holds at most one card. Set it between 0 and 1, "
                "and workers_per_group to the number of cards."
            )
        if given and not self.units:
            raise ConfigError(
                f"gpus_per_worker is {given:g}, and Ray counts in ten-thousandths. Set it to 0.0001 or more."
            )
        if self.card_bytes_per_worker and not given:
            raise ConfigError(
                f"card_bytes_per_worker is {self.card_bytes_per_worker}, but gpus_per_worker is 0. Set "
                "gpus_per_worker to a fraction of a card or 1, or card_bytes_per_worker to 0."
            )

    @property
    def units(self) -> int:
        """Ten-thousandths of a card that each worker takes."""
        return in_units(self.gpus_per_worker)

    @cached_property
    def shape(self) -> Request:
        """The request without its name: all of one shape find the same room."""
        return replace(self, name="")

    @property
    def workers(self) -> int:
        """Of all groups."""
        return self.groups * self.workers_per_group


@dataclass(frozen=True)
class Slot:
    """The place of one worker."""

    group: int
    """From 0 on, as ``rank`` in its group."""

    rank: int
    node_id: str
    card: int | None
    """The card's index on its node; None for a worker without one."""

    fraction: float
    """Of the card; 0 without one."""

    cpus: float
    memory_bytes: int
    """Of the node's memory."""


@dataclass(frozen=True)
class Placement:
    """A place for every worker, group by group and rank by rank."""

    slots: tuple[Slot, ...]
    accelerator_type: str | None = None
    """The product of all its cards; None where there are none, logical ones, or several products."""

    @property
    def node_ids(self) -> tuple[str, ...]:
        """The nodes it uses, each once, by first use."""
        return tuple(dict.fromkeys(slot.node_id for slot in self.slots))

    def shares(self, holder: str) -> tuple[Share, ...]:
        """What it takes of the cluster, as the ledger keeps it."""
        return tuple(
            Share(holder, slot.node_id, slot.card, slot.fraction, slot.cpus, slot.memory_bytes)
            for slot in self.slots
        )


@dataclass(frozen=True)
class NoRoom:
    """There is no place for all workers."""

    reason: str
    """Why, in words to act on. The request's name is not in it: it holds for every request of this shape."""

    never: bool
    """The empty cluster could not hold it either: waiting does not help."""
