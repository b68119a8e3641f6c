"""``tandem plan``: will it fit, and on what, before anything runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.estimator.device import share_of
from cluster.inventory import Card, Inventory, Node
from runtime.core.config import load_spec
from runtime.core.errors import ConfigError
from runtime.estimate import Overview, Report, estimate, gpu_named, machine_with
from serve_apps.plan import plan_serve
from serve_apps.request import request as serve_request
from serve_apps.spec import ServeSpec
from storage.store import Store, open_store
from tests.estimator.models import LLAMA_2_7B, LLAMA_3_8B, QWEN3_06B, shapes_of, write_headers
from tests.inventories import nodes
from tests.runtime.conftest import Command
from train_jobs.plan import plan_train
from train_jobs.plan_memory import estimate_plan
from train_jobs.request import request as train_request
from train_jobs.spec import TrainSpec

GIB = 1 << 30
LORA = {"stage": "sft", "finetuning_type": "lora", "template": "llama3", "bf16": True, "cutoff_len": 2048,
        "per_device_train_batch_size": 1}  # fmt: skip
TRAIN: dict[str, Any] = {
    "name": "lesson",
    "model": "llama",
    "dataset": "rows",
    "llamafactory": LORA,
    "scaling": {"gpus_per_worker": 1},
}
SERVE: dict[str, Any] = {
    "name": "chat", "model": "llama", "engine": {"max_model_len": 8192}, "resources": {"gpus": 1},
}  # fmt: skip
Write = Callable[[dict[str, Any]], str]


@pytest.fixture(autouse=True)
def models(store: Store, tmp_path: Path) -> None:
    """Llama-3-8B, Llama-2-7B and Qwen3-0.6B without their weights, one model of another format, and rows."""
    for name, config in (("llama", LLAMA_3_8B), ("llama-2", LLAMA_2_7B), ("qwen", QWEN3_06B)):
        known = config | {"max_position_embeddings": 8192}
        store.publish_model(write_headers(tmp_path / name, known, shapes_of(known)), name)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text(json.dumps(LLAMA_3_8B))
    (tmp_path / "old" / "pytorch_model.bin").write_bytes(b"weights")
    store.publish_model(tmp_path / "old", "old")
    store.add_dataset("rows", [{"instruction": "a", "output": "b"}])


@pytest.fixture
def spec(tmp_path: Path) -> Write:
    """Write a spec's file and return its path."""

    def write(data: dict[str, Any]) -> str:
        path = tmp_path / "spec.yaml"
        path.write_text(json.dumps(data))
        return str(path)

    return write


def test_a_training_that_fits_is_shown_with_where_its_bytes_go(tandem: Command, spec: Write):
    shown = tandem("plan", spec(TRAIN), "--gpu", "RTX-4090").output
    assert "lesson (train, llama/v1): it fits: 20.3 GiB of 23.3 GiB (NVIDIA GeForce RTX 4090)" in shown
    assert "as loaded" in shown and "15.0 GiB" in shown, "the frozen weights"
    assert "2,048 tokens a step" in shown
    assert "tokens/s" in shown
    assert "1 x RTX-4090" in shown


def test_one_that_does_not_fit_ends_with_1_and_says_what_would(tandem: Command, spec: Write):
    shown = tandem("plan", spec(TRAIN), "--gpu", "RTX-4080", code=1).output
    assert "it does not fit by 4.8 GiB: 20.3 GiB of 15.5 GiB (NVIDIA GeForce RTX 4080)" in shown
    at = shown.index("It fits with:")
    assert "llamafactory.finetuning_type: lora with llamafactory.quantization_bit: 4" in shown[at:]
    following = TRAIN | {"llamafactory": LORA | {"quantization_bit": 4}}
    assert "it fits: 10.2 GiB" in tandem("plan", spec(following), "--gpu", "RTX-4080").output


