"""Which model versions are being served: those must not be removed."""

from __future__ import annotations

from cluster import applications, local
from runtime.core.errors import ConfigError
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
        arguments = (app.get("deployed_app_config") or {}).get("args", {})
        if arguments.get("model") in (found.ref, found.place.uri) and arguments.get("store") in (
            None,
            store.uri,
        ):
            raise ConfigError(
                f"{found.ref} is served by the app {name!r}. Serve another version, or end the app first: "
                f"tandem stop {name}."
            )
    return store.remove_model(ref)
