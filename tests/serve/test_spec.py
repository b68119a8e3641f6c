"""A serve spec says what it cannot be, field by field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from runtime.core.config import load_spec
from runtime.core.errors import ConfigError
from serve_apps.arguments import OWNED, arguments, faults, owned
from serve_apps.spec import ServeSpec

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "serve"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "My_Model"}, r"name: is 'My_Model', which cannot be part of an address"),
        ({"name": "a" * 64}, r"1 to 63 lower-case letters"),
        ({"route_prefix": "assistant/"}, r"route_prefix: is 'assistant/'\. Write a path that begins with /"),
        ({"resources": {"gpus": 2}}, r"resources\.gpus: is 2\.0.*engine\.tensor_parallel_size"),
        ({"resources": {"cpus": 0}}, r"resources\.cpus: is 0"),
        (
            {"autoscaling": {"min_replicas": 2, "max_replicas": 1}},
            r"autoscaling: min_replicas is 2 but max_replicas is 1",
        ),
        ({"autoscaling": {"max_replica": 2}}, r"autoscaling\.max_replica: unknown field .* 'max_replicas'"),
        ({"route_prefix": "/v1"}, r"route_prefix: is '/v1', but below /v1 all apps answer together"),
        ({"route_prefix": "/"}, r"At the root /v1 answers for all apps"),
        ({"name": "v1"}, r"name: is 'v1', but at /v1 all apps answer together"),
        ({"auth": "open"}, r"auth: is 'open'"),
        ({"adapters": ["poet"]}, r"adapters: is \['poet'\]"),
    ],
)
def test_a_bad_field_is_refused_by_name_and_value(fields: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        load_spec(ServeSpec, {"name": "assistant", "model": "tiny", **fields})


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"tensor_paralel_size": 2}, "engine.tensor_paralel_size: vLLM has no such argument (value 2). "
            "Did you mean 'tensor_parallel_size'?"),
        ({"max-model-len": 512}, "engine.max-model-len: vLLM has no such argument (value 512). "
            "Did you mean 'max_model_len'?"),
        ({"max_num_seqs": "64"}, "engine.max_num_seqs: is '64', but vLLM takes integer. "
            "Write it without quotes."),
        ({"max_num_seqs": True}, "engine.max_num_seqs: is True, but vLLM takes integer. Correct the value, "
            "or leave it out for vLLM's default."),
        ({"enforce_eager": "yes"}, "engine.enforce_eager: is 'yes', but vLLM takes boolean. "
            "Write it without quotes."),
        ({"dtype": "bflot16"}, "engine.dtype: is 'bflot16', which vLLM does not know. "
            "Did you mean 'bfloat16'?"),
        ({"model": "x"}, "engine.model: is 'x', but Tandem sets it: set the spec's own field model."),
        ({"data_parallel_size": 2}, "engine.data_parallel_size: is 2, but Tandem sets it: replicas are Ray "
            "Serve's; set autoscaling.min_replicas and max_replicas."),
    ],
)  # fmt: skip
def test_a_bad_engine_argument_is_refused_with_a_remedy(engine: dict[str, Any], message: str):
    assert faults(engine) == [message]


def test_a_secret_is_refused_without_being_repeated():
    (fault,) = faults({"api_key": "sk-very-secret"})
    assert fault.startswith("engine.api_key: ") and "sk-very-secret" not in fault


def test_every_fault_is_told_at_once():
    assert len(faults({"port": 1, "nope": 2, "seed": "x", "max_model_len": 512})) == 3


def test_what_vllm_takes_passes():
    assert faults({"max_model_len": "16k", "gpu_memory_utilization": 1, "quantization": None,
                   "compilation_config": {"mode": 0}, "hf_overrides": {"rope_theta": 1e6}}) == []  # fmt: skip


def test_every_owned_argument_is_one_that_vllm_has():
    assert {name for name in arguments() if owned(name)} >= {"model", "served_model_name", "api_key", "port"}
    assert set(OWNED) <= set(arguments())


def test_the_example_specs_are_valid():
    spec = load_spec(ServeSpec, EXAMPLES / "docstrings.yaml")
    plain = yaml.safe_load((EXAMPLES / "plain.yaml").read_text())
    args = load_spec(ServeSpec, plain["applications"][1]["args"])
    assert faults(spec.engine) == faults(args.engine) == []
    assert (spec.name, spec.model, spec.engine) == (args.name, args.model, args.engine)