def test_json_is_all_of_it(tandem: Command, spec: Write):
    told = json.loads(tandem("plan", spec(TRAIN), "--gpu", "RTX-4080", "--json", code=1).output)
    assert (told["kind"], told["name"], told["model"], told["workers"]) == ("train", "lesson", "llama/v1", 1)
    assert (told["fits"], told["device"]) == (False, "NVIDIA GeForce RTX 4080")
    on_device = {term["name"]: term["size_bytes"] for term in told["terms"] if term["on"] == "device"}
    assert sum(on_device.values()) == told["needed_bytes"] > told["available_bytes"]
    assert on_device["frozen weights"] == 2 * 8_030_261_248
    assert all(term["formula"] and term["source"] for term in told["terms"])
    assert told["ways"]
    assert told["figures"]["tokens_per_step"] == 2048
    (card,) = [row for row in told["hardware"] if row["gpu"] == "RTX-4090"]
    assert card["count"] == 1 and card["needed_bytes"] == told["needed_bytes"]


def test_an_engine_is_shown_with_what_its_cache_holds(tandem: Command, spec: Write):
    shown = tandem("plan", spec(SERVE), "--gpu", "RTX-4090").output
    assert "chat (serve, llama/v1): it fits: 17.5 GiB of 21.4 GiB (0.92 of NVIDIA GeForce RTX 4090)" in shown
    told = json.loads(tandem("plan", spec(SERVE), "--gpu", "RTX-4090", "--json").output)
    figures = told["figures"]
    assert figures["max_model_len"] == figures["largest_max_model_len"] == 8192
    assert figures["sequences"] == pytest.approx(figures["kv_cache_tokens"] / 8192, rel=1e-3)
    cache = told["terms"][0]
    assert cache["name"] == "KV cache"
    assert cache["size_bytes"] // (128 << 10) // 16 * 16 == figures["kv_cache_tokens"]
    assert told["needed_bytes"] - sum(term["size_bytes"] for term in told["terms"][1:]) == 8192 * (128 << 10)


def test_an_engine_that_vllm_would_not_start_is_said_not_to_fit_though_the_card_is_larger(
    tandem: Command, spec: Write
):
    """Llama-2-7B and 1,700 tokens need 14.7 GiB: less than the card's 15.5, more than vLLM takes of it."""
    data = SERVE | {"model": "llama-2", "engine": {"max_model_len": 1700}}
    shown = tandem("plan", spec(data), "--gpu", "RTX-4080", code=1).output
    assert "it does not fit by 0.4 GiB: 14.7 GiB of 14.3 GiB (0.92 of NVIDIA GeForce RTX 4080)" in shown


@pytest.mark.parametrize(
    "name", ["NVIDIA A100-SXM4-80GB", "NVIDIA-A100-SXM4-80GB", "A100-80G", "a100-sxm4-80gb"]
)
def test_a_gpu_may_be_spelled_as_nvml_kubernetes_or_ray_do(tandem: Command, spec: Write, name: str):
    told = json.loads(tandem("plan", spec(TRAIN), "--gpu", name, "--json").output)
    assert told["available_bytes"] == int(0.97 * gpu_named("A100-SXM4-80GB").memory_bytes)
    assert "A100" in told["device"]


def test_a_mig_device_is_a_gpu_of_its_own(tandem: Command, spec: Write):
    told = json.loads(
        tandem("plan", spec(TRAIN), "--gpu", "H100-SXM5-80GB MIG 1g.10gb", "--json", code=1).output
    )
    assert told["device"] == "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    assert told["available_bytes"] == int(0.97 * 10**10)


def test_half_of_a_card_is_what_one_gets_of_a_single_one_unless_one_asks(tandem: Command, spec: Write):
    data = {key: value for key, value in TRAIN.items() if key != "scaling"}
    shown = tandem("plan", spec(data), "--gpu", "RTX-4090", code=1).output
    assert "(0.5 of NVIDIA GeForce RTX 4090)" in shown
    assert "scaling.gpus_per_worker: 1" in shown


def test_several_gpus_are_given_by_number(tandem: Command, spec: Write):
    data = TRAIN | {"deepspeed": "zero3", "scaling": {"num_workers": 4}}
    told = json.loads(tandem("plan", spec(data), "--gpu", "RTX-4080", "--num-gpus", "4", "--json").output)
    assert (told["workers"], told["fits"]) == (4, True)
    refused = tandem("plan", spec(data), "--gpu", "RTX-4080", "--num-gpus", "2", code=2).output
    assert "num_workers 4 x gpus_per_worker 1 is 4 GPUs" in refused


