"""Which model versions are being served: those must not be removed."""

from __future__ import annotations

from cluster import applications, local
from runtime.core.config import load_spec
from runtime.core.errors import ConfigError
from serve_apps.adapters import references
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
        adapters = references(load_spec(ServeSpec, arguments), attached.listing(store, name))
        if {arguments["model"], *adapters.values()} & {found.ref, found.place.uri}:
            raise ConfigError(
                f"{found.ref} is served by the app {name!r}. Serve another version, or end the app first: "
                f"tandem stop {name}."
            )
    return store.remove_model(ref)
