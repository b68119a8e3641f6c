"""A model's shape, from its files wherever they are."""

from __future__ import annotations

from cluster.estimator.model import ModelShape, model_shape
from runtime.core.errors import ConfigError, StorageError
from storage.models import ModelVersion
from storage.tensors import tensors_in


def shape_or_none(model: ModelVersion) -> ModelShape | None:
    """The model as the estimator looks at it; None where its files do not tell (no safetensors headers)."""
    try:
        return model_shape(model.ref, tensors_in(model.files), model.config())
    except (ConfigError, StorageError):
        return None
