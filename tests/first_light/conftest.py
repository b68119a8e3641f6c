"""The demo's model on the shared cluster: trained, published and served once, asked by many tests."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

import pytest

from runtime.app import App
from runtime.demo import demo_questions
from tests.conftest import ROOT, TestCluster

DEMO_TIMEOUT_S = 600


@dataclass(frozen=True)
class Demo:
    """What the demo printed, and what it left running."""

    output: str
    exit_code: int
    app: App
    cluster: TestCluster
    questions: list[tuple[str, str]]


@pytest.fixture(scope="session")
def demo(cluster: TestCluster, tandem_command: list[str]) -> Demo:
    """``tandem demo``, run once as a user runs it."""
    done = subprocess.run(
        [*tandem_command, "demo"],
        capture_output=True,
        text=True,
        timeout=DEMO_TIMEOUT_S,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout[-3000:] + done.stderr[-3000:]
    app = App(cluster.dashboard_url, "docstrings")
    return Demo(done.stdout, done.returncode, app, cluster, demo_questions(cluster.store, 20))
