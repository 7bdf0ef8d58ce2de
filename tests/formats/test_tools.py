"""Tools in every published form become the OpenAI list."""

import json

import pytest

from sft.formats.flags import UnfitRowError
from sft.formats.not_read import NotRead
from sft.formats.tools import read_tools

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "The weather.", "parameters": SCHEMA}
TOOL = {"type": "function", "function": FUNCTION}


@pytest.mark.parametrize(
    "tools",
    [
        [TOOL],
        TOOL,
        [FUNCTION],
        json.dumps([TOOL]),
        [json.dumps(FUNCTION)],
        [{"type": "function", **FUNCTION}],
        [{"type": "function", "function": json.dumps(FUNCTION)}],
        [{**FUNCTION, "parameters": json.dumps(SCHEMA)}],
        [{"name": "weather", "description": "The weather.", "input_schema": SCHEMA}],
        [{"id": "weather", "description": "The weather.", "inputSchema": SCHEMA}],
        [{"id": "weather", "description": "The weather.", "inputSchema": {"jsonSchema": SCHEMA}}],
        [{"Name": "weather", "Description": "The weather.", "InputSchema": SCHEMA}],
        [{"name": "weather", "description": "The weather.", "input-schema": SCHEMA}],
        [{"name": "weather", "description": "The weather.", "Parameters": SCHEMA}],
        [{"name": "weather", "description": "The weather.", "parametersJsonSchema": SCHEMA}],
    ],
    ids=(
        "openai alone bare text texts Responses inner-text schema Anthropic OpenCode SDK capitals hyphen capital Gemini"
    ).split(),
)
def test_a_tool_in_any_form_is_the_same(tools):
    not_read = NotRead()
    assert read_tools(tools, not_read) == [TOOL]
    not_read.end_row("a:1", True)
    assert not_read.counts == {}


@pytest.mark.parametrize("tools", [None, "", " ", [], {}, "[]", "null", "{}"])
def test_no_tools(tools):
    assert read_tools(tools, NotRead()) is None


@pytest.mark.parametrize("tools", [5, "now", [{}], [{"function": {}}], ["x"], [{"name": ""}], [None], "[1]"])
def test_what_is_no_tool_rejects_the_row(tools):
    with pytest.raises(UnfitRowError, match="malformed-row: tools"):
        read_tools(tools, NotRead())


def test_parameters_by_name_become_a_schema_with_the_types_of_json():
    parameters = {
        "city": {"type": "str", "description": "Where"},
        "days": {"type": "int, optional", "default": 1},
        "places": {"type": "List[float]"},
        "call": {"type": "Callable[[float], float]"},
    }
    (tool,) = read_tools([{"name": "weather", "parameters": parameters}], NotRead()) or []
    assert tool["function"]["parameters"] == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Where"},
            "days": {"type": "integer", "default": 1},
            "places": {"type": "array"},
            "call": {},
        },
    }


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"properties": {"type": {"type": "str"}}},
        {"type": "object", "additionalProperties": {"type": "string"}},
        {"anyOf": [SCHEMA]},
        {"type": "dict", "properties": {}},
        [1],
    ],
    ids=str,
)
def test_a_schema_stays_as_it_is(schema):
    (tool,) = read_tools([{"name": "f", "parameters": schema}], NotRead()) or []
    assert tool["function"]["parameters"] == schema


def test_a_parameter_called_type_is_a_parameter():
    (tool,) = read_tools([{"name": "f", "parameters": {"type": {"type": "str"}}}], NotRead()) or []
    assert tool["function"]["parameters"]["properties"] == {"type": {"type": "string"}}


def test_the_declarations_of_gemini_are_tools():
    parameters = {"type": "OBJECT", "properties": {"a": {"type": "INTEGER"}}}
    (tool,) = read_tools([{"functionDeclarations": [{"name": "add", "parameters": parameters}]}], NotRead())
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert tool == {"type": "function", "function": {"name": "add", "parameters": schema}}


def test_tools_by_name_are_tools():
    parameters = {"type": "object", "properties": {}}
    (tool,) = read_tools({"add": {"description": "Adds.", "parameters": parameters}}, NotRead())
    assert tool["function"] == {"name": "add", "description": "Adds.", "parameters": parameters}
