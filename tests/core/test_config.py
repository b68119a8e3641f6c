"""Specs: strict, frozen, and wrong ones refused in one readable message."""

import json
import pickle
from pathlib import Path

import pytest
from pydantic import Field, ValidationError

from cluster.kubernetes.refusals import Held
from runtime.core.config import ConfigModel, load_spec
from runtime.core.errors import ConfigError, TandemError
from runtime.core.lookup import did_you_mean


class Inner(ConfigModel):
    """Workers."""

    num_workers: int = Field(1, ge=1)
    """Workers of the job."""


class Outer(ConfigModel):
    """A spec."""

    name: str
    """What it is called."""

    scaling: Inner = Inner()
    """How large it is."""


def test_a_spec_survives_the_journey_as_json():
    spec = load_spec(Outer, {"name": "a", "scaling": {"num_workers": 3}})
    assert load_spec(Outer, json.loads(spec.to_json())) == spec


def test_yaml_and_json_files_are_read_alike(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("name: x\nscaling: {num_workers: 2}\n")
    (tmp_path / "a.json").write_text('{"name": "x", "scaling": {"num_workers": 2}}')
    assert load_spec(Outer, tmp_path / "a.yaml") == load_spec(Outer, str(tmp_path / "a.json"))


def test_a_spec_cannot_be_changed_after_loading():
    with pytest.raises(ValidationError, match="frozen"):
        load_spec(Outer, {"name": "a"}).name = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nam: x", [r"nam: unknown field \(value 'x'\)\. Did you mean 'name'\?", r"name: is required"]),
        (
            "name: x\nscaling: {num_worker: 2}",
            [r"scaling\.num_worker: unknown .* Did you mean 'num_workers'\?"],
        ),
        (
            "name: x\nscaling: {num_workers: 0}",
            [r"scaling\.num_workers: is 0: .*greater.*Workers of the job"],
        ),
        ("name: x\nscaling: {num_workers: two}", [r"scaling\.num_workers: is 'two': .*integer"]),
        ("", [r"is empty\. Write the spec's fields"]),
        ("- name", [r"holds list, but a spec is a mapping"]),
        ("name: [", [r"is not valid YAML"]),
    ],
)
def test_a_wrong_spec_is_refused_with_file_field_value_and_remedy(
    tmp_path: Path, text: str, expected: list[str]
):
    file = tmp_path / "spec.yaml"
    file.write_text(text)
    for pattern in expected:
        with pytest.raises(ConfigError, match=pattern) as refusal:
            load_spec(Outer, file)
        assert str(file) in str(refusal.value)


class Several(ConfigModel):
    """A spec with two lists that may not be empty."""

    groups: tuple[Inner, ...] = Field(min_length=1)
    """How large each is."""

    names: tuple[str, ...] = Field(min_length=1)
    """What they are called."""


def test_a_list_is_not_called_too_short_for_its_wrong_entry():
    with pytest.raises(ConfigError) as refusal:
        load_spec(Several, {"groups": [{"num_workers": 0}], "names": []})
    faults = str(refusal.value).splitlines()[1:]
    assert [fault.split(":")[0].strip() for fault in faults] == ["groups.0.num_workers", "names"]
    assert "at least 1 item" in faults[1]


def test_a_file_that_is_no_text_is_refused(tmp_path: Path):
    (tmp_path / "weights.yaml").write_bytes(b"\x00\xff\xfe")
    with pytest.raises(ConfigError, match=r"weights\.yaml: is not text"):
        load_spec(Outer, tmp_path / "weights.yaml")


def test_a_missing_file_says_where_it_was_looked_for():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read .*Check the path"):
        load_spec(Outer, "nowhere.yaml")


def _all_errors(cls: type[TandemError]) -> list[type[TandemError]]:
    return [cls, *(below for child in cls.__subclasses__() for below in _all_errors(child))]


_ARGUMENTS: dict[str, tuple[object, ...]] = {
    "RunFailed": ("r-1", "out of memory", "tandem logs r-1"),
    "RunStopped": ("r-1", "by its user", "tandem logs r-1"),
    "Conflicted": ("Service lab", [Held("spec.type", "kubectl")]),
}
"""Of the errors that are made of more than a message."""


@pytest.mark.parametrize("cls", _all_errors(TandemError), ids=lambda cls: cls.__name__)
def test_every_error_crosses_processes(cls: type[TandemError]):
    error = cls(*_ARGUMENTS.get(cls.__name__, ("what happened",)))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (cls, str(error), vars(error))


def test_an_unknown_name_is_answered_with_the_nearest_or_with_all():
    assert did_you_mean("zero22", ["zero2", "zero3"]) == "Did you mean 'zero2'?"
    assert did_you_mean("qqq", ["zero2", "zero3"]) == "Known: zero2, zero3."
    assert did_you_mean("qqq", []) == "Known: none."
