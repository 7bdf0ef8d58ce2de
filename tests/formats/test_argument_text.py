"""Arguments without quotes: the type of their schema, or text."""

import pytest

from sft.formats.argument_text import coerce


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("5", {"type": "integer"}, 5),
        ("5", {"type": "string"}, "5"),
        ("5.5", {"type": "integer"}, "5.5"),
        ("5.5", {"type": "number"}, 5.5),
        ("true", {"type": "boolean"}, True),
        ("False", {"type": "boolean"}, False),
        ("True", {"type": "string"}, "True"),
        ("1", {"type": "boolean"}, "1"),
        ("true", {"type": "integer"}, "true"),
        ('["a", 1]', {"type": "array"}, ["a", 1]),
        ('{"a": 1}', {"type": "object"}, {"a": 1}),
        ("{'a': 1}", {"type": "object"}, "{'a': 1}"),
        ("5", {"type": ["string", "null"]}, "5"),
        ("None", {"type": ["string", "null"]}, None),
        ("5", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, 5),
        ('"5"', {"type": ["string", "integer"]}, '"5"'),
        ("5", {"enum": ["5", "6"]}, "5"),
        ("5", {}, 5),
        ("five", {}, "five"),
        ("five", None, "five"),
        ("5", {"type": "dict"}, "5"),
        ("5", {"type": {"hostile": []}}, 5),
        ("5", {"anyOf": 7, "oneOf": [3]}, 5),
        ("NaN", {"type": "number"}, "NaN"),
        ("9" * 5000, {"type": "integer"}, "9" * 5000),
        ("[" * 100_000, {"type": "array"}, "[" * 100_000),
    ],
)
def test_text_takes_the_type_of_its_schema_or_stays_text(text, schema, value):
    result = coerce(text, schema)
    assert (result, type(result)) == (value, type(value))
