"""Tool schemas: arguments that fit or do not; schemas made to crash, to hang or to fetch."""

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft import tool_schemas
from sft.tool_schemas import ToolSchemas

Json = dict[str, Any]


def schema_fault(schema: Any, arguments: Json) -> str:
    return ToolSchemas({"f": schema}).fault("f", arguments)


def test_arguments_that_fit_have_no_fault():
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    assert schema_fault(schema, {"city": "Paris"}) == ""
    assert schema_fault(None, {"anything": 1}) == ""
    assert schema_fault({}, {"anything": 1}) == ""


@pytest.mark.parametrize(
    ("schema", "arguments", "fault"),
    [
        ({"properties": {"a": {"type": "integer"}}}, {"a": "1"}, 'a: "1" is not of type "integer"'),
        ({"required": ["a"]}, {}, '"a" is a required property'),
        ({"properties": {"a": {}}}, {"b": 1}, "unknown arguments b; known: a"),
        ({"properties": {}}, {"b": 1}, "unknown arguments b; known: none"),
        ({"properties": {"a": {"items": {"enum": [1]}}}}, {"a": [1, 2]}, "a.1: 2 is not one of 1"),
        ({"properties": {"a": {"pattern": "^[A-Z]{3}$"}}}, {"a": "eur"}, 'a: "eur" does not match "^[A-Z]{3}$"'),
        (False, {"a": 1}, 'False schema does not allow {"a":1}'),
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
        {"properties": {"a": {"pattern": "("}}},
        {"properties": {"a": {"pattern": "((a{100}){100}){100}"}}},
        {"properties": {"a": {"$ref": "#b"}}, "$defs": {"b": {"$anchor": "b"}}},
        {"properties": {"a": {"$id": "x", "$ref": "#/$defs/b", "$defs": {"b": {}}}}, "$defs": {"b": {}}},
        "an object",
    ],
)
def test_an_unusable_schema_is_the_fault_and_nothing_is_fetched(schema):
    assert schema_fault(schema, {"a": 10**400}).startswith("schema: ")


@pytest.mark.parametrize(
    ("schema", "fits", "fits_not"),
    [
        ({"$ref": "#/$defs/b~1c%20d/allOf/0", "$defs": {"b/c d": {"allOf": [{"type": "integer"}]}}}, 1, "1"),
        ({"$schema": "https://example.com/dialect", "minimum": 1}, 1, 0),
        (
            {
                "allOf": [{"$ref": "#/$defs/b"}],
                "unevaluatedProperties": False,
                "$defs": {"b": {"properties": {"c": {}}}},
            },
            {"c": 1},
            {"d": 1},
        ),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "integer"}]}, [1], ["1"]),
        ({"multipleOf": 0.01}, 10**400, 0.001),
        ({"type": "integer"}, 1.0, True),
        ({"pattern": "^(?!x)[a-z]+$"}, "ax", "xa"),
        ({"pattern": r"^(a|b)\1$"}, "aa", "ab"),
        ({"pattern": r"^\p{L}+$"}, "\u00e9", "1"),
    ],
)
def test_references_dialects_numbers_and_patterns(schema, fits, fits_not):
    defs = {key: schema.pop(key) for key in ("$defs", "$schema") if key in schema}
    whole = {"properties": {"a": schema}, **defs}
    assert schema_fault(whole, {"a": fits}) == ""
    assert schema_fault(whole, {"a": fits_not}).startswith("a")


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|a)*$", "(a*)*(a|c)*c", "(a|b)*a(a|b){200}c", "a*a*a*a*a*a*a*a*b"])
def test_every_pattern_is_applied_to_the_whole_of_a_long_text(pattern):
    started = time.process_time()
    fault = schema_fault({"properties": {"a": {"pattern": pattern}}}, {"a": "a" * 100_000 + "!"})
    assert fault.startswith("a: ")
    assert time.process_time() - started < 10


def doubled(keyword: str, levels: int = 40) -> Json:
    """Return a schema of `levels` definitions, each of which applies the next one twice."""
    defs: Json = {f"d{level}": {keyword: [{"$ref": f"#/$defs/d{level + 1}"}] * 2} for level in range(levels)}
    return {"properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": {**defs, f"d{levels}": {"type": "string"}}}


def nested(value: Any, levels: int) -> Any:
    for _ in range(levels):
        value = {"a": value}
    return value


def unevaluated(levels: int) -> Json:
    schema: Json = {}
    for _ in range(levels):
        schema = {"allOf": [schema], "unevaluatedProperties": False, "properties": {"a": {}}}
    return schema


def doubled_beside_unevaluated(levels: int) -> Json:
    """Return a schema of `levels` definitions that apply the next one twice beside unevaluatedProperties."""
    defs: Json = {"d0": {"type": "string"}}
    for level in range(levels):
        next_one = [{"$ref": f"#/$defs/d{level}"}]
        defs[f"d{level + 1}"] = {"allOf": next_one, "anyOf": next_one, "unevaluatedProperties": False}
    return {"properties": {"a": {"$ref": f"#/$defs/d{levels}"}}, "$defs": defs}