def test_what_is_offloaded_is_told_beside_the_gpu(tandem: Command, spec: Write):
    full = LORA | {"finetuning_type": "full"}
    told = json.loads(
        tandem(
            "plan", spec(TRAIN | {"llamafactory": full, "deepspeed": "zero3-offload"}), "--gpu",
            "A100-SXM4-80GB", "--json",
        ).output
    )  # fmt: skip
    assert told["host_bytes"] == 20 * 8_030_261_248
    assert {term["on"] for term in told["terms"]} == {"device", "host"}


def test_a_llamafactory_file_is_estimated_as_it_is(tandem: Command, tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "facts.json").write_text('[{"instruction": "a", "output": "b"}]')
    (tmp_path / "data" / "dataset_info.json").write_text('{"facts": {"file_name": "facts.json"}}')
    recipe = LORA | {
        "model_name_or_path": "llama",
        "do_train": True,
        "dataset": "facts",
        "output_dir": "saves/x",
    }
    recipe |= {"dataset_dir": str(tmp_path / "data"), "lora_rank": 16}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    told = json.loads(
        tandem(
            "plan", str(tmp_path / "recipe.yaml"), "--llamafactory", "--json", "--gpu", "A100",
            "--num-gpus", "8",
        ).output
    )  # fmt: skip
    trained = next(term for term in told["terms"] if term["name"] == "trained weights")
    assert trained["size_bytes"] == 4 * 41_943_040
    assert told["kind"] == "train"


def test_a_model_is_shown_on_all_hardware(tandem: Command):
    shown = tandem("plan", "llama").output
    assert "8.03 billion parameters" in shown
    told = json.loads(tandem("plan", "llama", "--json").output)
    rows = {row["gpu"]: row for row in told["rows"]}
    assert (told["parameters"], told["context"]) == (8_030_261_248, 8192)
    assert {"gpu", "memory_bytes", "serve", "QLoRA", "LoRA", "full"} == set(rows["RTX-4090"])
    assert (rows["RTX-4090"]["serve"], rows["RTX-4090"]["QLoRA"], rows["RTX-4090"]["LoRA"]) == (1, 1, 1)
    assert (rows["RTX-4090"]["full"], rows["RTX-4080-SUPER"]["full"]) == (8, None), "20 B x 8.03 billion / 8"
    assert [rows["RTX-4080-SUPER"][way] for way in ("serve", "QLoRA", "LoRA")] == [2, 1, 2]
    one = json.loads(tandem("plan", "llama", "--gpu", "L4", "--json").output)
    assert [row["gpu"] for row in one["rows"]] == ["L4"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["llama", "--gpu", "RTX-4091"], "--gpu is 'RTX-4091', which is not in the catalogue. Did you mean"),
        (["llama", "--gpu", "RTX 4090 Laptop GPU"], "which is not in the catalogue"),
        (["nowhere.yaml"], "nowhere.yaml: cannot be read (No such file or directory)"),
        (["lama"], "Did you mean 'llama'?"),
        (["old"], "whose files do not tell what it consists of"),
    ],
)
def test_what_cannot_be_estimated_is_refused_in_one_message(tandem: Command, words: list[str], said: str):
    output = tandem("plan", *words, code=2).output
    assert said in output
    assert "Traceback" not in output


def test_a_spec_whose_model_has_no_headers_is_refused_by_name(tandem: Command, spec: Write):
    for data in (TRAIN | {"model": "old"}, SERVE | {"model": "old"}):
        output = tandem("plan", spec(data), "--gpu", "L4", code=2).output
        assert "model is 'old/v1'" in output and ".safetensors" in output
        assert "spec.yaml" in output


def test_a_wrong_spec_is_refused_as_everywhere(tandem: Command, spec: Write):
    wrong = TRAIN | {"llamafactory": LORA | {"learning_rte": 1}}
    assert "Did you mean 'learning_rate'?" in tandem("plan", spec(wrong), "--gpu", "L4", code=2).output


