"""Adapters of an app that runs: attach, detach, and see them loaded by every replica."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from cluster import applications
from runtime.core.config import load_spec
from runtime.core.errors import ConfigError, WaitTimeout
from serve_apps.adapters import Limits, attach, detach, find, plan_adapters, references
from serve_apps.spec import ServeSpec
from storage import attached
from storage.store import Store, open_store

_POLL_S = 0.1
Row = dict[str, Any]


class AppAdapters:
    """The adapters of one deployed app.

    Args:
        dashboard_url: The cluster's.
        app: Name of the app.
        store: Where the app's models are, unless its spec names another.

    Raises:
        ConfigError: there is no such app.
    """

    def __init__(self, dashboard_url: str, app: str, store: Store) -> None:
        self._url = dashboard_url
        deployed = applications.applications(dashboard_url)
        arguments = (deployed.get(app, {}).get("deployed_app_config") or {}).get("args")
        if arguments is None:
            raise ConfigError(f"app {app!r} is not deployed. Deployed: {', '.join(deployed) or 'none'}.")
        self.spec = load_spec(ServeSpec, arguments)
        self.store = open_store(self.spec.store) if self.spec.store else store

    def list(self) -> list[Row]:
        """One row an adapter: ``app``, ``name``, ``reference``, ``from`` (spec or attached), ``version``
        that it means now, ``loaded`` (replicas that serve it, ``2/3``) and ``fault``."""
        changes = attached.listing(self.store, self.spec.name)
        states = self._states()
        return [
            self._row(name, reference, name in changes, states)
            for name, reference in references(self.spec, changes).items()
        ]

    def add(self, name: str, reference: str, *, wait: bool = True, timeout_s: float = 120) -> Row:
        """Attach an adapter, or let a served name mean another one.

        Args:
            name: The model name that clients will send.
            reference: ``name`` (its latest version, followed), ``name/version``, ``run:<run>``, a path or an
                address.
            wait: Return once every running replica serves it.
            timeout_s: How long to wait at most.

        Raises:
            ConfigError: it cannot be served, here or in a replica's judgement; nothing has changed.
            WaitTimeout: not every replica has it yet; it stays attached.
        """
        change = attach(self.store, self.spec, name, reference, limits=self._limits())
        if wait:
            version, at = change.adapter.version.ref, change.attachment.at
            self._wait(name, timeout_s, lambda state: self._has(state, name, version), at)
            if fault := self._fault(name, at):
                attached.put_back(self.store, self.spec.name, name, change.before)
                raise ConfigError(f"adapters.{name} is {reference!r}, but a replica refuses it: {fault}")
        return self._row(name, reference, True, self._states())

    def remove(self, name: str, *, wait: bool = True, timeout_s: float = 120) -> None:
        """Serve ``name`` no more; requests that run end as they began.

        Raises:
            ConfigError: the app has no such adapter.
            WaitTimeout: a replica still has it.
        """
        detach(self.store, self.spec, name)
        if wait:
            self._wait(name, timeout_s, lambda state: name not in state.get("adapters", {}), "")

    def _wait(self, name: str, timeout_s: float, done: Callable[[Row], bool], at: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not all(done(state) for state in self._states().values()):
            if at and self._fault(name, at):
                return
            if time.monotonic() > deadline:
                raise WaitTimeout(
                    f"not every replica of {self.spec.name} has followed within {timeout_s:g} s; they go on. "
                    f"See: tandem adapters ls {self.spec.name}."
                )
            time.sleep(_POLL_S)

    def _fault(self, name: str, at: str) -> str | None:
        """What a running replica says against the attachment of that time."""
        faults = (state.get("faults", {}).get(name, {}) for state in self._states().values())
        return next((str(fault["why"]) for fault in faults if fault.get("at") == at), None)

    @staticmethod
    def _has(state: Row, name: str, version: str) -> bool:
        return bool(state.get("adapters", {}).get(name, {}).get("version") == version)

    def _limits(self) -> Limits:
        """As the running engines were started; of an app without replicas, as they would be."""
        for state in self._states().values():
            if "limits" in state:
                return load_spec(Limits, state["limits"])
        model = self.store.model(self.spec.model)
        arguments = plan_adapters(self.spec, store=self.store, model=model)
        return Limits.of({**arguments, **self.spec.engine})

    def _states(self) -> dict[str, Row]:
        """What each running replica says; empty for one that has said nothing yet."""
        details = applications.applications(self._url).get(self.spec.name, {})
        deployments = (details.get("deployments") or {}).values()
        running = [r["replica_id"] for d in deployments for r in d["replicas"] if r["state"] == "RUNNING"]
        said = attached.reports(self.store, self.spec.name)
        return {replica_id: said.get(replica_id, {}) for replica_id in running}

    def _row(self, name: str, reference: str, is_attached: bool, states: dict[str, Row]) -> Row:
        try:
            version, fault = find(self.store, name, reference).version.ref, None
        except ConfigError as error:
            version, fault = None, str(error)
        has = [state for state in states.values() if version and self._has(state, name, version)]
        said = (state.get("faults", {}).get(name) for state in states.values())
        return {
            "app": self.spec.name,
            "name": name,
            "reference": reference,
            "from": "attached" if is_attached else "spec",
            "version": version,
            "loaded": f"{len(has)}/{len(states)}",
            "fault": fault or next((one["why"] for one in said if one), None),
        }
