"""What vLLM itself reads out of a config.json: run in the serve environment, with configs as JSON on stdin.

``python -m tests.estimator.vllm_says < configs.json`` prints ``{"vllm": version, "models": {name: sizes},
"families": what families.json should be, "quantizations": [...]}``. vllm_says.json keeps the answers of the
pinned vLLM.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm.config.model import _get_and_verify_max_len
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
from vllm.transformers_utils.config import get_config, get_hf_text_config
from vllm.transformers_utils.model_arch_config_convertor import (
    MODEL_ARCH_CONFIG_CONVERTORS,
    ModelArchConfigConvertorBase,
)

from serve_apps.engine.catalogue import vllm_version
from serve_apps.engine.families import families

_MORE = 1 << 30


def sizes(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Of one model: its sizes, and the lengths of sequences that vLLM takes."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    read = get_config(str(folder), trust_remote_code=False)
    text = get_hf_text_config(read)
    convertor = MODEL_ARCH_CONFIG_CONVERTORS.get(read.model_type, ModelArchConfigConvertorBase)
    found = convertor(read, text).convert()

    def length(asked: int | None) -> int:
        return _get_and_verify_max_len(text, found, None, asked, False, None)

    return {
        "num_hidden_layers": found.total_num_hidden_layers,
        "hidden_size": found.hidden_size,
        "num_attention_heads": found.total_num_attention_heads,
        "num_key_value_heads": found.total_num_kv_heads,
        "head_dim": found.head_size,
        "unasked": length(None),
        "longest": _longest(length),
    }


def _longest(length: Any) -> int | None:
    """The longest ``max_model_len`` that is not refused; None: any."""
    least, most = 1, _MORE
    if _is_taken(length, most):
        return None
    while least < most - 1:
        middle = (least + most) // 2
        least, most = (middle, most) if _is_taken(length, middle) else (least, middle)
    return least


def _is_taken(length: Any, asked: int) -> bool:
    try:
        length(asked)
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        configs = json.load(sys.stdin)
        made = {name: sizes(configs[name], Path(scratch) / str(n)) for n, name in enumerate(configs)}
        print(
            json.dumps(
                {
                    "vllm": vllm_version(),
                    "models": made,
                    "families": families(),
                    "quantizations": QUANTIZATION_METHODS,
                }
            )
        )
