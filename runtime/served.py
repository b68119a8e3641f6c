"""Which model versions are being served: those must not be removed."""

from __future__ import annotations

from contextlib import suppress

from cluster import applications, local
from runtime.core.config import load_spec
from runtime.core.errors import ConfigError
from serve_apps.adapters import find, references
from serve_apps.plan import IMPORT_PATH
from serve_apps.spec import ServeSpec
from storage import attached
from storage.models import ModelVersion
from storage.store import Store


def remove_model(store: Store, ref: str, address: str | None) -> ModelVersion:
    """Remove one version that no app of the cluster serves.

    Args:
        address: The cluster's dashboard. None: the local cluster, if one runs.

    Raises:
        ConfigError: there is no such version, or an app serves it; names the app.
        ClusterError: the cluster does not answer, so nobody knows whether it is served.
    """
    found = store.model(ref, field="MODEL")
    url = local.dashboard_of(address)
    for name, app in (applications.applications(url) if url else {}).items():
        config = app.get("deployed_app_config") or {}
        arguments = config.get("args", {})
        if config.get("import_path") != IMPORT_PATH or arguments.get("store") not in (None, store.uri):
            continue
        if {found.ref, found.place.uri} & _served_by(load_spec(ServeSpec, arguments), store):
            raise ConfigError(
                f"{found.ref} is served by the app {name!r}. Serve another version, or end the app first: "
                f"tandem stop {name}."
            )
    return store.remove_model(ref)


def _served_by(spec: ServeSpec, store: Store) -> set[str]:
    """Versions that an app serves now: those that its references mean, and those that its replicas told."""
    wanted = references(spec, attached.listing(store, spec.name))
    versions = {spec.model, *wanted.values()}
    for name, reference in wanted.items():
        with suppress(ConfigError):  # a broken one serves nothing
            versions.add(find(store, name, reference).version.ref)
    with suppress(ConfigError):
        versions.add(store.model(spec.model).ref)
    told = attached.reports(store, spec.name).values()
    return versions | {loaded["version"] for state in told for loaded in state["adapters"].values()}
