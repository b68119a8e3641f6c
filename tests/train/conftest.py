"""A store with one model and one dataset, and specs that name them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.store import Store, open_store
from tests.train import forked


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "store"))
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    store.publish_model(base, "tiny-base")
    store.add_dataset("docstrings", [{"instruction": "What does len do?", "output": "Count."}])
    return store


@pytest.fixture
def spec() -> dict[str, Any]:
    """A spec that can run; tests change one thing."""
    return {
        "name": "lesson",
        "model": "tiny-base",
        "dataset": "docstrings",
        "llamafactory": {
            "stage": "sft",
            "finetuning_type": "full",
            "template": "qwen3_nothink",
            "max_steps": 3,
        },
        "scaling": {"num_workers": 2},
    }


@pytest.fixture(scope="session")
def trainings(home: Path) -> Iterator[forked.Trainings]:
    """Real trainings without Ray; the engine is imported once for all."""
    with forked.trainings(home) as running:
        yield running
