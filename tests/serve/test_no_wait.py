"""What an app is told of whether it may wait, and that Serve does not take that for new code."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ray.serve._private.deploy_utils import get_app_code_version
from ray.serve.schema import ServeApplicationSchema

from serve_apps.request import NO_WAIT, as_asked_for

CODE = {"PYTHONPATH": "/code", "TANDEM_STORE": "gs://team/tandem"}


def asked(no_wait: bool, there: dict[str, Any] | None = None, **args: Any) -> dict[str, Any]:
    application = {
        "name": "chat",
        "route_prefix": "/chat",
        "import_path": "serve_apps.build:build_app",
        "args": {"name": "chat", "model": "tiny/v1", **args},
        "runtime_env": {"env_vars": CODE},
    }
    return as_asked_for(application, no_wait, there or {})


def deployed(application: dict[str, Any], status: str = "RUNNING") -> dict[str, Any]:
    """As Serve tells of it."""
    config = ServeApplicationSchema.model_validate(application).model_dump(exclude_unset=True)
    return {"status": status, "deployed_app_config": json.loads(json.dumps(config))}


def version(application: dict[str, Any]) -> str:
    """What Serve knows new code by."""
    return get_app_code_version(ServeApplicationSchema.model_validate(application))


def told(application: dict[str, Any]) -> bool:
    env_vars = application["runtime_env"]["env_vars"]
    assert env_vars.items() >= CODE.items()
    return NO_WAIT in env_vars


def test_an_app_is_told_whether_it_may_wait():
    assert told(asked(True)) and not told(asked(False))
    assert asked(True)["args"] == asked(False)["args"]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("status", ["RUNNING", "UNHEALTHY"])
def test_an_app_that_runs_and_is_asked_for_again_is_not_replaced_for_it(first: bool, status: str):
    before = asked(first)
    again = asked(not first, deployed(before, status))
    assert version(again) == version(before)
    # Without that it would be.
    assert version(asked(not first)) != version(before)


@pytest.mark.parametrize("first", [True, False])
def test_one_that_failed_or_waits_or_is_changed_is_told_anew(first: bool):
    for status in ("DEPLOY_FAILED", "DEPLOYING"):
        assert told(asked(not first, deployed(asked(first), status))) is not first
    assert told(asked(not first, deployed(asked(first)), model="tiny/v2")) is not first
    foreign = {"status": "RUNNING", "deployed_app_config": {"import_path": "theirs:app"}}
    assert told(asked(not first, foreign)) is not first
