"""The train spec: LLaMA-Factory's own arguments, and the few fields that say where and how to run them."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from runtime.core.config import ConfigModel
from runtime.core.errors import ConfigError
from storage.names import check_name


class Scaling(ConfigModel):
    """How many workers, and what each of them reserves."""

    num_workers: int = Field(1, ge=1)
    """Data-parallel workers. The global batch is ``num_workers * per_device_train_batch_size *
    gradient_accumulation_steps``."""

    gpus_per_worker: float | None = Field(None, ge=0)
    """GPUs each worker reserves. Default: 0 on a cluster without GPUs, 0.5 where there is one GPU (the other
    half is for serving), else 1. A fraction is co-operation, not isolation: nothing caps the memory."""

    cpus_per_worker: float = Field(0.5, ge=0)
    """CPUs each worker reserves with Ray. Two workers and one replica, 0.5 each, fit on 2 cores."""


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
    """``zero0`` to ``zero3``, the path of a DeepSpeed JSON file, or its content. Default: plain DDP."""

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
