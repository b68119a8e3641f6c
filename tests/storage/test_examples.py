"""examples/storage: the config that the documentation shows is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.core.config import load_spec
from runtime.core.lookup import load
from storage import backends
from storage.workspace import default_store, options_for

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "storage" / "config.yaml"


def test_the_workspace_config_of_the_examples_holds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TANDEM_STORE")
    monkeypatch.setenv("TANDEM_CONFIG", str(EXAMPLE))
    assert default_store() == "s3://lab/tandem"
    for address in ("s3://lab/tandem", "gs://other-team/x", "gs://public-models"):
        scheme = address.partition("://")[0]
        options = options_for(address)
        assert options, address
        load_spec(load(backends, scheme, field="scheme").Options, options)
