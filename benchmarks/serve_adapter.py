"""Part of benchmarks/serve.py: how soon a running app answers with a version that has just been published."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import serve_targets as targets
from cluster import local
from storage.store import Store
from tests.serve.adapter_files import shapes_of, write_adapter

_ADAPTER = "bench-adapter"
_TIMEOUT_S = 60.0


@contextmanager
def adapter_app(store: Store, cluster: local.LocalCluster, scratch: Path) -> Iterator[Callable[[], float]]:
    """An app that follows an adapter's latest version.

    Yields:
        Publishes one more version and returns the seconds until an answer comes from it.
    """
    with store.model(targets.MODEL).fetch() as base:
        modules = shapes_of(base.path, "down_proj") | shapes_of(base.path, "q_proj")
    versions = 0

    def publish() -> None:
        nonlocal versions
        versions += 1
        folder = write_adapter(scratch / f"adapter-{versions}", modules, seed=versions)
        base_ref = store.model(targets.MODEL).ref
        store.publish_model(folder, _ADAPTER, kind="adapter", base=base_ref)

    publish()
    name = "bench-adapters"
    target = targets.tandem_app(store, cluster, name, adapters={_ADAPTER: _ADAPTER})

    def answer() -> str:
        body = {"model": _ADAPTER, "prompt": [5, 6, 7], "max_tokens": 8, "ignore_eos": True, "temperature": 0}
        return str(targets.ask(target, body)["choices"][0]["text"])

    def publish_and_ask() -> float:
        before = answer()
        publish()
        published_at = time.monotonic()
        while answer() == before:
            if time.monotonic() - published_at > _TIMEOUT_S:
                raise SystemExit(f"no answer of version {versions} within {_TIMEOUT_S:g} s")
        return time.monotonic() - published_at

    try:
        yield publish_and_ask
    finally:
        targets.stop(store, target)
