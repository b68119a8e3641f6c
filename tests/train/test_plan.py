"""The plan: what a spec becomes, and what is refused before anything is submitted."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.core.config import load_spec
from runtime.core.errors import ConfigError
from storage.store import Store
from train_jobs.plan import TrainPlan, plan_train
from train_jobs.spec import TrainSpec

TWO_CPUS = {"CPU": 2.0}


def plan(spec: dict[str, Any], store: Store, cluster: dict[str, float] | None = None) -> TrainPlan:
    return plan_train(load_spec(TrainSpec, spec), store=store, cluster_resources=cluster or TWO_CPUS)


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
        plan_train(load_spec(TrainSpec, spec), store=store, cluster_resources=TWO_CPUS, origin="my.yaml")
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