TWICE = {"properties": {"a": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}}}
COSTLY = {
    "anyOf that doubles": (doubled("anyOf"), {"a": 1}),
    "allOf that doubles": (doubled("allOf"), {"a": 1}),
    "oneOf that doubles": (doubled("oneOf"), {"a": 1}),
    "recursion that doubles": (TWICE, nested(1, 40)),
    "unevaluated properties within each other": (unevaluated(25), {"a": 1}),
    "references that double beside unevaluated properties": (doubled_beside_unevaluated(20), {"a": 1}),
    "a long enum and a long list": (
        {"properties": {"a": {"items": {"enum": [[number] for number in range(20_000)]}}}},
        {"a": [[-1]] * 20_000},
    ),
    "many patterns of names and many names": (
        {"patternProperties": {f"^(a|b)*{number}(a+)+$": {} for number in range(2_000)}},
        {f"{'ab' * 50}{number}": 1 for number in range(2_000)},
    ),
    "dependent schemas of all for all": (
        {"dependentSchemas": {f"k{n}": {"properties": {f"k{m}": {} for m in range(300)}} for n in range(300)}},
        {f"k{n}": 1 for n in range(300)},
    ),
    "a pattern with look-around and a long text": (
        {"properties": {"a": {"pattern": "^(?:(?=(a|b)*a(a|b){100}c).)*x"}}},
        {"a": "ab" * 50_000},
    ),
    "a pattern that goes back": ({"properties": {"a": {"pattern": "^(?=a)(?:(?!c)a|a)*(?<=b)$"}}}, {"a": "a" * 3_000}),
    "a large pattern and a long text": ({"properties": {"a": {"pattern": "((a?b?){50}){50}c"}}}, {"a": "ab" * 100_000}),
    "many large patterns": (
        {"properties": {f"a{number}": {"pattern": ".{900}.{900}"} for number in range(2_000)}},
        {"a": 1},
    ),
    "large numbers that are unique": (
        {"properties": {"a": {"uniqueItems": True}}},
        {"a": [10**4000 + number for number in range(1_000)]},
    ),
    "a chain of references": (
        {
            "properties": {"a": {"$ref": "#/$defs/d0"}},
            "$defs": {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(2_000)} | {"d2000": {}},
        },
        {"a": 1},
    ),
    "a large schema": ({"properties": {f"a{number}": {"type": "string"} for number in range(50_000)}}, {"a": 1}),
}


@pytest.mark.parametrize(("schema", "arguments"), COSTLY.values(), ids=COSTLY)
def test_a_costly_schema_is_a_fault_within_seconds(schema, arguments):
    started = time.process_time()
    assert schema_fault(schema, arguments).startswith("schema: ")
    assert time.process_time() - started < 10


def test_unique_items_and_large_numbers_are_quick():
    started = time.process_time()
    unique = {"properties": {"a": {"uniqueItems": True, "items": {"multipleOf": 1e-300}}}}
    assert schema_fault(unique, {"a": [10**4000, 10**4000 + 1]}) == ""
    assert schema_fault(unique, {"a": [*range(50_000), 3]}).startswith("a: ")
    assert time.process_time() - started < 10


def test_the_calls_of_a_conversation_share_a_budget_and_a_schema_is_paid_once():
    schema = {"properties": {"a": {"pattern": "^(?!x)"}}, "description": "d" * 50_000}
    schemas = ToolSchemas({"f": schema})
    faults = [schemas.fault("f", {"a": "y" * 400}) for _ in range(20)]
    assert faults[0] == ""
    assert faults[-1].startswith("schema: ")
    plain = ToolSchemas({"f": {"description": "d" * 50_000, "properties": {"a": {"type": "string"}}}})
    assert {plain.fault("f", {"a": "y" * 400}) for _ in range(2_000)} == {""}


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


@settings(max_examples=300)
@given(VALUES, st.dictionaries(NAMES, VALUES, max_size=3))
def test_no_schema_makes_the_check_raise(schema, arguments):
    assert isinstance(schema_fault(schema, arguments), str)


def test_a_schema_is_compiled_once_for_all_conversations_unless_it_is_costly_or_wrong():
    small, costly = ({"properties": {"a": {"description": "x" * chars}}} for chars in (10, 100_000))
    tool_schemas._validator.cache_clear()
    for schema in (small, costly, {"type": "no type"}):
        assert {schema_fault(schema, {"a": 1}) for _ in range(3)} == {schema_fault(schema, {"a": 1})}
    cached = tool_schemas._validator.cache_info()
    assert (cached.currsize, cached.hits) == (1, 3)
    left = set[int]()
    for clear in (
        tool_schemas._validator.cache_clear,
        lambda: None,
    ):  # what it costs does not depend on what came before
        clear()
        schemas = ToolSchemas({"f": small})
        schemas.fault("f", {"a": 1})
        left.add(schemas._left)
    assert len(left) == 1
