"""A plain cluster's store: a spec's off Kubernetes, reached by its options, told by a mark of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.cluster_spec import ClusterSpec
from cluster.plain import checks, state
from cluster.plain.record import Record, this_machine
from cluster.plain.state import PlainNode
from cluster.plain.store import head_store, leave_mark, options_of, storage_settings
from cluster.ray_start import ray_environment
from runtime.core.config import load_spec
from runtime.core.errors import ClusterError, ConfigError, StorageError
from storage.store import Store, open_store
from tests.servers.fixtures import make_s3_bucket, s3_server

EXPORT = {"nfs": {"server": "10.0.0.9", "path": "/export"}}


def spec(**store: Any) -> ClusterSpec:
    group = {"name": "small", "count": 1, "cpus": 1, "memory": "1GiB"}
    return load_spec(ClusterSpec, {"name": "ours", "node_groups": [group], "store": store})


def record(store: Store, cluster: ClusterSpec | None = None) -> Record:
    """What a head with this store tells."""
    mark, content = leave_mark(store, "tandem")
    return Record(
        name="tandem",
        machine=this_machine(),
        store=store.uri,
        mark=mark,
        mark_content=content,
        http_port=8000,
        has_token=True,
        spec=cluster,
    )


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    """The URL of an S3 server that has the bucket ``lab``."""
    with s3_server() as url:
        make_s3_bucket(url, "lab")
        yield url


def test_a_folder_of_the_node_is_itself_where_there_are_no_pods(tmp_path: Path):
    assert head_store(None, spec(host_path=str(tmp_path))).uri == str(tmp_path / "store")
    team = spec(host_path=str(tmp_path), uri="/mnt/tandem/team/a")
    assert head_store(f"{tmp_path}/team/a/", team).uri == str(tmp_path / "team" / "a")
    with pytest.raises(
        ConfigError, match=rf"is /elsewhere, but the cluster spec's store is {tmp_path}/store"
    ):
        head_store("/elsewhere", spec(host_path=str(tmp_path)))


def test_an_export_is_where_this_machine_has_mounted_it(tmp_path: Path):
    assert head_store(str(tmp_path), spec(**EXPORT)).uri == str(tmp_path)
    with pytest.raises(ConfigError, match=r"store\.nfs is 10\.0\.0\.9:/export.*is missing.*--store /mnt"):
        head_store(None, spec(**EXPORT))
    with pytest.raises(ConfigError, match=r"store\.nfs is shared.*\(or TANDEM_STORE\) is s3://lab/x"):
        head_store("s3://lab/x", spec(nfs={"storage_class": "shared"}))


def test_the_specs_options_reach_the_store_from_the_head_from_a_machine_that_joins_and_from_ray(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tandem-tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tandem-tests-secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("TANDEM_STORAGE_PATIENCE_S", "1")
    cluster = spec(uri="s3://lab/tandem", options={"s3://lab": {"endpoint_url": s3_url}})
    with storage_settings(options_of(cluster)):
        told = record(head_store(None, cluster), cluster)
    with storage_settings(options_of(Record.model_validate_json(told.to_json()).spec)):
        checks.check_store(told, None)
        assert s3_url in ray_environment(told.store)["TANDEM_STORAGE_OPTIONS"]
    assert "TANDEM_STORAGE_OPTIONS" not in os.environ
    with pytest.raises(StorageError):
        open_store(told.store).root.names()


def test_two_clusters_on_one_store_do_not_disturb_each_others_joins(tmp_path: Path):
    store = open_store(str(tmp_path / "store"))
    first, second = record(store), record(store)
    checks.check_store(first, None)
    checks.check_store(second, None)
    with pytest.raises(ClusterError, match="does not see it"):
        checks.check_store(first.model_copy(update={"mark": "clusters/tandem/marks/other"}), None)


def test_the_mark_goes_with_the_head(running_node: Callable[..., PlainNode], tmp_path: Path):
    store = open_store(str(tmp_path / "store"))
    other, _ = leave_mark(store, "tandem")
    mark, _ = leave_mark(store, "tandem")
    running_node(mark=mark, store=store.uri)
    ended = state.down()
    assert ended is not None and ended.mark == mark
    assert [store.root.relative(entry) for entry in store.root.find()] == [other]