def test_a_serve_spec_may_name_its_own_store(tandem: Command, spec: Write, tmp_path: Path):
    other = open_store(str(tmp_path / "other"))
    other.publish_model(tmp_path / "qwen", "elsewhere")
    data = SERVE | {"model": "elsewhere", "store": other.uri}
    told = json.loads(tandem("plan", spec(data), "--gpu", "L4", "--json").output)
    assert told["model"] == "elsewhere/v1"


def test_an_address_of_a_train_spec_is_read_there(tandem: Command, tmp_path: Path):
    (tmp_path / "spec.yaml").write_text(json.dumps(TRAIN))
    told = json.loads(tandem("plan", f"file://{tmp_path}/spec.yaml", "--gpu", "RTX-4090", "--json").output)
    assert told["name"] == "lesson"


def test_on_cpu_a_share_that_is_too_small_is_reported_and_not_refused(store: Store):
    fields = {
        "name": "chat", "model": "qwen", "engine": {"max_model_len": 4096},
        "resources": {"gpus": 0, "memory_bytes": "2GiB"},
    }  # fmt: skip
    found = estimate(fields, store, inventory=nodes({"CPU": 4.0}))
    assert isinstance(found, Report)
    assert found.fits is False
    assert found.verdict.startswith("does not fit by") and found.verdict.endswith("of 2.0 GiB (CPU)")


def test_a_notebook_shows_a_report_and_an_overview(store: Store):
    gpu = gpu_named("RTX-4080")
    report = estimate(TRAIN, store, inventory=nodes({"CPU": 1.0}), gpu="RTX-4080")
    assert isinstance(report, Report)
    page = report._repr_html_()
    assert "does not fit by 4.8 GiB" in page and "data:image/png;base64," in page
    assert "<li>llamafactory.finetuning_type: lora with llamafactory.quantization_bit: 4</li>" in page
    table = estimate("llama", store, inventory=machine_with(gpu, 1))
    assert isinstance(table, Overview)
    assert "8.03 billion parameters" in table._repr_html_() and "RTX-4080" in table._repr_html_()


# What a plan refuses before anything is submitted.


def train_on(store: Store, product: str, **changes: Any) -> None:
    plan_train(
        load_spec(TrainSpec, TRAIN | changes),
        store=store,
        inventory=machine_with(gpu_named(product), 1),
    )


def serve_on(store: Store, product: str, **changes: Any) -> dict[str, Any]:
    plan = plan_serve(
        load_spec(ServeSpec, SERVE | changes), store=store, inventory=machine_with(gpu_named(product), 1)
    )
    assert plan.memory
    return plan.engine


def test_a_training_that_does_not_fit_is_refused_with_both_numbers_and_the_advice(store: Store):
    train_on(store, "RTX-4090")
    with pytest.raises(ConfigError) as refused:
        train_on(store, "RTX-4080")
    said = str(refused.value)
    assert "needs 20.3 GiB and has 15.5 GiB (NVIDIA GeForce RTX 4080): it does not fit by 4.8 GiB" in said
    assert "llamafactory.finetuning_type: lora with llamafactory.quantization_bit: 4" in said
    assert "tandem plan" in said


def test_on_a_product_outside_the_catalogue_memory_is_checked_and_no_speed_is_made_up(store: Store):
    def with_cards(gib: int) -> Inventory:
        cards = (Card(0, gib << 30, "NVIDIA H20", "GPU-0"),)
        return Inventory.of([Node("node", 64, 900 << 30, cards, "H20")])

    small, large = with_cards(16), with_cards(96)
    with pytest.raises(ConfigError, match=r"needs 17\.5 GiB and has 14\.\d GiB \(0\.92 of NVIDIA H20\)"):
        plan_serve(load_spec(ServeSpec, SERVE), store=store, inventory=small)
    with pytest.raises(ConfigError, match=r"needs 20\.3 GiB and has 15\.5 GiB \(NVIDIA H20\)"):
        plan_train(load_spec(TrainSpec, TRAIN), store=store, inventory=small)
    assert plan_serve(load_spec(ServeSpec, SERVE), store=store, inventory=large).memory
    report = estimate(TRAIN, store, inventory=large)
    assert report.fits and report.device == "NVIDIA H20"
    assert not report.figures.keys() & {"tokens_per_s", "training_s"}


