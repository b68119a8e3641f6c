"""The plan: what a spec becomes, and what is refused before anything is submitted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.core.config import load_spec
from runtime.core.errors import ConfigError
from storage.store import Store
from tests.estimator.models import llama, shapes_of, write_headers
from tests.inventories import nodes
from train_jobs.elastic import accumulation_for, worker_counts
from train_jobs.plan import TrainPlan, plan_train, resolve
from train_jobs.spec import TrainSpec

TWO_CPUS = {"CPU": 2.0}
EXAMPLES = Path(__file__).parents[2] / "examples" / "train"


def plan(spec: dict[str, Any], store: Store, cluster: dict[str, float] | None = None) -> TrainPlan:
    return plan_train(load_spec(TrainSpec, spec), store=store, inventory=nodes(cluster or TWO_CPUS))


def refusal(spec: dict[str, Any], store: Store, cluster: dict[str, float] | None = None) -> str:
    with pytest.raises(ConfigError) as refused:
        plan(spec, store, cluster)
    return str(refused.value)


def test_names_become_places_and_the_users_arguments_stay_as_written(spec: dict[str, Any], store: Store):
    planned = plan(spec, store)
    model = store.model("tiny-base")
    assert planned.base == "tiny-base/v1"
    assert planned.base_revision == model.revision
    assert planned.llamafactory.items() >= spec["llamafactory"].items()
    assert planned.dataset_info["docstrings"]["file_name"] == "data.jsonl"


def test_the_plan_is_plain_data(spec: dict[str, Any], store: Store):
    planned = plan(spec | {"deepspeed": "zero3"}, store)
    assert TrainPlan.model_validate_json(planned.to_json()) == planned


def test_without_gpus_two_workers_take_one_cpu_together_and_train_on_it(spec: dict[str, Any], store: Store):
    planned = plan(spec, store)
    assert (planned.num_workers, planned.resources_per_worker) == (2, {"CPU": 0.5})
    assert (planned.use_gpu, planned.llamafactory["use_cpu"]) == (False, True)
    assert planned.env_vars["OMP_NUM_THREADS"] == "1"


def test_one_gpu_is_shared_by_halves_and_several_are_taken_whole(spec: dict[str, Any], store: Store):
    spec["scaling"] = {"num_workers": 1}
    assert plan(spec, store, {"CPU": 4, "GPU": 1}).resources_per_worker == {"CPU": 0.5, "GPU": 0.5}
    assert plan(spec, store, {"CPU": 4, "GPU": 4}).resources_per_worker == {"CPU": 0.5, "GPU": 1.0}
    assert "use_cpu" not in plan(spec, store, {"CPU": 4, "GPU": 4}).llamafactory


def test_several_datasets_and_one_to_evaluate_on_are_described_together(spec: dict[str, Any], store: Store):
    store.add_dataset("more", [{"instruction": "?", "output": "!"}])
    store.add_dataset("exam", [{"instruction": "?", "output": "!"}])
    spec["dataset"] = ["docstrings", "more"]
    spec["llamafactory"]["eval_dataset"] = "exam"
    planned = plan(spec, store)
    assert planned.llamafactory["dataset"] == "docstrings,more"
    assert sorted(planned.dataset_info) == ["docstrings", "exam", "more"]


def test_a_full_fine_tune_publishes_a_full_model_and_lora_an_adapter(spec: dict[str, Any], store: Store):
    assert plan(spec, store).kind == "full"
    spec["llamafactory"]["finetuning_type"] = "lora"
    assert plan(spec, store).kind == "adapter"


def test_all_faults_are_told_at_once_under_the_name_of_the_file(spec: dict[str, Any], store: Store):
    spec |= {"model": "tiny-bas", "dataset": "docstring", "deepspeed": "zero9"}
    spec["llamafactory"]["learning_rte"] = 0.005
    with pytest.raises(ConfigError) as refused:
        plan_train(load_spec(TrainSpec, spec), store=store, inventory=nodes(TWO_CPUS), origin="my.yaml")
    first, *faults = str(refused.value).splitlines()
    assert first == "my.yaml: cannot be run."
    assert len(faults) == 4


def test_an_unknown_argument_is_refused_with_the_nearest(spec: dict[str, Any], store: Store):
    spec["llamafactory"]["learning_rte"] = 0.005
    assert (
        "llamafactory.learning_rte: LLaMA-Factory 0.9.5 has no such argument (value 0.005). "
        "Did you mean 'learning_rate'?"
    ) in refusal(spec, store)


def test_a_number_that_yaml_takes_for_text_is_refused_with_how_to_write_it(
    spec: dict[str, Any], store: Store
):
    spec["llamafactory"]["learning_rate"] = "5e-3"
    assert (
        "llamafactory.learning_rate: is '5e-3', which is text; it takes a number. Write 0.005 (YAML takes a "
        "number in quotes, or 5e-3 without a point, for text)."
    ) in refusal(spec, store)


def test_a_truth_value_is_no_number_and_a_word_is_no_truth_value(spec: dict[str, Any], store: Store):
    spec["llamafactory"] |= {"max_steps": True, "bf16": "yes"}
    message = refusal(spec, store)
    assert "llamafactory.max_steps: is True, which is a truth value; it takes a whole number." in message
    assert "llamafactory.bf16: is 'yes', which is text; it takes true or false." in message


def test_an_unknown_template_is_refused_with_the_nearest(spec: dict[str, Any], store: Store):
    spec["llamafactory"]["template"] = "qwen3_nothnk"
    assert (
        "llamafactory.template: is 'qwen3_nothnk', which is no template of LLaMA-Factory. "
        "Did you mean 'qwen3_nothink'?"
    ) in refusal(spec, store)


def test_an_unknown_stage_is_refused_with_all_of_them(spec: dict[str, Any], store: Store):
    spec["llamafactory"]["stage"] = "rlhf"
    assert (
        "llamafactory.stage: is 'rlhf', which is not one of its choices. Known: dpo, kto, ppo, pt, rm, sft."
    ) in refusal(spec, store)


@pytest.mark.parametrize(
    ("argument", "value", "remedy"),
    [
        ("output_dir", "/tmp/x", "The result goes to the run's folder"),
        ("model_name_or_path", "gpt2", "Write `model:` at the top of the spec."),
        ("deepspeed", "ds.json", "Write `deepspeed:` at the top of the spec."),
        ("ray_num_workers", 4, "Write `scaling.num_workers`."),
    ],
)
def test_what_tandem_owns_is_refused_by_name_with_what_to_write_instead(
    spec: dict[str, Any], store: Store, argument: str, value: Any, remedy: str
):
    spec["llamafactory"][argument] = value
    message = refusal(spec, store)
    assert f"llamafactory.{argument}: is {value!r}, but Tandem sets this itself. {remedy}" in message


def test_a_secret_is_refused_and_not_repeated(spec: dict[str, Any], store: Store):
    spec["llamafactory"]["hf_hub_token"] = "hf_abcdef"
    message = refusal(spec, store)
    assert "environment variable HF_TOKEN" in message
    assert "hf_abcdef" not in message


def test_a_model_and_a_dataset_that_are_not_there_are_refused(spec: dict[str, Any], store: Store):
    message = refusal(spec | {"model": "tiny-bse", "dataset": "docstring"}, store)
    assert "model is 'tiny-bse', but" in message
    assert "Did you mean 'tiny-base'?" in message
    assert "dataset is 'docstring', but" in message
    assert "Did you mean 'docstrings'?" in message


def test_a_version_that_is_taken_is_refused_before_the_training_and_not_after(
    spec: dict[str, Any], store: Store
):
    assert (
        "publish.version: is 'v1', but tiny-base/v1 exists already, and a version never changes. "
        "Choose another, or remove the line for the next number."
    ) in refusal(spec | {"publish": {"name": "tiny-base", "version": "v1"}}, store)
    assert plan(spec | {"publish": {"name": "tiny-base", "version": "v2"}}, store).publish is not None


def test_more_cpus_than_the_cluster_can_ever_have_are_refused(spec: dict[str, Any], store: Store):
    spec["scaling"] = {"num_workers": 8, "cpus_per_worker": 1}
    assert (
        "scaling: num_workers 8 x cpus_per_worker 1 is 8 CPUs, but the whole cluster has 2. "
        "Lower one of them."
    ) in refusal(spec, store)


def test_gpus_on_a_cluster_without_any_are_refused(spec: dict[str, Any], store: Store):
    spec["scaling"] = {"num_workers": 2, "gpus_per_worker": 1}
    assert (
        "scaling: num_workers 2 x gpus_per_worker 1 is 2 GPUs, but the whole cluster has 0. "
        "Set gpus_per_worker: 0 to train on CPUs."
    ) in refusal(spec, store)


def test_two_workers_on_one_shared_gpu_are_refused_because_nccl_would(spec: dict[str, Any], store: Store):
    assert "NCCL does not let two workers share one GPU. Set num_workers: 1 and a larger" in refusal(
        spec, store, {"CPU": 8, "GPU": 1}
    )


def test_a_cluster_that_is_not_known_refuses_nothing_for_its_size(spec: dict[str, Any], store: Store):
    spec["scaling"] = {"num_workers": 64, "cpus_per_worker": 4, "gpus_per_worker": 1}
    planned = plan_train(load_spec(TrainSpec, spec), store=store)
    assert planned.resources_per_worker == {"CPU": 4, "GPU": 1}


def adapter(store: Store, folder: Path, name: str) -> None:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    store.publish_model(folder, name, kind="adapter", base="tiny-base/v1")


def test_every_model_that_a_recipe_names_is_looked_up(spec: dict[str, Any], store: Store, tmp_path: Path):
    adapter(store, tmp_path / "adapter", "first")
    store.add_dataset(
        "pairs", [{"instruction": "?", "chosen": "yes", "rejected": "no"}], info={"ranking": True}
    )
    spec["dataset"] = "pairs"
    spec["llamafactory"] |= {
        "stage": "dpo",
        "finetuning_type": "lora",
        "adapter_name_or_path": "first",
        "ref_model": "tiny-base",
        "ref_model_adapters": "first/v1",
    }
    planned = plan(spec, store)
    assert planned.models == {
        "adapter_name_or_path": ["first/v1"],
        "ref_model": ["tiny-base/v1"],
        "ref_model_adapters": ["first/v1"],
    }
    assert planned.adapters == ["first/v1"]
    spec["llamafactory"] |= {"ref_model": "first", "adapter_name_or_path": "first,tiny-base"}
    assert "adapter_name_or_path is 'tiny-base/v1', which is a full model and no adapter" in refusal(
        spec, store
    )
    spec["llamafactory"]["adapter_name_or_path"] = "first"
    assert "llamafactory.ref_model is 'first/v1', an adapter over tiny-base/v1." in refusal(spec, store)


def test_a_reference_that_the_stage_does_not_read_is_not_fetched(spec: dict[str, Any], store: Store):
    spec["llamafactory"]["ref_model"] = "tiny-base"
    planned = plan(spec, store)
    assert planned.models == {}
    assert any("has no reference model: it is not loaded" in note for note in planned.notes)


def test_the_seeds_own_deepspeed_config_plans_and_says_what_it_changes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base = tmp_path / "seed-base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    store.publish_model(base, "docstrings-base")
    monkeypatch.chdir(EXAMPLES.parents[1])
    config = json.loads((EXAMPLES / "seed_ds_config.json").read_text())
    assert (config["train_batch_size"], config["gradient_accumulation_steps"]) == (16, 4)
    spec = resolve(load_spec(TrainSpec, EXAMPLES / "sft_seed_ds_config.yaml"))
    planned = plan_train(spec, store=store, inventory=nodes(TWO_CPUS))
    recipe = planned.llamafactory
    assert (recipe["per_device_train_batch_size"], recipe["gradient_accumulation_steps"]) == (2, 4)
    assert (recipe["bf16"], "fp16" in recipe) == (True, False)
    assert planned.deepspeed is not None
    assert planned.deepspeed["train_batch_size"] == planned.deepspeed["bf16"]["enabled"] == "auto"
    assert planned.deepspeed["zero_optimization"] == config["zero_optimization"]
    told = "\n".join(planned.notes)
    for said in ("becomes 2, from deepspeed.train_batch_size 16", "fp16 becomes bf16", "moves nothing"):
        assert said in told
    on_gpus = spec.model_copy(update={"scaling": load_spec(type(spec.scaling), {"num_workers": 2})})
    planned = plan_train(on_gpus, store=store, inventory=nodes({"CPU": 4, "GPU": 2}))
    assert (planned.llamafactory["fp16"], "bf16" in planned.llamafactory) == (True, False)


def test_a_conflict_of_deepspeed_and_recipe_is_refused_in_the_plan(spec: dict[str, Any], store: Store):
    spec["llamafactory"] |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    spec["deepspeed"] = {"train_batch_size": 8}
    assert "deepspeed.train_batch_size: is 8, but num_workers 2 x per_device" in refusal(spec, store)


def test_fp16_without_deepspeed_becomes_bf16_on_a_cpu_too(spec: dict[str, Any], store: Store):
    spec["llamafactory"]["fp16"] = True
    planned = plan(spec, store)
    assert (planned.llamafactory["bf16"], "fp16" in planned.llamafactory) == (True, False)
    assert planned.notes == ["fp16 becomes bf16: on CPU there is no mixed precision in fp16."]


def test_what_a_recipe_cannot_do_is_refused_in_the_plan(spec: dict[str, Any], store: Store):
    spec["llamafactory"] |= {"stage": "dpo", "quantization_bit": 4}
    message = refusal(spec | {"merge": True}, store)
    assert "dataset: 'docstrings' does not fit llamafactory.stage 'dpo'" in message
    assert "llamafactory.quantization_bit: is 4, but bnb needs a GPU" in message
    assert "merge: is True, but llamafactory.finetuning_type is 'full'" in message


def test_an_evaluation_reads_its_own_rows_only(spec: dict[str, Any], store: Store):
    store.add_dataset("exam", [{"instruction": "?", "output": "!"}])
    spec["llamafactory"] |= {"do_train": False, "do_eval": True, "eval_dataset": "exam"}
    planned = plan(spec, store)
    assert ("dataset" in planned.llamafactory, list(planned.dataset_info)) == (False, ["exam"])


def test_an_elastic_run_says_which_sizes_keep_the_global_batch(spec: dict[str, Any], store: Store):
    spec["scaling"] = {"num_workers": [3, 8], "cpus_per_worker": 0.1}
    planned = plan(spec, store)
    assert (worker_counts(planned), accumulation_for(planned, 4)) == ([4, 8], 2)
    assert planned.notes == [
        "scaling.num_workers: is [3, 8]: the run has 4, 8 workers at a time; others do not divide the "
        "global batch of 8 micro batches."
    ]
    with pytest.raises(ConfigError, match=r"scaling.num_workers: is 3, .* which 3 does not divide"):
        accumulation_for(planned, 3)
    spec["llamafactory"]["gradient_accumulation_steps"] = 105
    assert worker_counts(plan(spec, store)) == [3, 4, 5, 6, 7, 8]


def test_an_elastic_run_that_could_never_change_its_size_is_refused(spec: dict[str, Any], store: Store):
    spec["scaling"] = {"num_workers": [5, 8], "cpus_per_worker": 0.1}
    assert (
        "scaling.num_workers: is [5, 8], but only 8 is possible: others do not divide the global batch of 8 "
        "micro batches. Raise llamafactory.gradient_accumulation_steps, or write num_workers: 8."
    ) in refusal(spec, store)


def test_an_elastic_run_takes_its_batch_from_deepspeed_for_the_largest_size(
    spec: dict[str, Any], store: Store
):
    spec["scaling"] = {"num_workers": [2, 4], "cpus_per_worker": 0.1}
    spec["deepspeed"] = {"train_batch_size": 48, "train_micro_batch_size_per_gpu": 2}
    planned = plan(spec, store)
    assert planned.llamafactory["gradient_accumulation_steps"] == 6
    assert {size: accumulation_for(planned, size) for size in worker_counts(planned)} == {2: 12, 3: 8, 4: 6}


def on_gpus(spec: dict[str, Any], store: Store, products: dict[str, float], **scaling: Any) -> TrainPlan:
    scaled = spec | {"scaling": {"num_workers": 4, "gpus_per_worker": 1} | scaling}
    cluster = nodes(
        *({"CPU": 32.0, "GPU": count, f"accelerator_type:{name}": 1.0} for name, count in products.items())
    )
    return plan_train(load_spec(TrainSpec, scaled), store=store, inventory=cluster)


def test_the_workers_of_one_job_are_on_one_product_of_gpu(spec: dict[str, Any], store: Store):
    planned = on_gpus(spec, store, {"L4": 4.0, "A100": 8.0})
    assert planned.accelerator_type == "A100"
    assert "scaling.accelerator_type is A100: all workers are on one product of GPU." in planned.notes
    assert on_gpus(spec, store, {"L4": 4.0, "A100": 8.0}, accelerator_type="L4").accelerator_type == "L4"
    assert on_gpus(spec, store, {"L4": 4.0, "A100": 8.0}, accelerator_type="any").accelerator_type is None
    # Where there is one it is said too: nodes of another product may join while the run goes on.
    alone = on_gpus(spec, store, {"A100": 8.0})
    assert alone.accelerator_type == "A100"
    assert not any("accelerator_type" in note for note in alone.notes)


def test_no_product_with_room_for_all_workers_is_refused_with_what_there_is(
    spec: dict[str, Any], store: Store
):
    with pytest.raises(
        ConfigError, match=r"is 4 GPUs, and no product .* \(2 A100, 3 L4\).*accelerator_type: any"
    ):
        on_gpus(spec, store, {"L4": 3.0, "A100": 2.0})
    assert on_gpus(spec, store, {"L4": 3.0, "A100": 2.0}, accelerator_type="any").num_workers == 4


def test_a_product_that_the_cluster_does_not_have_is_refused(spec: dict[str, Any], store: Store):
    with pytest.raises(
        ConfigError, match=r"accelerator_type: is 'A10', which .* not have. Did you mean 'A100'\?"
    ):
        on_gpus(spec, store, {"A100": 8.0}, accelerator_type="A10")


@pytest.fixture
def large(store: Store, tmp_path: Path) -> str:
    """A model of 32 billion parameters, without its weights."""
    config = llama(5120, 25600, 64, 64, context=40960, num_key_value_heads=8, vocab_size=151936, head_dim=128)
    store.publish_model(write_headers(tmp_path / "large", config, shapes_of(config)), "large")
    return "large"


def lora(spec: dict[str, Any], model: str) -> dict[str, Any]:
    arguments = {"finetuning_type": "lora", "bf16": True, "per_device_train_batch_size": 1}
    return spec | {"model": model, "llamafactory": spec["llamafactory"] | arguments}


def test_workers_are_on_a_product_whose_cards_hold_them(spec: dict[str, Any], store: Store, large: str):
    planned = on_gpus(lora(spec, large), store, {"L4": 8.0, "H100": 4.0})
    assert planned.accelerator_type == "H100"
    assert planned.memory and "H100" in planned.memory.device
    (note,) = [note for note in planned.notes if "accelerator_type" in note]
    assert note.endswith("H100: all workers are on one product of GPU; they would not fit on L4.")
    # 40 or 80 GB: nobody knows yet.
    alone = on_gpus(lora(spec, large), store, {"A100": 8.0})
    assert alone.accelerator_type == "A100" and alone.memory and alone.memory.on_card > 60 << 30


def test_another_product_on_which_it_would_fit_is_offered(spec: dict[str, Any], store: Store, large: str):
    def said(products: dict[str, float], **scaling: Any) -> str:
        with pytest.raises(ConfigError) as refused:
            on_gpus(lora(spec, large), store, products, **scaling)
        return str(refused.value)

    named = said({"L4": 8.0, "H100": 4.0}, accelerator_type="L4")
    assert "(NVIDIA L4)" in named and "It fits with scaling.accelerator_type: H100; or with" in named
    assert "scaling.num_workers: 16" not in named, "there are 8 of them"
    # Of H100 there are too few, and on no other it fits: the numbers of the largest that has enough.
    few = said({"L4": 8.0, "L40S": 4.0, "H100": 2.0})
    assert "NVIDIA L40S" in few and "accelerator_type: H100" not in few
    # With memory_check: warn nothing is refused; the largest is nearest to it.
    warned = on_gpus(lora(spec, large) | {"memory_check": "warn"}, store, {"L4": 8.0, "L40S": 4.0})
    assert warned.accelerator_type == "L40S"
    assert any("does not fit by" in note for note in warned.notes)


def test_where_products_may_mix_the_cards_that_are_large_enough_count(
    spec: dict[str, Any], store: Store, large: str
):
    def has(workers: int) -> int | None:
        spec_ = lora(spec, large) | {"memory_check": "warn"}
        products = {"L4": 8.0, "H100": 4.0}
        planned = on_gpus(spec_, store, products, accelerator_type="any", num_workers=workers)
        return planned.memory.available_bytes if planned.memory else None

    assert (has(4) or 0) > 70 << 30
    assert (has(5) or 0) < 24 << 30


def test_gpus_are_counted_by_product_over_all_nodes():
    cluster = nodes(
        {"CPU": 8.0, "GPU": 4.0, "accelerator_type:A100": 1.0},
        {"CPU": 8.0, "GPU": 4.0, "accelerator_type:A100": 1.0},
        {"CPU": 8.0, "GPU": 1.0, "accelerator_type:L4": 1.0},
        {"CPU": 8.0},
    )
    assert cluster.accelerators == {"A100": 8.0, "L4": 1.0}
