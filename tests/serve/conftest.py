"""A store with one small model folder: enough for everything that is decided before an engine starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from storage.store import Store


@pytest.fixture
def with_model(store: Store, tmp_path: Path) -> Store:
    """A store whose model ``tiny`` has 8 attention heads and one version."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 8, "hidden_size": 256}))
    store.publish_model(folder, "tiny")
    return store