def test_whoever_knows_better_is_told_and_not_refused(store: Store):
    spec = load_spec(TrainSpec, TRAIN | {"memory_check": "warn"})
    plan = plan_train(spec, store=store, inventory=machine_with(gpu_named("RTX-4080"), 1))
    assert any("it does not fit by 4.8 GiB" in note for note in plan.notes)
    # Nor does the ledger refuse it for its size.
    assert train_request(plan, 1).card_bytes_per_worker == 0
    serve = load_spec(ServeSpec, SERVE | {"memory_check": "warn"})
    plan_serve(serve, store=store, inventory=machine_with(gpu_named("RTX-4080"), 1))


def test_an_app_asks_for_a_card_that_it_starts_on_and_not_for_all_that_it_could_fill(store: Store):
    spec = load_spec(ServeSpec, SERVE)
    plan = plan_serve(spec, store=store, inventory=machine_with(gpu_named("A100-SXM4-80GB"), 1))
    assert plan.memory is not None
    asked = serve_request(plan).card_bytes_per_worker
    # Weights, engine and one sequence of 8,192 tokens; the cache would take 50 GiB more.
    assert 17 * GIB < asked < 19 * GIB < 35 * GIB < plan.memory.needed_bytes


@pytest.mark.parametrize("argument", ["enable_liger_kernel", "use_galore", "use_badam"])
def test_nothing_is_said_of_a_recipe_with_an_argument_that_is_not_reckoned(store: Store, argument: str):
    def estimated(**more: bool) -> bool:
        plan = SimpleNamespace(
            llamafactory=LORA | more, deepspeed=None, num_workers=1, base="llama", models={}
        )
        device = share_of(gpu_named("RTX-4080"))
        return estimate_plan(plan, store=store, inventory=None, device=device) is not None

    assert estimated() and not estimated(**{argument: True})


def test_the_host_must_hold_what_is_offloaded(store: Store):
    spec = TRAIN | {"llamafactory": LORA | {"finetuning_type": "full"}, "deepspeed": "zero3-offload"}
    with pytest.raises(
        ConfigError, match=r"1 workers need 149\.6 GiB of their node's memory.* out 64\.0 GiB"
    ):
        plan_train(
            load_spec(TrainSpec, spec),
            store=store,
            inventory=nodes({"CPU": 16.0, "GPU": 1.0}, product="H100", memory_gib=64),
        )


def test_an_engine_that_does_not_fit_is_refused_with_both_numbers_and_the_advice(store: Store):
    serve_on(store, "RTX-4090")
    with pytest.raises(ConfigError) as refused:
        serve_on(store, "RTX-4080")
    said = str(refused.value)
    assert "needs 17.5 GiB and has 14.3 GiB (0.92 of NVIDIA GeForce RTX 4080)" in said
    assert "it does not fit by 3.2 GiB" in said
    assert "It fits with engine.quantization: fp8." in said


def test_a_cache_above_the_share_is_refused_with_what_is_left(store: Store):
    engine = {"max_model_len": 8192, "kv_cache_memory_bytes": 30 * GIB}
    with pytest.raises(ConfigError) as refused:
        serve_on(store, "RTX-4090", engine=engine)
    said = str(refused.value)
    assert "engine.kv_cache_memory_bytes is 32212254720 (30.0 GiB)" in said
    left = int(said.split("Lower it to ")[1].split(",")[0])
    assert 6 * GIB < left < 7 * GIB
    fitting = engine | {"kv_cache_memory_bytes": left}
    assert serve_on(store, "RTX-4090", engine=fitting)["kv_cache_memory_bytes"] == left


