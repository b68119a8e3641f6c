"""The machines of a cluster spec: the head's, and groups of nodes that are alike."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import ByteSize, Field, field_validator, model_validator

from cluster.gpus import Gpu, find
from cluster.inventory import Card, Node
from cluster.spec_words import INT32, LabelKey, Labels, LabelValue
from runtime.core.config import ConfigModel

_NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_NAME_CHARS = 30
"""A RayJob's name ends in the run's, and may have 47 characters."""
RAYS_SHARE = 0.7
"""Of a pod's memory, so much is Ray's to hand out; the rest is its object store's."""


def checked_name(name: str, what: str, most: int = _NAME_CHARS) -> str:
    """The name, where all objects' names may begin with it.

    Raises:
        ValueError: it cannot be one.
    """
    if not _NAME.fullmatch(name) or len(name) > most:
        raise ValueError(
            f"is {name!r}, which cannot be {what}. Use 1 to {most} lower-case letters, digits and hyphens, "
            "beginning with a letter and not ending with a hyphen."
        )
    return name


class Toleration(ConfigModel):
    """A taint that pods of a group put up with, in Kubernetes' words."""

    key: LabelKey
    operator: Literal["Equal", "Exists"] = "Exists"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @model_validator(mode="after")
    def _value_where_equal(self) -> Toleration:
        if (self.operator == "Equal") != (self.value is not None):
            raise ValueError(
                f"operator is {self.operator!r} and value is {self.value!r}. Equal needs a value, Exists has "
                "none."
            )
        return self


class HeadGroup(ConfigModel):
    """The pod with Ray's head: no GPU, no replicas, no workers."""

    cpus: float = Field(4, gt=0)
    memory: ByteSize = Field(ByteSize(16 * 2**30), gt=0)
    """Of the pod: requests equal limits."""

    node_labels: Labels = {}
    """Labels that its node must have."""

    tolerations: tuple[Toleration, ...] = ()


class NodeGroup(ConfigModel):
    """Nodes that are alike: one Ray pod on each."""

    name: str
    """Lower-case letters, digits and hyphens."""

    accelerator_type: str | None = None
    """The GPU product, in Kubernetes' (``NVIDIA-L4``), NVML's or Ray's spelling. Unset: no GPUs."""

    gpus: int = Field(0, ge=0, le=255)
    """GPUs of each node."""

    gpu_memory: ByteSize | None = Field(None, gt=0)
    """Of each GPU. Default: what the catalogue says of ``accelerator_type``, of the largest product where
    several answer to it: so do living nodes count until NVML was read."""

    cpus: float = Field(gt=0)
    """CPUs of each node that its Ray pod gets."""

    memory: ByteSize = Field(gt=0)
    """Memory of each node that its Ray pod gets: ``56GiB``."""

    count: int | None = Field(None, ge=0, le=2000)
    """How many nodes there are. Instead of ``min`` and ``max``."""

    min: int | None = Field(None, ge=0, le=2000)
    """Nodes that are always there, where Ray's autoscaler adds more."""

    max: int | None = Field(None, ge=1, le=2000)
    """Nodes at most."""

    spot: bool = False
    """Whether the cloud may take the nodes back. On GKE the pods then choose and tolerate spot nodes."""

    node_labels: Labels = {}
    """Labels that the nodes must have, besides the GPU product's."""

    labels: Labels = {}
    """Labels for the pods."""

    tolerations: tuple[Toleration, ...] = ()
    """Besides that of ``nvidia.com/gpu``, which GPU groups always have."""

    idle_timeout_s: int = Field(600, ge=60, le=INT32)
    """An idle node leaves after so long. Ray's 60 s would end nodes whose engine is still loading."""

    @field_validator("name")
    @classmethod
    def _dns_like(cls, name: str) -> str:
        if name == "head":
            raise ValueError("is 'head', the name of Ray's own group. Choose another name.")
        return checked_name(name, "the name of a node group")

    @model_validator(mode="after")
    def _is_whole(self) -> NodeGroup:
        if self.count is None and self.max is None:
            raise ValueError("has neither count nor max. Write count: 2, or min: 0 and max: 4.")
        if self.count is not None and (self.min, self.max) != (None, None):
            raise ValueError(f"has count ({self.count}) beside min or max. Write one or the other.")
        if self.min_nodes > self.max_nodes:
            raise ValueError(f"min is {self.min} but max is {self.max}. Raise max to {self.min} or more.")
        if self.gpus and self.accelerator_type is None:
            raise ValueError(f"has {self.gpus} GPUs of no product. Add accelerator_type: NVIDIA-L4 or so.")
        if self.accelerator_type is not None and not self.gpus:
            raise ValueError(
                f"accelerator_type is {self.accelerator_type!r}, but gpus is 0. Write gpus: 1 or more."
            )
        if self.gpus and self.gpu_memory is None and self.product is None:
            raise ValueError(
                f"accelerator_type is {self.accelerator_type!r}, which is not in the catalogue. Add "
                "gpu_memory: 80GiB or so."
            )
        return self

    @property
    def min_nodes(self) -> int:
        """Nodes that are always there."""
        return self.count if self.count is not None else self.min or 0

    @property
    def max_nodes(self) -> int:
        """Nodes at most."""
        return self.count if self.count is not None else self.max or 0

    @property
    def autoscales(self) -> bool:
        """Whether Ray's autoscaler has anything to decide."""
        return self.min_nodes != self.max_nodes

    @property
    def product(self) -> Gpu | None:
        """What the catalogue has of its GPUs."""
        return find(self.accelerator_type) if self.accelerator_type else None

    @property
    def largest_product(self) -> Gpu | None:
        """The same, with the most memory where several products answer to the word (Ray's ``A100``)."""
        return find(self.accelerator_type, largest=True) if self.accelerator_type else None

    @property
    def card_bytes(self) -> int | None:
        """Memory of each GPU."""
        product = self.largest_product
        return self.gpu_memory or (product.memory_bytes if product else None)

    @property
    def ray_accelerator_type(self) -> str | None:
        """Ray's word for its GPUs, as Ray's nodes have it."""
        if not self.gpus:
            return None
        return self.product.ray if self.product else self.accelerator_type

    def inventory_nodes(self) -> list[Node]:
        """Its nodes at most, as plain data."""
        word, product = self.ray_accelerator_type, self.largest_product
        cards = tuple(Card(i, self.card_bytes, product.nvml if product else None) for i in range(self.gpus))
        width = len(str(max(0, self.max_nodes - 1)))
        names = [f"{self.name}-{number:0{width}}" for number in range(self.max_nodes)]
        return [Node(name, self.cpus, int(self.memory * RAYS_SHARE), cards, word) for name in names]
