"""The store of a plain cluster: where the spec's lies off Kubernetes, its settings, its mark."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.cluster_spec import ClusterSpec
from cluster.cluster_store import MOUNT, NfsVolume
from runtime.core.errors import ConfigError
from storage.store import Store, open_store

_OPTIONS = "TANDEM_STORAGE_OPTIONS"
"""The storage settings of a process, as pods have them too."""


def head_store(given: str | None, cluster: ClusterSpec | None) -> Store:
    """The cluster's store.

    Args:
        given: What ``--store`` or ``$TANDEM_STORE`` names.

    Raises:
        ConfigError: the spec has another one, or one whose folder on this machine nobody named; or only one
            process sees it.
    """
    store = open_store(_address(given, cluster))
    if not store.root.backend.shared:
        raise ConfigError(
            f"store is {store.uri!r}, which only one process sees. Use a folder, gs:// or s3://."
        )
    return store


def _address(given: str | None, cluster: ClusterSpec | None) -> str | None:
    if cluster is None:
        return given
    if cluster.store.nfs and "://" not in cluster.store.root:
        return _mounted(cluster.store.nfs, given)
    wanted = _on_this_machine(cluster)
    if given and given.rstrip("/") != wanted.rstrip("/"):
        raise ConfigError(
            f"--store (or TANDEM_STORE) is {given}, but the cluster spec's store is {wanted}. Leave one out."
        )
    return wanted


def _on_this_machine(cluster: ClusterSpec) -> str:
    """A folder of the node is mounted at ``MOUNT`` in pods alone; without them it is what it is."""
    store = cluster.store
    if store.host_path is None:
        return store.root
    return str(Path(store.host_path) / store.root.removeprefix(MOUNT).lstrip("/"))


def _mounted(nfs: NfsVolume, given: str | None) -> str:
    if given and "://" not in given:
        return given
    source = f"{nfs.server}:{nfs.path}" if nfs.server else nfs.storage_class or nfs.claim
    what = f"--store (or TANDEM_STORE) is {given}" if given else "--store (and TANDEM_STORE) is missing"
    raise ConfigError(
        f"the cluster spec's store.nfs is {source}, which pods mount by themselves, and {what}. Mount the "
        "export at the same folder on all machines and name the store in it: --store /mnt/export/store."
    )


@contextmanager
def storage_settings(options: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Within the block this process, and Ray that it starts, reach stores by the spec's ``store.options``.

    They take the place of ``storage`` in the machine's own workspace config, as in pods; without any that one
    stays.
    """
    before = os.environ.get(_OPTIONS)
    if options:
        os.environ[_OPTIONS] = json.dumps(options, sort_keys=True)
    try:
        yield
    finally:
        if before is not None:
            os.environ[_OPTIONS] = before
        else:
            os.environ.pop(_OPTIONS, None)


def options_of(cluster: ClusterSpec | None) -> dict[str, dict[str, Any]]:
    """The spec's ``store.options``; empty without a spec."""
    return cluster.store.options if cluster else {}


def leave_mark(store: Store, cluster: str) -> tuple[str, str]:
    """A new file in the store that is this head's alone: several clusters may have one store, and one name.

    Returns:
        Its path in the store, and what is in it.
    """
    content = secrets.token_hex(16)
    mark = f"clusters/{cluster}/marks/{content}"
    (store.root / mark).write_bytes(content.encode())
    return mark, content
