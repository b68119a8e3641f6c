"""The rules that custom kinds have of their own, in CEL: asked as the API server asks them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from cluster.kubernetes.cel_rules import rule_faults, with_defaults
from tests.kubernetes.accepted import SCHEMAS


def of(rule: str, properties: dict[str, Any] | None = None, **more: str) -> dict[str, Any]:
    """A schema with one rule."""
    return {
        "type": "object",
        "properties": properties or {"a": {}, "b": {}},
        "x-kubernetes-validations": [{"rule": rule, **more}],
    }


def rules(node: Any) -> list[str]:
    """All rules in a CustomResourceDefinition."""
    if isinstance(node, list):
        return [rule for item in node for rule in rules(item)]
    if not isinstance(node, dict):
        return []
    own = [one["rule"] for one in node.get("x-kubernetes-validations", [])]
    return own + [rule for child in node.values() for rule in rules(child)]


def test_what_breaks_a_rule_is_refused_with_the_rules_own_words():
    schema = of("self.a <= self.b", message="a may not be above b.")
    assert rule_faults(schema, {"a": 1, "b": 2}, at="spec") == []
    (fault,) = rule_faults(schema, {"a": 3, "b": 2}, at="spec")
    assert (fault.field, fault.value, fault.warning) == ("spec", {"a": 3, "b": 2}, False)
    assert fault.why == "A rule of the kind refuses it: a may not be above b."


def test_a_message_may_be_an_expression_and_name_a_field():
    schema = of("self.a < 3", messageExpression="'a is ' + string(self.a)", fieldPath=".a")
    (fault,) = rule_faults(schema, {"a": 3}, at="spec")
    assert fault.field == "spec.a" and fault.why.endswith("a is 3.")


def test_a_message_that_cannot_be_made_is_replaced_by_the_rule():
    (fault,) = rule_faults(of("self.a < 3", messageExpression="string(self.missing)"), {"a": 3})
    assert fault.field == "(the object)" and fault.why.endswith("self.a < 3.")


def test_a_rule_that_cannot_look_at_the_value_refuses_it():
    (fault,) = rule_faults(of("self.a == self.b"), {"a": 1}, at="spec")
    assert not fault.warning and "b" in fault.why


def test_rules_are_asked_in_lists_and_maps_with_their_fields():
    positive = {"type": "integer", "x-kubernetes-validations": [{"rule": "self > 0"}]}
    schema = {
        "properties": {
            "list": {"type": "array", "items": positive},
            "map": {"type": "object", "additionalProperties": positive},
        }
    }
    found = rule_faults(schema, {"list": [1, 0], "map": {"x": 0, "y": 2}}, at="spec")
    assert [fault.field for fault in found] == ["spec.list[1]", "spec.map.x"]


def test_defaults_are_there_before_the_rules_are_asked():
    properties = {
        "mode": {"type": "string", "default": "Terminate"},
        "given": {"type": "string", "default": "x"},
        "null": {"default": 1, "nullable": True},
        "inner": {"type": "object", "default": {}, "properties": {"n": {"default": 3}}},
    }
    schema = of("self.mode == 'Terminate' && self.inner.n == 3", properties)
    value = {"given": "y", "null": None}
    assert with_defaults(schema, value) == {
        "given": "y",
        "null": None,
        "mode": "Terminate",
        "inner": {"n": 3},
    }
    assert value == {"given": "y", "null": None}
    assert rule_faults(schema, value) == []


def test_a_rule_about_a_change_is_not_asked_of_a_manifest():
    assert rule_faults(of("self.a == oldSelf.a"), {"a": 1}) == []


def test_a_rule_with_a_function_that_is_not_known_here_is_left_to_the_cluster():
    (fault,) = rule_faults(of("quantity(self.a).isGreaterThan(quantity('1Gi'))"), {"a": "1Gi"}, at="spec")
    assert fault.warning and "quantity" in fault.why and "cannot be evaluated here" in fault.why


def test_a_rule_in_a_syntax_that_is_not_known_here_is_left_to_the_cluster():
    schema = of("self.?a.orValue('x') != 'y'") | {"additionalProperties": {}}
    (fault,) = rule_faults(schema, {}, at="spec")
    assert fault.warning and fault.field == "spec"
    assert "cannot be evaluated here" in fault.why and "self.?a.orValue('x') != 'y'" in fault.why


@pytest.mark.parametrize(
    ("name", "escaped"),
    [("a-b", "a__dash__b"), ("a.b/c", "a__dot__b__slash__c"), ("x__y", "x__underscores__y"),
     ("namespace", "__namespace__")],
)  # fmt: skip
def test_a_property_that_cel_cannot_name_is_escaped_as_kubernetes_does(name: str, escaped: str):
    schema = of(f"self.{escaped} == 1", {name: {"type": "integer"}})
    assert rule_faults(schema, {name: 1}) == []
    assert [fault.field for fault in rule_faults(schema, {name: 2}, at="spec")] == ["spec"]


def test_the_keys_of_a_map_keep_their_names():
    schema = of("'a-b' in self", {}) | {"additionalProperties": {"type": "integer"}}
    assert rule_faults(schema, {"a-b": 1}) == []


def test_every_rule_of_the_kinds_that_tandem_writes_can_be_read():
    from cel import compile

    known = {rule for file in SCHEMAS.glob("*.yaml") for rule in rules(yaml.safe_load(file.read_text()))}
    assert len(known) > 30
    for rule in known:
        assert compile(rule).variables()
