"""Adapters of an app, decided without an engine: what is meant, what fits, what room it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from runtime.core.errors import ConfigError
from serve_apps.adapter_checks import check_shapes
from serve_apps.adapter_routes import adapter_routes
from serve_apps.adapters import Limits, check, engine_arguments, find, plan_adapters, references
from serve_apps.spec import ServeSpec
from storage import attached
from storage.models import ModelVersion
from storage.store import Store
from tests.serve.adapter_files import write_adapter, write_tensors

MODULES = {"model.layers.0.mlp.down_proj": [8, 16], "model.layers.0.self_attn.q_proj": [8, 8]}
ROOM = Limits(enable_lora=True, max_lora_rank=16, max_loras=4, max_cpu_loras=4)


def spec(**fields: Any) -> ServeSpec:
    return ServeSpec.model_validate({"name": "app", "model": "tiny", **fields})


def publish(store: Store, folder: Path, name: str = "helper", **fields: Any) -> ModelVersion:
    manifest = {"base": "tiny/v1", "run": None} | {k: fields.pop(k) for k in ("base", "run") if k in fields}
    return store.publish_model(write_adapter(folder, MODULES, **fields), name, kind="adapter", **manifest)


def refusal(store: Store, name: str = "helper", limits: Limits = ROOM, **options: Any) -> str:
    """What the check says of the adapter that the store has under this reference."""
    adapter = find(store, options.pop("served", "helper"), name)
    others = options.pop("others", [])
    with pytest.raises(ConfigError) as caught:
        check(adapter, spec=spec(), model=store.model("tiny"), limits=limits, others=others)
    return str(caught.value)


def test_what_was_attached_stands_above_the_spec(with_model: Store):
    attached.attach(with_model, "app", "helper", "helper/v2")
    attached.attach(with_model, "app", "poet", "run:verse")
    attached.detach(with_model, "app", "clerk")
    wanted = references(
        spec(adapters={"helper": "helper", "clerk": "clerk"}), attached.listing(with_model, "app")
    )
    assert wanted == {"helper": "helper/v2", "poet": "run:verse"}


def test_a_name_means_the_latest_version_and_a_run_means_what_it_published(with_model: Store, tmp_path: Path):
    run = with_model.new_run("tune", json.dumps({"name": "tune", "publish": {"name": "helper"}}))
    publish(with_model, tmp_path / "a", run=run.run_id)
    publish(with_model, tmp_path / "b", seed=1, run="somebody-elses")
    meant = {
        ref: find(with_model, "helper", ref).version.ref
        for ref in ("helper", "helper/v1", f"run:{run.run_id}", "run:tune", str(tmp_path / "a"))
    }
    assert meant == {
        "helper": "helper/v2",
        "helper/v1": "helper/v1",
        f"run:{run.run_id}": "helper/v1",
        "run:tune": "helper/v1",
        str(tmp_path / "a"): str(tmp_path / "a"),
    }


def test_a_run_that_has_published_nothing_yet_is_refused(with_model: Store):
    run = with_model.new_run("tune", json.dumps({"name": "tune", "publish": {"name": "helper"}}))
    with pytest.raises(ConfigError, match=r"adapters\.helper is 'run:.*published nothing\. Wait"):
        find(with_model, "helper", f"run:{run.run_id}")


def test_an_adapter_of_the_model_passes(with_model: Store, tmp_path: Path):
    publish(with_model, tmp_path / "a")
    adapter = find(with_model, "helper", "helper")
    check(adapter, spec=spec(), model=with_model.model("tiny"), limits=ROOM, others=["poet"])


def test_a_full_model_is_no_adapter(with_model: Store):
    assert "adapters.helper is 'tiny/v1', a full model." in refusal(with_model, "tiny")


def test_an_adapter_over_another_model_is_refused(with_model: Store, tmp_path: Path):
    publish(with_model, tmp_path / "a", base="large/v3")
    said = refusal(with_model)
    assert "an adapter over large/v3, but the app serves tiny/v1" in said
    assert "model: large/v3" in said


def test_a_plain_folder_says_no_base_and_is_let_through(with_model: Store, tmp_path: Path):
    folder = write_adapter(tmp_path / "a", MODULES)
    adapter = find(with_model, "helper", str(folder))
    check(adapter, spec=spec(), model=with_model.model("tiny"), limits=ROOM, others=[])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"r": 32}, "rank is 32, but the engine keeps room for 16 (engine.max_lora_rank)"),
        ({"rank_pattern": {"q_proj": 64}}, "rank is 64"),
        ({"modules_to_save": ["lm_head"]}, "whole modules beside its LoRA weights (modules_to_save)"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias: all"),
        ({"init_lora_weights": "pissa_niter_16"}, "changed base"),
        ({"peft_type": "LOHA"}, "of the kind 'LOHA'"),
    ],
)
def test_what_vllm_cannot_serve_is_refused(
    config: dict[str, Any], words: str, with_model: Store, tmp_path: Path
):
    publish(with_model, tmp_path / "a", **config)
    assert words in refusal(with_model)


def test_modules_that_the_engine_would_leave_out_are_refused(with_model: Store, tmp_path: Path):
    publish(with_model, tmp_path / "a")
    only = ROOM.model_copy(update={"lora_target_modules": ["qkv_proj"]})
    assert "which changes down_proj" in refusal(with_model, limits=only)


def test_one_more_than_there_is_room_for_is_refused(with_model: Store, tmp_path: Path):
    publish(with_model, tmp_path / "a")
    assert "adapter number 5 of app, which has room for 4" in refusal(with_model, others=list("abcd"))


def test_an_app_without_room_for_adapters_says_how_to_make_it(with_model: Store, tmp_path: Path):
    publish(with_model, tmp_path / "a")
    assert "engine.enable_lora: true" in refusal(with_model, limits=Limits())


def test_the_models_own_name_is_taken(with_model: Store, tmp_path: Path):
    publish(with_model, tmp_path / "a")
    assert "is the name of the model itself" in refusal(with_model, served="app")


def test_room_follows_the_largest_adapter_and_the_users_word_stands(with_model: Store, tmp_path: Path):
    publish(with_model, tmp_path / "a", r=24)
    adapters = [find(with_model, "helper", "helper")]
    assert engine_arguments(spec(), []) == {}
    assert engine_arguments(spec(engine={"enable_lora": True}), [])["max_lora_rank"] == 16
    assert engine_arguments(spec(), adapters) == {
        "enable_lora": True,
        "max_lora_rank": 32,
        "max_loras": 4,
        "max_cpu_loras": 16,
    }
    given = {"max_loras": 20, "max_lora_rank": 64}
    assert engine_arguments(spec(engine=given), adapters) == {"enable_lora": True, "max_cpu_loras": 20}


def test_a_rank_beyond_vllms_highest_is_refused(with_model: Store, tmp_path: Path):
    publish(with_model, tmp_path / "a", rank_pattern={"q_proj": 513})
    with pytest.raises(ConfigError, match=r"adapters\.helper: its rank is 513, and vLLM can do 512"):
        engine_arguments(spec(), [find(with_model, "helper", "helper")])


def test_a_broken_adapter_of_the_spec_stops_the_deployment_and_an_attached_one_does_not(
    with_model: Store, tmp_path: Path
):
    publish(with_model, tmp_path / "a")
    attached.attach(with_model, "app", "poet", "nowhere")
    app = spec(adapters={"helper": "helper"})
    plan = plan_adapters(app, store=with_model, model=with_model.model("tiny"))
    assert plan["enable_lora"] is True
    with pytest.raises(ConfigError, match=r"adapters\.poet is 'nowhere'"):
        plan_adapters(
            spec(name="app-2", adapters={"poet": "nowhere"}), store=with_model, model=with_model.model("tiny")
        )
    with pytest.raises(ConfigError, match=r"engine\.enable_lora is False, but the app has adapters"):
        closed = app.model_copy(update={"engine": {"enable_lora": False}})
        plan_adapters(closed, store=with_model, model=with_model.model("tiny"))


def test_weights_of_another_width_are_refused_though_vllm_would_take_them(tmp_path: Path):
    write_tensors(tmp_path / "base/model.safetensors", {"m.down_proj.weight": ([4, 6], [0.0] * 24)})
    fitting = write_adapter(tmp_path / "fitting", {"m.down_proj": [4, 6], "m.elsewhere": [1, 1]}, r=1)
    narrow = write_adapter(tmp_path / "narrow", {"m.down_proj": [4, 5]}, r=1)
    check_shapes(fitting, tmp_path / "base", field="adapters.helper")
    with pytest.raises(
        ConfigError, match=r"adapters\.helper: .*lora_A\.weight is \[1, 5\], but m\.down_proj"
    ):
        check_shapes(narrow, tmp_path / "base", field="adapters.helper")


def test_the_admin_route_lists_adds_and_removes(with_model: Store, tmp_path: Path):
    publish(with_model, tmp_path / "a")
    plan = {
        "spec": spec(store=with_model.uri).model_dump(mode="json"),
        "engine": {"enable_lora": True, "max_lora_rank": 8, "max_cpu_loras": 2},
    }
    client = TestClient(Starlette(routes=adapter_routes(plan)))
    added = client.post("/admin/adapters", json={"name": "helper", "model": "helper"})
    assert (added.status_code, added.json()["version"]) == (202, "helper/v1")
    assert client.get("/admin/adapters").json()["adapters"] == [{"name": "helper", "model": "helper"}]
    assert attached.listing(with_model, "app")["helper"].model == "helper"
    assert client.delete("/admin/adapters/helper").status_code == 202
    assert client.get("/admin/adapters").json()["adapters"] == []
    gone = client.delete("/admin/adapters/helper")
    assert (gone.status_code, gone.json()["error"]["type"]) == (400, "invalid_request_error")
    for body in ({"name": "helper"}, [], {"name": 1, "model": "helper"}):
        assert client.post("/admin/adapters", json=body).status_code == 400
