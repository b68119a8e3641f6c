"""The train spec: LLaMA-Factory's own arguments, and the few fields that say where and how to run them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ByteSize, Field, field_validator

from cluster.priority import Priority
from runtime.core.config import ConfigModel
from runtime.core.errors import ConfigError
from storage.names import check_name


class Scaling(ConfigModel):
    """How many workers, where they may be, and what each of them reserves. Ray's words."""

    num_workers: int | tuple[int, int] = 1
    """Data-parallel workers. The global batch is ``num_workers * per_device_train_batch_size *
    gradient_accumulation_steps``. ``[2, 8]`` is elastic: the run starts with as many as there is room for and
    re-forms when nodes leave or join; ``gradient_accumulation_steps`` is then meant for the larger number and
    grows with fewer workers, so that the global batch stays."""

    gpus_per_worker: float | None = Field(None, ge=0)
    """GPUs each worker reserves. Default: 0 on a cluster without GPUs, 0.5 where there is one GPU (the other
    half is for serving), else 1. A fraction is so much of one card's memory: PyTorch takes no more, and a
    run that would need more is refused. Co-operation, not isolation: see docs/sharing.md."""

    cpus_per_worker: float = Field(0.5, ge=0)
    """CPUs each worker reserves with Ray. Two workers and one replica, 0.5 each, fit on 2 cores."""

    memory_bytes_per_worker: ByteSize | None = Field(None, gt=0)
    """Memory of its node that each worker reserves with Ray (``4GiB``). Without a GPU the worker also keeps
    to it: one that would take more ends with an error instead of taking it from its neighbours."""

    accelerator_type: str | None = None
    """The GPU product, as Ray names it (``A100``, ``H100``, ``L4``). Default: one product for all workers,
    whichever has room for them; ``any`` lets workers of one job be on different products."""

    placement_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """How Ray places the workers: on few nodes or on many; the strict ones rather wait than do otherwise."""

    elastic_resize_monitor_interval_s: float = Field(60.0, gt=0)
    """How often an elastic run looks whether it could have more workers."""

    @field_validator("gpus_per_worker")
    @classmethod
    def _one_card_at_most(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1:
            raise ValueError(
                f"is {gpus:g}, but a worker computes on one GPU at most. Set it to 1, and num_workers to the "
                "number of GPUs."
            )
        return gpus

    @field_validator("num_workers", mode="before")
    @classmethod
    def _counts(cls, value: Any) -> Any:
        bounds = list(value) if isinstance(value, list | tuple) else [value, value]
        whole = len(bounds) == 2 and all(type(bound) is int for bound in bounds)
        if not whole or not 1 <= bounds[0] <= bounds[1]:
            raise ValueError(
                f"is {value!r}. Give a number from 1 on, or [least, most] with 1 <= least <= most."
            )
        return value if isinstance(value, int) else tuple(bounds)

    @property
    def min_workers(self) -> int:
        """The least number of workers."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        """The largest number of workers."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


class Failure(ConfigModel):
    """What happens when a worker, a node or the room for the run is lost."""

    max_failures: int = Field(3, ge=-1)
    """How often the run goes on by itself from its last checkpoint after losing a process or a node; -1:
    always. A fault that would come again (out of memory, NaN loss, a bad row, a full disk, an error of the
    recipe) ends the run at once, with its reason. A node that is taken back with notice is no failure."""

    start_timeout_s: float = Field(3600.0, gt=0)
    """How long the run waits for room on the cluster, at its start and after a loss, before it fails."""


class Checkpoints(ConfigModel):
    """What happens to a checkpoint after the trainer wrote it (every ``llamafactory.save_steps``)."""

    keep_last: int | None = Field(None, ge=1)
    """How many of the newest stay. Default: ``llamafactory.save_total_limit``, else all."""

    keep_best: int | None = Field(None, ge=1)
    """How many of the best stay besides, by ``llamafactory.metric_for_best_model`` (default: ``eval_loss``
    where the run evaluates, else ``loss``)."""

    when_busy: Literal["wait", "skip"] = "wait"
    """What a save does that comes before the last one has left for the store: wait for it, or leave this
    checkpoint out."""


class Publish(ConfigModel):
    """Where the trained model goes in the store."""

    name: str
    """Name of the model."""

    version: str | None = None
    """Default: the next of ``v1``, ``v2``, and so on."""

    @field_validator("name", "version")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        return value if value is None else _checked(value)


class TrainSpec(ConfigModel):
    """One training job."""

    name: str
    """Name of the run; run ids begin with it."""

    model: str
    """The model to start from: ``name`` (the latest version), ``name/version``, the path of a folder, or an
    address (``gs://``, ``s3://``, ``hf://org/name``)."""

    dataset: str | list[str]
    """A dataset of the store, or several."""

    llamafactory: dict[str, Any] = Field(default_factory=dict)
    """Any argument of LLaMA-Factory, under its own name; but for those that the fields here decide."""

    scaling: Scaling = Scaling()
    """Workers and what each reserves."""

    deepspeed: str | dict[str, Any] | None = None
    """A preset (``zero0`` to ``zero3``, ``zero2-offload``, ``zero3-offload``), the path or address of a
    DeepSpeed JSON file, or its content. Default: plain DDP."""

    checkpoints: Checkpoints = Checkpoints()
    """Which checkpoints stay, and what a save does while the last one still leaves."""

    failure: Failure = Failure()
    """How often and how long the run tries again."""

    priority: Priority = "training"
    """The class in which the run waits where there is no room. Unless the cluster orders them otherwise,
    ``interactive`` is before ``serving`` before ``training`` before ``batch``; then age counts."""

    memory_check: Literal["refuse", "warn"] = "refuse"
    """What happens where the estimate says that a worker needs more memory than it has: the run is refused,
    or told so in a note."""

    merge: bool = False
    """Merge the trained LoRA adapter into its base: the result is a full model."""

    publish: Publish | None = None
    """Publish the result as a model version. Default: it stays in the run's ``output`` folder."""

    @field_validator("name")
    @classmethod
    def _name_is_a_name(cls, value: str) -> str:
        return _checked(value)

    @field_validator("dataset")
    @classmethod
    def _names_a_dataset(cls, value: str | list[str]) -> str | list[str]:
        if not value:
            raise ValueError("is empty. Name at least one dataset of the store.")
        return value

    @property
    def datasets(self) -> list[str]:
        """The datasets to train on, as a list."""
        return [self.dataset] if isinstance(self.dataset, str) else self.dataset


def _checked(name: str) -> str:
    try:
        return check_name(name, field="the name")
    except ConfigError as error:
        # pydantic collects ValueErrors only, and adds the field's own path in front.
        raise ValueError(str(error)) from None
