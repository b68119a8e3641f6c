"""What runs in one replica: the engine, the door before it, its adapters, the record of its work."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from ray import serve
from ray.serve._private.logging_utils import get_serve_logs_dir

from runtime.core.config import load_spec
from serve_apps.adapter_routes import adapter_routes
from serve_apps.door import Door
from serve_apps.engine.adapters import AdapterKeeper
from serve_apps.engine.metrics import EngineMetrics
from serve_apps.engine.openai import Engine
from serve_apps.engine.share import alone_while_starting, share
from serve_apps.keyring import Keyring
from serve_apps.limits import Limits
from serve_apps.live_stats import LiveStats
from serve_apps.request_log import log_to_stderr
from serve_apps.spec import ServeSpec
from serve_apps.usage import Usage
from storage.keys import keys_in
from storage.store import open_store


class _Part(Protocol):
    """Something that works beside the engine."""

    async def start(self) -> None:
        """Begin."""

    async def stop(self) -> None:
        """End, with nothing left undone."""


class Replica:
    """An engine that clients may ask. Get one from :meth:`start`."""

    def __init__(
        self,
        engine: Engine,
        adapters: AdapterKeeper,
        *,
        spec: ServeSpec,
        keyring: Keyring | None,
        limits: Limits,
        usage: Usage,
        replica_id: str,
        held: ExitStack,
    ) -> None:
        self._engine, self._adapters = engine, adapters
        self._held = held
        self._model = spec.model
        logs = Path(get_serve_logs_dir()).parent
        live = LiveStats(logs, replica_id, self.stats)
        # Usage first: at the end nothing else is worth waiting for.
        metrics = EngineMetrics(replica_id, app=spec.name, queued=lambda: self.app.admission.queued)
        self._parts: list[_Part] = [usage, limits, metrics, live]
        if keyring:
            self._parts.append(keyring)
        self.app = Door(
            engine.app,
            name=spec.name,
            keyring=keyring,
            limits=limits,
            max_ongoing_requests=spec.max_ongoing_requests,
            max_queued_requests=spec.max_queued_requests,
            log_requests=spec.log_requests,
            log_prompts=spec.log_prompts,
            usage=usage,
        )

    @classmethod
    async def start(cls, plan: Mapping[str, Any]) -> Replica:
        """Start the engine as the plan says, load its adapters, read the keys, and return when it can answer.

        Args:
            plan: A :class:`serve_apps.plan.ServePlan` as plain data.

        Raises:
            ServeError: vLLM did not start.
            StorageError: the model could not be brought to this node.
        """
        log_to_stderr()
        spec = load_spec(ServeSpec, plan["spec"])
        store = open_store(spec.store)
        replica_id = serve.get_replica_context().replica_id.unique_id
        held = ExitStack()
        held.enter_context(share(plan, replica_id=replica_id))
        with alone_while_starting(plan):
            engine = await Engine.start(plan)
        adapters = AdapterKeeper(engine.models, plan, replica_id=replica_id)
        if engine.takes_adapters:
            await adapters.start()
        engine.app.router.routes[:0] = adapter_routes(plan)
        keyring = Keyring(keys_in(store.root, spec.keys)) if spec.auth == "keys" else None
        usage = Usage(store.root / "usage", app=spec.name, replica=replica_id)
        replica = cls(
            engine,
            adapters,
            spec=spec,
            keyring=keyring,
            limits=Limits(),
            usage=usage,
            replica_id=replica_id,
            held=held,
        )
        for part in replica._parts:
            await part.start()
        return replica

    def stats(self) -> dict[str, float]:
        """What the engine does now, and how many wait for it: see ``EngineStats.now``."""
        stats = self._engine.stats()
        return stats | {"waiting": stats["waiting"] + self.app.admission.queued}

    def describe(self) -> dict[str, Any]:
        """``model``: the version that it serves; ``max_model_len``: tokens of prompt and answer together."""
        return {"model": self._model, "max_model_len": self._engine.max_model_len}

    async def check_health(self) -> None:
        """Raise when the engine is dead or stuck."""
        await self._engine.check_health()

    async def stop(self) -> None:
        """Write what is not yet written, and end the engine's processes."""
        try:
            for part in self._parts:
                await part.stop()
            self._adapters.close()
        finally:
            self._engine.stop()
            self._held.close()