def test_a_cache_that_holds_no_whole_sequence_is_refused_with_what_one_needs(store: Store):
    engine = {"max_model_len": 8192, "kv_cache_memory_bytes": GIB // 2}
    with pytest.raises(ConfigError) as refused:
        serve_on(store, "RTX-4090", engine=engine)
    said = str(refused.value)
    assert "(512.0 MiB)" in said or "(0.5 GiB)" in said
    assert "one sequence of max_model_len 8192 needs 1.0 GiB. Raise it to 1073741824" in said
    assert "engine.max_model_len: 4096 or less" in said
    serve_on(store, "RTX-4090", engine=engine | {"max_model_len": 4096})


def test_where_not_even_one_sequence_has_room_no_size_of_the_cache_is_advised(store: Store):
    with pytest.raises(ConfigError) as refused:
        serve_on(store, "RTX-4070", engine={"max_model_len": 8192, "kv_cache_memory_bytes": GIB})
    assert "Lower it to" not in str(refused.value)
    assert "needs 17.5 GiB and has 11.6 GiB" in str(refused.value)


def on_cpu(store: Store, memory_bytes: str | None, **engine: Any) -> dict[str, Any]:
    resources = {"gpus": 0} | ({"memory_bytes": memory_bytes} if memory_bytes else {})
    spec = {"name": "chat", "model": "qwen", "engine": engine, "resources": resources}
    return plan_serve(load_spec(ServeSpec, spec), store=store, inventory=nodes({"CPU": 4.0})).engine


def test_without_a_gpu_the_share_of_memory_sizes_the_cache(store: Store):
    four, six = (
        on_cpu(store, size, max_model_len=1024)["kv_cache_memory_bytes"] for size in ("4GiB", "6GiB")
    )
    assert six - four == 2 * GIB
    assert 0 < four < 4 * GIB - 2 * 596_049_920
    assert on_cpu(store, None, max_model_len=1024)["kv_cache_memory_bytes"] == GIB


def test_without_a_gpu_a_share_that_is_too_small_is_refused_with_both_numbers(store: Store):
    with pytest.raises(ConfigError, match=r"needs \d\.\d GiB and has 2\.0 GiB \(CPU\)"):
        on_cpu(store, "2GiB", max_model_len=4096)


def test_without_a_gpu_a_context_longer_than_the_cache_is_refused_before_vllm_does(store: Store):
    """112 KiB a token: 8,192 are 0.9 GiB, and 16,384 more than the 1 GiB that an engine gets by itself."""
    on_cpu(store, None, max_model_len=8192)
    with pytest.raises(
        ConfigError, match=r"neither it nor resources.memory_bytes is set\), but one sequence"
    ):
        on_cpu(store, None, max_model_len=16384)


def test_plan_says_what_train_says_of_a_node_that_cannot_take_what_is_offloaded(store: Store):
    """Eight workers of a full training of Llama-3-8B offload 150 GiB; the node hands out 59.6."""
    cluster = nodes({"CPU": 64, "GPU": 8, "accelerator_type:H100": 1, "memory": 64e9})
    full = LORA | {"finetuning_type": "full"}
    data = TRAIN | {"llamafactory": full, "deepspeed": "zero3-offload"}
    data |= {"scaling": {"num_workers": 8, "gpus_per_worker": 1}}
    found = estimate(data, store, inventory=cluster)
    assert isinstance(found, Report)
    assert found.fits is False and "59.6 GiB" in found.verdict
    assert "offload" not in " ".join(found.ways)
    with pytest.raises(ConfigError, match=r"hands out 59\.6 GiB"):
        plan_train(load_spec(TrainSpec, data), store=store, inventory=cluster)


@pytest.mark.parametrize("size", [1, 10**12])
def test_plan_says_what_serve_says_of_a_cache_of_a_given_size(store: Store, size: int):
    cluster = nodes({"CPU": 64, "GPU": 8, "accelerator_type:H100": 1, "memory": 9e11})
    data = SERVE | {"engine": {"max_model_len": 8192, "kv_cache_memory_bytes": size}}
    found = estimate(data, store, inventory=cluster)
    assert isinstance(found, Report)
    assert found.fits is False and found.verdict.startswith("does not fit")
    (way,) = found.ways
    assert way.startswith("engine.kv_cache_memory_bytes: ")
    with pytest.raises(ConfigError, match=r"engine\.kv_cache_memory_bytes"):
        plan_serve(load_spec(ServeSpec, data), store=store, inventory=cluster)
    following = data | {"engine": {"max_model_len": 8192, "kv_cache_memory_bytes": int(way.split(": ")[1])}}
    assert plan_serve(load_spec(ServeSpec, following), store=store, inventory=cluster).memory
    again = estimate(following, store, inventory=cluster)
    assert isinstance(again, Report) and again.fits is True
