"""Which adapters an app serves: the spec's and those attached since, each found in the store and checked; and
the room that vLLM must keep for them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from runtime.core.config import ConfigModel, load_spec
from runtime.core.errors import ConfigError, StorageError
from runtime.core.lookup import did_you_mean
from serve_apps.adapter_checks import check_adapter, rank_of, read_config
from serve_apps.spec import ServeSpec
from storage import attached
from storage.models import ModelVersion
from storage.names import check_name
from storage.store import Store

RUN = "run:"
MAX_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM can keep room for. Source: vllm/config/lora.py, MaxLoRARanks."""
_MAX_LORAS = (4, 8)
"""Adapters in one batch when nobody said, at least and at most: each keeps its room on the GPU for good."""
_MAX_CPU_LORAS = 16
"""Adapters that may be attached when nobody said: these wait in the memory of the host."""


class Limits(ConfigModel):
    """What an engine has room for, in vLLM's words."""

    enable_lora: bool = False
    max_lora_rank: int = 16
    max_loras: int = 1
    max_cpu_loras: int = 1
    lora_target_modules: list[str] | None = None

    @classmethod
    def of(cls, engine: Mapping[str, Any]) -> Limits:
        """The limits among vLLM's arguments, with vLLM's defaults."""
        given = {name: engine[name] for name in cls.model_fields if engine.get(name) is not None}
        return load_spec(cls, {"max_cpu_loras": given.get("max_loras", 1)} | given)


@dataclass(frozen=True)
class Adapter:
    """An adapter that is to be served."""

    name: str
    """The model name that clients send."""

    reference: str
    """What the spec or the attachment names."""

    version: ModelVersion
    """What that means now."""


def references(spec: ServeSpec, attachments: Mapping[str, attached.Attachment]) -> dict[str, str]:
    """Reference by served name: the spec's first, then those attached, without those removed."""
    wanted: dict[str, str] = dict(spec.adapters)
    for name, attachment in attachments.items():
        if attachment.model is None:
            wanted.pop(name, None)
        else:
            wanted[name] = attachment.model
    return wanted


def find(store: Store, name: str, reference: str) -> Adapter:
    """The adapter that a reference means now.

    Args:
        name: The served name, for messages.
        reference: ``name``, ``name/version``, ``run:<run id or name>``, a path or an address.

    Raises:
        ConfigError: there is none; names what exists.
    """
    field = f"adapters.{name}"
    if reference.startswith(RUN):
        return Adapter(name, reference, _of_run(store, reference.removeprefix(RUN), field))
    return Adapter(name, reference, store.model(reference, field=field))


def _of_run(store: Store, run: str, field: str) -> ModelVersion:
    """The newest version that this run published, or the newest of any run of this name."""
    newest = store.run(run)
    runs = [newest] if newest.run_id == run else reversed(store.runs(run))
    for folder in runs:
        published = json.loads(folder.spec_json()).get("publish")
        versions = store.models(published["name"]) if published else []
        made = [v for v in versions if v.manifest and v.manifest.run == folder.run_id]
        if made:
            return max(made, key=lambda v: v.manifest.created_at if v.manifest else "")
    raise ConfigError(
        f"{field} is {RUN + run!r}, but that run has published nothing. Wait until it has (tandem runs show "
        f"{run}), or train with publish: {{name: ...}}."
    )


def check(
    adapter: Adapter, *, spec: ServeSpec, model: ModelVersion, limits: Limits, others: Iterable[str]
) -> None:
    """Refuse what can never be served.

    Args:
        spec: The app's, for the names that are taken.
        model: The version that the app serves.
        limits: What the app's engine has room for.
        others: Served names of the app's other adapters.

    Raises:
        ConfigError: says field, value, why and remedy.
    """
    field = f"adapters.{adapter.name}"
    check_name(adapter.name, field=f"{field}: the name")
    if adapter.name in (spec.name, model.ref):
        raise ConfigError(f"{field}: {adapter.name!r} is the name of the model itself. Choose another name.")
    if not limits.enable_lora:
        raise ConfigError(
            f"{field}: the app {spec.name} was deployed without room for adapters. Deploy it again with "
            "engine.enable_lora: true, or with adapters in its spec."
        )
    count = len({*others, adapter.name})
    if count > limits.max_cpu_loras:
        raise ConfigError(
            f"{field}: it would be adapter number {count} of {spec.name}, which has room for "
            f"{limits.max_cpu_loras}. Remove one (tandem adapters rm {spec.name} NAME), or deploy again with "
            f"a larger engine.max_cpu_loras."
        )
    check_adapter(
        adapter.version,
        field=field,
        model=model,
        max_lora_rank=limits.max_lora_rank,
        lora_target_modules=limits.lora_target_modules,
    )


