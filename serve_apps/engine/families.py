"""Write cluster/estimator/families.json: how each family of models names its sizes, and what it leaves out.

Run in the serve environment after a new vLLM is pinned: ``python -m serve_apps.engine.families``.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from vllm.transformers_utils.config import _CONFIG_REGISTRY

from cluster.estimator.context import LENGTHS
from cluster.estimator.families import FAMILIES, SIZES

_NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads")
_FIELDS = dict.fromkeys((*SIZES, *LENGTHS))


def families() -> dict[str, Any]:
    """``{"transformers": version, "families": {model_type: {"names": {...}, "defaults": {...}}}}``.

    ``names``: a size to the family's own word for it. ``defaults``: what a config.json that leaves it out
    means. Of families that have the sizes of a language model.
    """
    found = {}
    for model_type, config in _classes():
        own = {name: word for name, word in (config.attribute_map or {}).items() if name in _FIELDS}
        defaults = {name: _default(config, own.get(name, name)) for name in _FIELDS}
        if any(defaults[name] is None and name not in own for name in _NEEDED):
            continue
        # A word of its own stands for the size already.
        known = {n: size for n, size in defaults.items() if size is not None and n not in own.values()}
        found[model_type] = {"names": own, "defaults": known}
    return {"transformers": transformers.__version__, "families": dict(sorted(found.items()))}


def _classes() -> Iterator[tuple[str, Any]]:
    """Of every model type the class that vLLM reads its config with."""
    yield from ((name, CONFIG_MAPPING[name]) for name in CONFIG_MAPPING_NAMES if name not in _CONFIG_REGISTRY)
    yield from ((name, _CONFIG_REGISTRY[name]) for name in _CONFIG_REGISTRY)


def _default(config: Any, name: str) -> int | None:
    """As the class declares it: what it works out of other fields counts as none."""
    argument = inspect.signature(config.__init__).parameters.get(name)
    found = getattr(config, name, None) if argument is None else argument.default
    return found if type(found) in (int, bool) else None


if __name__ == "__main__":
    made = families()
    lines = [f"  {json.dumps(name)}: {json.dumps(family)}" for name, family in made["families"].items()]
    text = ",\n".join(lines)
    FAMILIES.write_text(
        f'{{\n "transformers": {json.dumps(made["transformers"])},\n "families": {{\n{text}\n }}\n}}\n'
    )
