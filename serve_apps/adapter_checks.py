"""Whether one adapter fits: its base, rank and modules from its ``adapter_config.json``, its shapes from the
headers of its weights. Nothing is loaded for it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.core.errors import ConfigError
from storage.models import ModelVersion

CONFIG = "adapter_config.json"
_MODULE_OF = {
    **dict.fromkeys(["q_proj", "k_proj", "v_proj"], "qkv_proj"),
    **dict.fromkeys(["gate_proj", "up_proj"], "gate_up_proj"),
}
"""Modules that vLLM keeps as one, by their names in the model's files."""

# What vLLM cannot do, by the field of adapter_config.json: why. Source: vllm/lora/peft_helper.py.
_UNKNOWN_TO_VLLM = {
    "modules_to_save": "it holds whole modules beside its LoRA weights",
    "use_dora": "it was trained with DoRA",
    "lora_bias": "it has biases",
    "layer_replication": "it repeats layers of its base",
    "alora_invocation_tokens": "it is an activated LoRA",
    "use_qalora": "it is a QALoRA",
    "use_bdlora": "it is a block-diagonal LoRA",
}
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq")
_FLOATS = ("F64", "F32", "F16", "BF16")


def read_config(adapter: ModelVersion) -> dict[str, Any]:
    """The adapter's ``adapter_config.json``; empty where there is none."""
    return dict((adapter.files / CONFIG).read_json() or {})


def rank_of(config: Mapping[str, Any]) -> int:
    """The highest rank of any module."""
    return max([int(config.get("r", 0)), *map(int, (config.get("rank_pattern") or {}).values())])


def check_adapter(
    adapter: ModelVersion,
    *,
    field: str,
    model: ModelVersion,
    max_lora_rank: int,
    lora_target_modules: Sequence[str] | None = None,
) -> None:
    """Refuse an adapter that ``model`` cannot be served with.

    Args:
        field: Names the adapter in messages.
        max_lora_rank: vLLM's argument, as the engine was or will be started.
        lora_target_modules: vLLM's argument: the only modules that take an adapter; None for all.

    Raises:
        ConfigError: says why, and what to do.
    """
    if not adapter.is_adapter:
        raise ConfigError(
            f"{field} is {adapter.ref!r}, a full model. Serve it as an app of its own "
            f"(model: {adapter.ref}), or train with merge: false."
        )
    if not is_over(adapter, model):
        raise ConfigError(
            f"{field} is {adapter.ref!r}, an adapter over {adapter.base}, but the app serves {model.ref}. "
            f"Serve it with model: {adapter.base}, or train it over {model.ref}."
        )
    config = read_config(adapter)
    if config.get("peft_type", "LORA") != "LORA" or "r" not in config:
        raise ConfigError(
            f"{field} is {adapter.ref!r}, of the kind {config.get('peft_type')!r}; vLLM serves LORA only. "
            "Merge it into its base: merge: true."
        )
    if (rank := rank_of(config)) > max_lora_rank:
        raise ConfigError(
            f"{field} is {adapter.ref!r}, whose rank is {rank}, but the engine keeps room for "
            f"{max_lora_rank} (engine.max_lora_rank). Deploy again with engine.max_lora_rank: {rank} or "
            "more, or train with a smaller lora_rank."
        )
    if why := next(_unknown(config), None):
        raise ConfigError(
            f"{field} is {adapter.ref!r}: {why}, which vLLM does not serve. Merge it into its base: "
            "merge: true."
        )
    _check_modules(config, adapter.ref, field, lora_target_modules)


def is_over(adapter: ModelVersion, model: ModelVersion) -> bool:
    """Whether ``model`` is the base of the adapter; of a plain folder without a base nobody knows."""
    manifest = adapter.manifest
    if manifest is None or manifest.base is None:
        return True
    if manifest.base_revision and model.revision:
        return manifest.base_revision == model.revision
    return manifest.base in (model.ref, model.uri, model.place.uri, model.name)


def _unknown(config: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{why} ({name})" for name, why in _UNKNOWN_TO_VLLM.items() if config.get(name))
    if config.get("bias", "none") != "none":
        yield f"it has biases (bias: {config['bias']})"
    init = str(config.get("init_lora_weights", True)).lower()
    if init.startswith(_CHANGES_THE_BASE):
        yield f"it fits only the changed base that it was trained with (init_lora_weights: {init})"


def _check_modules(config: Mapping[str, Any], ref: str, field: str, allowed: Sequence[str] | None) -> None:
    modules = config.get("target_modules")
    if allowed is None or not isinstance(modules, list):
        return
    names = [str(module).rpartition(".")[2] for module in modules]
    beyond = sorted(name for name in names if not {name, _MODULE_OF.get(name)} & set(allowed))
    if beyond:
        # vLLM would leave these weights out without an error, and answer as no version ever trained.
        raise ConfigError(
            f"{field} is {ref!r}, which changes {', '.join(beyond)}, but engine.lora_target_modules allows "
            f"only {', '.join(allowed)}. Add them there and deploy again."
        )


def check_shapes(adapter: Path, base: Path, *, field: str) -> None:
    """Refuse weights that do not fit those of the base. vLLM takes smaller ones without an error.

    Args:
        adapter: Folder of the adapter.
        base: Folder of the model that is served. Modules not found there (renamed, quantized) are left
            to vLLM.

    Raises:
        ConfigError: names the first module that does not fit, with both shapes.
    """
    weights = dict(_tensors(base))
    for name, (_, shape) in _tensors(adapter):
        module, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
        kind, whole = weights.get(f"{module}.weight", ("", []))
        if kind not in _FLOATS or len(whole) != 2 or factor not in ("A.weight", "B.weight"):
            continue
        wanted, has = (whole[1], shape[1]) if factor == "A.weight" else (whole[0], shape[0])
        if wanted != has:
            raise ConfigError(
                f"{field}: {name} is {shape}, but {module} of the served model is {whole}. It was trained "
                "over another model: serve it with that one."
            )


def _tensors(folder: Path) -> Iterator[tuple[str, tuple[str, list[int]]]]:
    """Name, type and shape of every tensor in a folder's safetensors files."""
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                yield name, (tensor["dtype"], tensor["shape"])
