"""How an app waits for its room, or does not: with Ray Serve itself, on a cluster of one logical card."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import applications, local
from cluster.ledger.shown import picture
from cluster.rest import head_node_id
from cluster.shares.holding import folder_of
from serve_apps.request import as_asked_for
from tests.conftest import ROOT, wait_for
from tests.shares.processes import holder

pytestmark = pytest.mark.engine


@dataclass(frozen=True)
class Living:
    """A cluster of one logical card."""

    cluster: local.LocalCluster

    @property
    def url(self) -> str:
        return self.cluster.dashboard_url

    def holder(self, name: str, **fields: Any) -> Any:
        """A process that holds a part of the card."""
        head = head_node_id(self.url)
        folder = folder_of(Path(self.cluster.temp_dir, "session_latest").resolve(), head)
        return holder(folder, holder=name, node_id=head, **fields)

    def deploy(self, name: str, gpus: float, *, no_wait: bool) -> None:
        application = {
            "name": name,
            "route_prefix": f"/{name}",
            "import_path": "tests.ledger.apps:build",
            "args": {"name": name, "model": "none", "resources": {"cpus": 0.1, "gpus": gpus}},
            "runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT)}},
        }
        asked = as_asked_for(application, no_wait, applications.applications(self.url).get(name, {}))
        applications.deploy(self.url, asked, http_port=None)

    def status(self, name: str) -> str:
        return str(applications.applications(self.url).get(name, {}).get("status"))

    def ended(self, *names: str) -> dict[str, str]:
        """What became of the apps, when Serve has done with them."""
        done = ("RUNNING", "DEPLOY_FAILED")
        wait_for(lambda: all(self.status(name) in done for name in names), "Serve has done", 120)
        return {name: self.status(name) for name in names}

    def message(self, name: str) -> str:
        return str(applications.applications(self.url)[name]["message"])

    def waiting(self) -> list[str]:
        return [one["name"] for one in picture(self.url)["waiting"]]

    def holders(self) -> list[str]:
        (node,) = picture(self.url)["nodes"]
        return [share["holder"] for share in node["cards"][0]["shares"]]

    def replica(self, name: str) -> int | None:
        """Its process, while it runs."""
        deployments = applications.applications(self.url)[name]["deployments"].values()
        found = [one for deployment in deployments for one in deployment["replicas"]]
        return next((one["pid"] for one in found if one["state"] == "RUNNING"), None)


@pytest.fixture(scope="module")
def cluster(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Living]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANDEM_HOME", str(tmp_path_factory.mktemp("room")))
        try:
            yield Living(
                local.up(local.LocalClusterSpec(num_cpus=3, num_gpus=1, dashboard_port=0, http_port=0))
            )
        finally:
            local.down()


@pytest.fixture
def living(cluster: Living) -> Iterator[Living]:
    """The cluster, with no app on it before and after."""
    yield cluster
    # Those that run at last: with every change Serve builds again what is not built yet.
    for name in sorted(applications.applications(cluster.url), key=lambda n: cluster.status(n) == "RUNNING"):
        applications.delete(cluster.url, name)
    wait_for(lambda: not applications.applications(cluster.url), "all apps have ended", 60)
    wait_for(lambda: not cluster.holders() and not cluster.waiting(), "all room is given back", 180)


def test_an_app_that_may_not_wait_fails_where_there_is_no_room_and_is_in_no_queue(living: Living):
    with living.holder("run", fraction=0.6):
        living.deploy("first", 0.1, no_wait=True)  # the first app starts the ledger
        assert living.ended("first") == {"first": "RUNNING"}
        wait_for(lambda: "run" in living.holders(), "the run's share is seen", 30)
        living.deploy("hasty", 0.5, no_wait=True)
        assert living.ended("hasty") == {"hasty": "DEPLOY_FAILED"}
        assert "app hasty has no room: 0 of 1 worker find 0.5 of a card now" in living.message("hasty")
        assert living.waiting() == []
        # The same app, told to wait, does.
        living.deploy("hasty", 0.5, no_wait=False)
        wait_for(lambda: living.waiting() == ["hasty"], "it waits", 60)
        assert living.status("hasty") == "DEPLOYING"
    assert living.ended("hasty") == {"hasty": "RUNNING"}


def test_of_two_that_may_not_wait_at_once_one_has_the_room_and_the_other_is_told_so(living: Living):
    for name in ("one", "two"):
        living.deploy(name, 0.6, no_wait=True)
    assert sorted(living.ended("one", "two").values()) == ["DEPLOY_FAILED", "RUNNING"]
    assert living.waiting() == []


def test_an_app_whose_older_configuration_began_meanwhile_waits_no_more_for_a_larger_one(living: Living):
    living.deploy("first", 0.1, no_wait=False)
    assert living.ended("first") == {"first": "RUNNING"}
    living.deploy("growing", 1.0, no_wait=False)
    wait_for(lambda: living.waiting() == ["growing"], "it waits", 60)
    # A replica of it tells its share: Serve replaces that itself, and nobody else gives way.
    with living.holder("growing", fraction=0.5, kind="serve"):
        wait_for(lambda: not living.waiting(), "it waits no more", 30)
        assert living.status("growing") == "DEPLOYING"
        assert "was ended" not in living.message("growing")


def test_a_replica_that_dies_comes_back_though_its_app_was_told_not_to_wait(living: Living):
    living.deploy("lasting", 0.6, no_wait=True)
    assert living.ended("lasting") == {"lasting": "RUNNING"}
    pid = wait_for(lambda: living.replica("lasting"), "its replica", 30)
    living.deploy("next", 0.6, no_wait=False)
    wait_for(lambda: living.waiting() == ["next"], "another app waits for the card", 60)
    psutil.Process(pid).kill()
    wait_for(lambda: living.replica("lasting") not in (None, pid), "another replica has come", 120)
    assert living.ended("lasting") == {"lasting": "RUNNING"}
    assert living.status("next") == "DEPLOYING"
