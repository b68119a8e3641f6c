"""Adapters of a running engine: what spec and store want is loaded, replaced and removed as requests run.

A new version is loaded beside the old one as another adapter of vLLM's, and then the served name points to
it: requests that began with the old one end with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.lora.request import LoRARequest

from runtime.core.config import load_spec
from runtime.core.errors import StorageError, TandemError, Unreachable
from runtime.core.log import get_logger
from serve_apps.adapter_checks import check_shapes
from serve_apps.adapters import Adapter, Limits, check, find, references
from serve_apps.spec import ServeSpec
from storage import attached
from storage.cached_folder import CachedFolder
from storage.models import ModelVersion
from storage.patience import patience
from storage.store import open_store

_log = get_logger(__name__)

_LINGER_S = 10.0
"""How long a version stays loaded after its last request: one that was admitted may not have begun yet."""

_LAST_WORD_S = 2.0
"""How long a replica that ends waits for the store."""


class ServedAdapter(LoRARequest, array_like=True, omit_defaults=True):  # type: ignore[call-arg]
    """An adapter under the name that clients send and see. The engine gets :meth:`for_engine`."""

    version: str = ""
    """What it is: ``name/version`` or an address."""

    @property
    def path(self) -> str:
        """What ``/v1/models`` says as ``root``."""
        return self.version

    def for_engine(self) -> LoRARequest:
        """The same under a name of its own.

        Two adapters of one name are one to vLLM's worker: of two versions in a batch it would load one.
        """
        name = f"{self.lora_name}#{self.lora_int_id}"
        return LoRARequest(lora_name=name, lora_int_id=self.lora_int_id, lora_path=self.lora_path)


def for_engine(request: LoRARequest | None) -> LoRARequest | None:
    """What to hand to the engine for the adapter that a client named."""
    return request.for_engine() if isinstance(request, ServedAdapter) else request


@dataclass
class _Loaded:
    adapter: Adapter
    request: ServedAdapter
    folder: CachedFolder
    idle_since: float | None = None


@dataclass
class _Wanted:
    """What spec and store want now: adapters found, and why others cannot be."""

    references: dict[str, str] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=dict)
    """When a name was attached: attached again, a broken one is tried again."""
    adapters: dict[str, Adapter] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)


class AdapterKeeper:
    """Keeps an engine's adapters as spec and store want them.

    Args:
        models: vLLM's registry of what is served: ``app.state.openai_serving_models``.
        plan: A :class:`serve_apps.plan.ServePlan` as plain data.
        replica_id: Serve's id of this replica, under which it tells what it has loaded.
        refresh_s: Seconds between two looks at the store.
    """

    def __init__(
        self, models: OpenAIServingModels, plan: Mapping[str, Any], *, replica_id: str, refresh_s: float = 1.0
    ) -> None:
        self._models = models
        self._client: Any = models.engine_client
        self._spec = load_spec(ServeSpec, plan["spec"])
        self._store = open_store(self._spec.store)
        self._limits = Limits.of(plan["engine"])
        self._replica_id = replica_id
        self._refresh_s = refresh_s
        self._model: ModelVersion | None = None
        self._loaded: dict[str, _Loaded] = {}
        self._leaving: list[_Loaded] = []
        self._faults: dict[str, str] = {}
        self._refused: dict[str, tuple[tuple[str, ...], str]] = {}
        self._changes: dict[str, attached.Attachment] = {}
        self._told: dict[str, Any] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load all that is wanted, and go on looking. A broken adapter is told of and stops nothing."""
        await self._look()
        self._task = asyncio.create_task(self._watch())

    def close(self) -> None:
        """Look no more; the replica ends."""
        if self._task:
            self._task.cancel()
        with contextlib.suppress(StorageError), patience(_LAST_WORD_S):
            attached.withdraw(self._store, self._spec.name, self._replica_id)
        for loaded in [*self._loaded.values(), *self._leaving]:
            loaded.folder.close()

    async def _watch(self) -> None:
        said = ""
        while True:
            await asyncio.sleep(self._refresh_s)
            try:
                await self._look()
                said = ""
            except Exception as error:  # a store that is away must not end the watch
                if said != (said := str(error)):
                    _log.warning("adapters are not looked after: %s", error)

    async def _look(self) -> None:
        wanted = await asyncio.to_thread(self._find)
        for name in self._loaded.keys() - wanted.references.keys():
            self._unload(name)
        faults = wanted.faults
        for name, adapter in wanted.adapters.items():
            if fault := await self._bring(adapter, wanted.marks.get(name, "")):
                faults[name] = fault
        for name in faults.keys() - self._faults.keys():
            _log.warning("adapter %s: %s", name, faults[name])
        self._faults = faults
        await self._remove_idle()
        await asyncio.to_thread(self._tell)

    def _find(self) -> _Wanted:
        with contextlib.suppress(Unreachable):  # then what it said last stands
            self._changes = attached.listing(self._store, self._spec.name)
        marks = {name: attachment.at for name, attachment in self._changes.items()}
        wanted = _Wanted(references(self._spec, self._changes), marks)
        for name, reference in wanted.references.items():
            try:
                wanted.adapters[name] = find(self._store, name, reference)
            except TandemError as error:
                wanted.faults[name] = str(error)
        return wanted

    async def _bring(self, adapter: Adapter, mark: str) -> str | None:
        """Serve the adapter if it is not served yet; why not, where that fails."""
        key = (adapter.reference, adapter.version.uri, adapter.version.revision or "", mark)
        now = self._loaded.get(adapter.name)
        if now and (now.adapter.version.uri, now.adapter.version.revision) == (
            adapter.version.uri,
            adapter.version.revision,
        ):
            now.adapter = adapter
            return None
        refused_key, why = self._refused.get(adapter.name, (None, ""))
        if refused_key == key:
            return why
        try:
            self._replace(await self._load(adapter))
        except StorageError as error:
            return str(error)  # it may pass: tried again at the next look
        except Exception as error:
            why = str(error) if isinstance(error, TandemError) else f"vLLM refused it: {error}"
            self._refused[adapter.name] = (key, why)
            return why
        self._refused.pop(adapter.name, None)
        return None

    async def _load(self, adapter: Adapter) -> _Loaded:
        await asyncio.to_thread(self._check, adapter)
        folder = await asyncio.to_thread(adapter.version.fetch)
        lora_int_id = self._models.lora_id_counter.inc(1)
        try:
            base = Path(self._models.model_config.model)
            await asyncio.to_thread(check_shapes, folder.path, base, field=f"adapters.{adapter.name}")
            request = ServedAdapter(
                lora_name=adapter.name,
                lora_int_id=lora_int_id,
                lora_path=str(folder.path),
                version=adapter.version.ref,
            )
            await self._client.add_lora(request.for_engine())
        except BaseException:
            with contextlib.suppress(Exception):
                await self._client.remove_lora(lora_int_id)  # it may be half there
            folder.close()
            raise
        return _Loaded(adapter, request, folder)

    def _check(self, adapter: Adapter) -> None:
        if self._model is None:
            self._model = self._store.model(self._spec.model)
        check(adapter, spec=self._spec, model=self._model, limits=self._limits, others=self._loaded)

    def _replace(self, loaded: _Loaded) -> None:
        name = loaded.adapter.name
        before = self._loaded.get(name)
        # One assignment: a request gets its adapter once, from here, and keeps it.
        self._models.lora_requests[name] = loaded.request
        self._loaded[name] = loaded
        if before:
            self._leaving.append(before)
        _log.info("adapter %s is %s", name, loaded.adapter.version.ref)

    def _unload(self, name: str) -> None:
        self._models.lora_requests.pop(name, None)
        self._leaving.append(self._loaded.pop(name))
        _log.info("adapter %s is served no more", name)

    async def _remove_idle(self) -> None:
        """Give back the room of versions that no request uses. vLLM reads an adapter's files again when it
        comes back into a batch, so they stay as long."""
        states = self._client.output_processor.request_states.values()
        used = {state.lora_request.lora_int_id for state in states if state.lora_request}
        for leaving in list(self._leaving):
            if leaving.request.lora_int_id in used:
                leaving.idle_since = None
                continue
            leaving.idle_since = leaving.idle_since or time.monotonic()
            if time.monotonic() - leaving.idle_since >= _LINGER_S:
                await self._client.remove_lora(leaving.request.lora_int_id)
                self._leaving.remove(leaving)
                leaving.folder.close()
                version = leaving.adapter.version.ref
                _log.info("adapter %s: %s has left the engine", leaving.adapter.name, version)

    def _tell(self) -> None:
        """Put what is loaded into the store, where it changed."""
        state = {
            "limits": self._limits.model_dump(mode="json"),
            "adapters": {
                name: {
                    "reference": loaded.adapter.reference,
                    "version": loaded.adapter.version.ref,
                    "revision": loaded.adapter.version.revision,
                }
                for name, loaded in self._loaded.items()
            },
            "faults": {
                name: {"why": why, "at": self._changes[name].at if name in self._changes else ""}
                for name, why in self._faults.items()
            },
        }
        if state != self._told:
            with contextlib.suppress(Unreachable):  # then at a later look
                attached.report(self._store, self._spec.name, self._replica_id, state)
                self._told = state
