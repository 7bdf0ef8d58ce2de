"""Tool schemas: arguments that fit or do not; schemas made to crash, to hang or to fetch."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.tool_schemas import is_quick, schema_fault


def test_arguments_that_fit_have_no_fault():
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    assert schema_fault(schema, {"city": "Paris"}) == ""
    assert schema_fault(None, {"anything": 1}) == ""
    assert schema_fault({}, {"anything": 1}) == ""


@pytest.mark.parametrize(
    ("schema", "arguments", "fault"),
    [
        ({"properties": {"a": {"type": "integer"}}}, {"a": "1"}, "a: '1' is not of type 'integer'"),
        ({"required": ["a"]}, {}, "'a' is a required property"),
        ({"properties": {"a": {}}}, {"b": 1}, "unknown arguments b; known: a"),
        ({"properties": {}}, {"b": 1}, "unknown arguments b; known: none"),
        ({"properties": {"a": {"items": {"enum": [1]}}}}, {"a": [1, 2]}, "a.1: 2 is not one of [1]"),
        ({"properties": {"a": {"pattern": "^[A-Z]{3}$"}}}, {"a": "eur"}, "a: 'eur' does not match '^[A-Z]{3}$'"),
        (False, {"a": 1}, "False schema does not allow {'a': 1}"),
    ],
)
def test_a_fault_names_the_place_and_what_was_expected(schema, arguments, fault):
    assert schema_fault(schema, arguments) == fault


@pytest.mark.parametrize(
    "more",
    [
        {"additionalProperties": True},
        {"additionalProperties": {}},
        {"patternProperties": {"^b": {}}},
        {"allOf": [{"properties": {"b": {}}}]},
        {"anyOf": [{"properties": {"b": {}}}]},
        {"$ref": "#/$defs/more", "$defs": {"more": {"properties": {"b": {}}}}},
    ],
)
def test_arguments_named_elsewhere_in_the_schema_are_known(more):
    assert schema_fault({"properties": {"a": {}}, **more}, {"b": 1}) == ""


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://127.0.0.1:9/schema.json"},
        {"$ref": "#"},
        {"$ref": "#/nowhere"},
        {"$ref": "#/required", "required": ["a"]},
        {"$schema": ["x"]},
        {"$schema": 5},
        {"type": "HashMap"},
        {"properties": {"a": {"multipleOf": 0.01}}},
        {"properties": {"a": {"pattern": "("}}},
        {"patternProperties": {"(a+)+$": {}}},
        "an object",
    ],
)
def test_an_unusable_schema_is_the_fault_and_nothing_is_fetched(schema):
    assert schema_fault(schema, {"a": 10**400}).startswith("schema: ")


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|a)*$", "(.*a){25}", "a*a*a*a*a*a*b"])
def test_a_pattern_of_exponential_time_is_not_applied(pattern):
    started = time.process_time()
    assert schema_fault({"properties": {"a": {"pattern": pattern}}}, {"a": "a" * 60 + "!"}) == ""
    assert time.process_time() - started < 2


def test_a_pattern_is_not_applied_to_a_long_text():
    schema = {"properties": {"a": {"pattern": "^a*$"}}}
    assert schema_fault(schema, {"a": "b" * 200}) != ""
    assert schema_fault(schema, {"a": "b" * 201}) == ""


@pytest.mark.parametrize("pattern", [r"^\d{4}-\d{2}$", r"^[\w.+*-]+@[\w.-]+\.[a-z]{2,}$", r"^(a|b)?c+$", r"[)]*"])
def test_common_patterns_are_quick(pattern):
    assert is_quick(pattern)


NAMES = st.sampled_from(["a", "b", "#", "#/a", "#/properties", "^a", "x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | NAMES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            NAMES
            | st.sampled_from(
                "$ref $id $schema $defs $anchor $dynamicRef type properties required items enum "
                "const allOf anyOf oneOf not if then pattern patternProperties additionalProperties minimum multipleOf "
                "uniqueItems minLength dependentRequired contains prefixItems unevaluatedProperties".split()
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(VALUES, st.dictionaries(NAMES, VALUES, max_size=3))
def test_no_schema_makes_the_check_raise(schema, arguments):
    assert isinstance(schema_fault(schema, arguments), str)
