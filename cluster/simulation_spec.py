"""What a simulation reads: a cluster, and what comes to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pydantic import ByteSize, Field, field_validator, model_validator

from cluster.cluster_spec import ClusterSpec
from cluster.gpus import find
from cluster.inventory import Card, Inventory, Node
from cluster.placement import Request
from cluster.placement.request import Kind, Strategy
from cluster.priority import CLASSES
from runtime.core.config import ConfigModel, load_spec, read_mapping
from runtime.core.errors import ConfigError

_USUAL_CLASS: dict[Kind, str] = {"serve": "serving", "train": "training", "other": "batch"}


_MOST_BYTES = 1 << 48
"""256 TiB of one node, card or worker: what is counted in 64 bits stays exact when it is added up."""
_MOST_CPUS = 1_000_000.0


def _numbered(name: str, count: int) -> list[str]:
    """Numbers of one width, so that the order by name is that by number."""
    width = len(str(count - 1))
    return [name] if count == 1 else [f"{name}-{number:0{width}}" for number in range(count)]


def _refuse_twice(names: Iterable[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"the name {twice[0]!r} is there twice. Give each entry a name of its own.")


class SimulatedNodes(ConfigModel):
    """Nodes that are alike."""

    name: str
    """Several nodes are called ``<name>-0``, ``<name>-1``, and so on."""

    count: int = Field(1, ge=1, le=100_000)
    cpus: float = Field(ge=0, le=_MOST_CPUS, allow_inf_nan=False)
    """Of each node, as ``memory`` and ``gpus``."""

    memory: ByteSize = Field(ge=0, le=_MOST_BYTES)
    """What Ray may hand out: ``900GiB``."""

    gpus: int = Field(0, ge=0, le=255)
    accelerator_type: str | None = None
    """The GPU product, in Ray's words (``A100``)."""

    gpu_memory: ByteSize | None = Field(None, gt=0, le=_MOST_BYTES)
    """Of each GPU: ``80GiB``. Default: what the catalogue says of ``accelerator_type``, of the largest
    product where several answer to it."""

    @model_validator(mode="after")
    def _gpus_are_known(self) -> SimulatedNodes:
        if not self.gpus:
            return self
        if self.accelerator_type is None:
            raise ValueError(
                f"nodes of {self.name!r} have {self.gpus} GPUs. Add accelerator_type: A100 or so."
            )
        self.card_memory_bytes()
        return self

    def card_memory_bytes(self) -> int:
        """Of each GPU: as given, else as the catalogue has it."""
        if self.gpu_memory is not None:
            return self.gpu_memory
        product = find(str(self.accelerator_type), largest=True)
        if product is None:
            raise ValueError(
                f"accelerator_type is {self.accelerator_type!r}, which is not in the catalogue. Add "
                "gpu_memory: 80GiB or so."
            )
        return product.memory_bytes

    def inventory_nodes(self) -> list[Node]:
        """The nodes as plain data."""
        size = self.card_memory_bytes() if self.gpus else 0
        cards = tuple(Card(index, size, self.accelerator_type) for index in range(self.gpus))
        product = self.accelerator_type if self.gpus else None
        return [
            Node(name, self.cpus, self.memory, cards, product) for name in _numbered(self.name, self.count)
        ]


class SimulatedCluster(ConfigModel):
    """A cluster that need not be there: its nodes, and nothing else."""

    nodes: tuple[SimulatedNodes, ...] = Field(min_length=1)
    """Groups of equal nodes."""

    priorities: tuple[str, ...] = Field(CLASSES, min_length=1)
    """Priority classes of the queue, the highest first."""

    @field_validator("nodes")
    @classmethod
    def _names_differ(cls, nodes: tuple[SimulatedNodes, ...]) -> tuple[SimulatedNodes, ...]:
        _refuse_twice(name for group in nodes for name in _numbered(group.name, group.count))
        return nodes

    def inventory(self) -> Inventory:
        """Its nodes, in the order of the file."""
        return Inventory(tuple(node for group in self.nodes for node in group.inventory_nodes()))


def load_cluster(path: Path) -> tuple[Inventory, tuple[str, ...]]:
    """Nodes and priority classes, from a simulation's own file or from a ``cluster.yaml``.

    The second has ``node_groups``, which count at their largest.

    Raises:
        ConfigError: the file is neither.
    """
    if "node_groups" in read_mapping(path):
        spec = load_spec(ClusterSpec, path)
        return spec.inventory(), spec.priorities
    cluster = load_spec(SimulatedCluster, path)
    return cluster.inventory(), cluster.priorities


class Arrival(ConfigModel):
    """Requests that are alike."""

    name: str
    count: int = Field(1, ge=1, le=100_000)
    """Several are called ``<name>-0``, ``<name>-1``, and so on."""

    at_s: float = Field(0.0, ge=0, allow_inf_nan=False)
    """When the first is submitted."""

    every_s: float = Field(0.0, ge=0, allow_inf_nan=False)
    """How long after it the next one is."""

    duration_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    """How long each runs once it has its place. Default: to the end of all, as a serve app does."""

    kind: Kind = "train"
    priority: str | None = None
    """Class in the queue. Default: ``serving`` for ``serve``, ``training`` for ``train``, else ``batch``."""

    num_replicas: int = Field(1, ge=1, le=100_000)
    """Groups of workers that are spread over nodes, for ``kind: serve``."""

    num_workers: int = Field(1, ge=1, le=100_000)
    """Workers of a run, or of each replica: tensor x pipeline parallel size."""

    gpus_per_worker: float = Field(0, ge=0, le=1)
    """0, a fraction, or 1."""

    cpus_per_worker: float = Field(0, ge=0, le=_MOST_CPUS, allow_inf_nan=False)
    memory_per_worker: ByteSize = Field(ByteSize(0), ge=0, le=_MOST_BYTES)
    """Of the node's memory."""

    gpu_memory_per_worker: ByteSize = Field(ByteSize(0), ge=0, le=_MOST_BYTES)
    """What its share of a card must hold at least."""

    accelerator_type: str | None = None
    """A GPU product. Default: one for all workers, whichever has room; ``any``: they may mix."""

    placement_strategy: Strategy = "PACK"

    @model_validator(mode="after")
    def _can_be_a_request(self) -> Arrival:
        if self.kind == "train" and self.num_replicas > 1:
            raise ValueError(
                f"num_replicas of {self.name!r} is {self.num_replicas}, and a training run has none. Set "
                "num_workers, or count for several runs."
            )
        try:
            self.request(self.name)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def priority_class(self) -> str:
        """As given, else the usual one of its kind."""
        return self.priority or _USUAL_CLASS[self.kind]

    def names(self) -> list[str]:
        """Of the requests."""
        return _numbered(self.name, self.count)

    def request(self, name: str) -> Request:
        """What one of them asks for."""
        return Request(
            name,
            kind=self.kind,
            groups=self.num_replicas,
            workers_per_group=self.num_workers,
            gpus_per_worker=self.gpus_per_worker,
            cpus_per_worker=self.cpus_per_worker,
            memory_bytes_per_worker=self.memory_per_worker,
            card_bytes_per_worker=self.gpu_memory_per_worker,
            accelerator_type=self.accelerator_type,
            strategy=self.placement_strategy,
        )


class WorkloadSpec(ConfigModel):
    """What comes to the cluster, and when."""

    requests: tuple[Arrival, ...] = Field(min_length=1)

    @field_validator("requests")
    @classmethod
    def _names_differ(cls, requests: tuple[Arrival, ...]) -> tuple[Arrival, ...]:
        _refuse_twice(name for arrival in requests for name in arrival.names())
        return requests
