"""A model's shape, from its files wherever they are."""

from __future__ import annotations

from cluster.estimator.model import ModelShape, model_shape
from runtime.core.errors import ConfigError, StorageError
from storage.models import ModelVersion
from storage.tensors import tensors_in


def shape_of(model: ModelVersion) -> ModelShape:
    """The model as the estimator looks at it.

    Raises:
        ConfigError: its config.json lacks a size; names the field.
        StorageError: it has no safetensors headers, or they cannot be read.
    """
    return model_shape(model.ref, tensors_in(model.files), model.config())


def shape_or_none(model: ModelVersion) -> ModelShape | None:
    """The model as the estimator looks at it; None where its files do not tell."""
    try:
        return shape_of(model)
    except (ConfigError, StorageError):
        return None