def engine_arguments(spec: ServeSpec, adapters: Iterable[Adapter]) -> dict[str, Any]:
    """vLLM's arguments that give adapters room, where the spec says nothing; empty for an app without any.

    Args:
        adapters: Those that are served from the start.

    Raises:
        ConfigError: an adapter's rank is more than vLLM can do.
    """
    known = list(adapters)
    if not spec.engine.get("enable_lora", bool(known)):
        return {}
    highest = max([16, *(rank_of(read_config(adapter.version)) for adapter in known)])
    if highest > MAX_LORA_RANKS[-1]:
        name = max(known, key=lambda adapter: rank_of(read_config(adapter.version))).name
        raise ConfigError(
            f"adapters.{name}: its rank is {highest}, and vLLM can do {MAX_LORA_RANKS[-1]}. Train it with a "
            "smaller lora_rank, or merge it: merge: true."
        )
    least, most = _MAX_LORAS
    # One more than there are: a version and the one that replaces it run side by side for a while.
    max_loras = spec.engine.get("max_loras", min(max(len(known) + 1, least), most))
    defaults = {
        "enable_lora": True,
        "max_lora_rank": next(rank for rank in MAX_LORA_RANKS if rank >= highest),
        "max_loras": max_loras,
        "max_cpu_loras": max(_MAX_CPU_LORAS, 2 * len(known), max_loras),
    }
    return {name: value for name, value in defaults.items() if name not in spec.engine}


def plan_adapters(spec: ServeSpec, *, store: Store, model: ModelVersion) -> dict[str, Any]:
    """vLLM's arguments for the app's adapters, all of the spec's checked.

    One attached later that cannot be served is left to the replicas, which tell: it must not keep the app
    from being deployed.

    Raises:
        ConfigError: an adapter of the spec cannot be served.
    """
    attachments = attached.listing(store, spec.name)
    wanted = references(spec, attachments)
    if wanted and spec.engine.get("enable_lora") is False:
        raise ConfigError(
            f"engine.enable_lora is False, but the app has adapters: {', '.join(wanted)}. Leave it out."
        )
    adapters = []
    for name, reference in wanted.items():
        try:
            adapter = find(store, name, reference)
            read_config(adapter.version)
            adapters.append(adapter)
        except (ConfigError, StorageError):
            if name not in attachments:
                raise
    arguments = engine_arguments(spec, adapters)
    limits = Limits.of({**arguments, **spec.engine})
    for adapter in adapters:
        if adapter.name not in attachments:
            check(adapter, spec=spec, model=model, limits=limits, others=wanted)
    return arguments


@dataclass(frozen=True)
class Change:
    """An adapter that has just been attached."""

    adapter: Adapter
    attachment: attached.Attachment
    before: attached.Attachment | None
    """What stood under its name; None: nothing beside the spec."""


def attach(store: Store, spec: ServeSpec, name: str, reference: str, *, limits: Limits) -> Change:
    """Serve an adapter under ``name`` from now on: a record that every replica follows.

    Raises:
        ConfigError: it can never be served; nothing has changed.
    """
    before = attached.listing(store, spec.name)
    adapter = find(store, name, reference)
    check(
        adapter,
        spec=spec,
        model=store.model(spec.model),
        limits=limits,
        others=references(spec, before),
    )
    return Change(adapter, attached.attach(store, spec.name, name, reference), before.get(name))


def detach(store: Store, spec: ServeSpec, name: str) -> None:
    """Serve ``name`` no more.

    Raises:
        ConfigError: the app has no adapter of this name; names those it has.
    """
    served = references(spec, attached.listing(store, spec.name))
    if name not in served:
        raise ConfigError(f"the app {spec.name} has no adapter {name!r}. {did_you_mean(name, served)}")
    if name in spec.adapters:
        attached.detach(store, spec.name, name)
    else:
        attached.put_back(store, spec.name, name, None)
