"""Tools in any published form -> the OpenAI form: [{"type": "function", "function": {name, description?, ...}}]."""

from collections.abc import Mapping
from typing import Any

from sft.conversation import excerpt
from sft.formats.flags import UnfitRowError
from sft.formats.json_text import parse_text
from sft.formats.not_read import NotRead, says_something
from sft.formats.spellings import (
    FUNCTION_DECLARATIONS,
    IN_SCHEMA,
    PLAIN_TOOL_KEYS,
    PYTHON_TYPES,
    TOOL_KEYS,
    TOOL_SPEC,
    snake_case,
)

Json = dict[str, Any]
# Keywords by which an object is a JSON schema, and not a list of parameters by name.
SCHEMA_WORDS = {"type", "properties", "$ref", "anyOf", "allOf", "oneOf", "not", "if", "items", "enum", "const"}
SCHEMA_WORDS |= {"additionalProperties", "patternProperties", "required", "definitions", "$defs", "$schema"}
TOOL_WORDS = {"description", "parameters", "input_schema", "inputSchema"}

# Gemini's names of types -> those of JSON schema.
GEMINI_TYPES = {name.upper(): name for name in ("string", "number", "integer", "boolean", "array", "object")}


def read_tools(tools: Any, not_read: NotRead) -> list[Json] | None:
    """Return tools in OpenAI form; None if there are none.

    Accepts a list, a tool, tools by name, or JSON text of these, also of each tool; tools with or without the
    `function` wrapper; Anthropic's `input_schema`, Gemini's `functionDeclarations`, OpenCode's `id` and `inputSchema`;
    parameters by name with Python's types (xLAM).

    Raises:  UnfitRowError: a tool without a name, or text that is not JSON.
    """
    tools = _decoded(tools, "tools")
    if not says_something(tools):
        return None
    if type(tools) is dict:
        tools = tools["tools"] if type(tools.get("tools")) is list else _by_name(tools)
    if type(tools) is not list:
        raise UnfitRowError("malformed-row", f"tools: expected a list, found {excerpt(tools)}")
    tools = [each for index, tool in enumerate(tools) for each in _declared(_decoded(tool, f"tools[{index}]"))]
    return [_tool(tool, index, not_read) for index, tool in enumerate(tools)]


def _by_name(tools: Json) -> list[Json]:
    """Return the tools of an object {name: tool}; another object is a tool itself."""
    are_tools = all(type(tool) is dict and not TOOL_WORDS.isdisjoint(tool) for tool in tools.values())
    return (
        [{"name": name, **tool} for name, tool in tools.items()] if are_tools and "function" not in tools else [tools]
    )


def _declared(tool: Any) -> list[Any]:
    """Return the tools that a tool of Gemini lists, and that of Bedrock's; another tool as it is."""
    if type(tool) is dict and len(tool) == 1:
        ((key, listed),) = tool.items()
        if snake_case(key) == FUNCTION_DECLARATIONS and type(listed) is list:
            return [with_types(each, GEMINI_TYPES) for each in listed]
        if snake_case(key) == TOOL_SPEC:
            return [listed]
    return [tool]


def with_types(schema: Any, types: Mapping[str, str]) -> Any:
    """Return a tool, or a part of one, with other names of types.

    >>> with_types({"name": "f", "parameters": {"type": "dict"}}, {"dict": "object"})
    {'name': 'f', 'parameters': {'type': 'object'}}
    """
    if type(schema) is list:
        return [with_types(item, types) for item in schema]
    if type(schema) is not dict:
        return schema
    return {
        key: types.get(item, item) if key == "type" and type(item) is str else with_types(item, types)
        for key, item in schema.items()
    }


def _tool(tool: Any, index: int, not_read: NotRead) -> Json:
    function = tool.get("function", tool) if type(tool) is dict else None
    if function is not tool and type(tool) is dict and not tool.keys() <= PLAIN_TOOL_KEYS:
        not_read.add_keys("tools[].", tool, PLAIN_TOOL_KEYS)
    function = _decoded(function, f"tools[{index}].function")
    if type(function) is not dict:
        raise UnfitRowError("malformed-row", f"tools[{index}]: expected a function with a name, found {excerpt(tool)}")
    normal: Json = {}
    for key, value in function.items():
        name = TOOL_KEYS.get(snake_case(key))
        if name is None or name in normal:
            if says_something(value):
                not_read.add(f"tools[].function.{key}")
        elif value is not None and name not in ("type", "function"):
            normal[name] = value
    if "name" in function:  # beside an id
        normal["name"] = function["name"]
    if type(normal.get("name")) is not str or not normal["name"]:
        raise UnfitRowError("malformed-row", f"tools[{index}]: expected a function with a name, found {excerpt(tool)}")
    if "parameters" in normal:
        normal["parameters"] = _schema(_decoded(normal["parameters"], f"tools[{index}].parameters"))
    return {"type": "function", "function": normal}


def parse_or_reject(text: str, name: str) -> Any:
    """Return what a text is as JSON. Raises UnfitRowError: it is not; `name` says where it is."""
    try:
        return parse_text(text)
    except ValueError as error:
        raise UnfitRowError("malformed-row", f"{name}: {error}: {excerpt(text)}") from None


def _decoded(value: Any, name: str) -> Any:
    """Return the value of a JSON text; other values as they are."""
    if type(value) is not str or not value.strip():
        return None if type(value) is str else value
    return parse_or_reject(value, name)


def _schema(parameters: Any) -> Any:
    """Return parameters as a JSON schema; parameters by name are wrapped, with the types of JSON."""
    if type(parameters) is not dict or not parameters:
        return parameters
    if len(parameters) == 1 and (inner := next(iter(parameters))) in IN_SCHEMA:
        return parameters[inner]
    is_schema = not SCHEMA_WORDS.isdisjoint(parameters) and type(parameters.get("type")) is not dict
    if is_schema or not all(type(value) is dict and "type" in value for value in parameters.values()):
        return parameters
    return {"type": "object", "properties": {name: _property(value) for name, value in parameters.items()}}


def _property(value: Json) -> Json:
    """Return a parameter with a type of JSON for Python's: `str, optional` is a string, `List[int]` an array."""
    kind = value["type"]
    if type(kind) is not str:
        return value
    name = PYTHON_TYPES.get(kind.partition("[")[0].partition(",")[0].strip().lower())
    rest = {key: item for key, item in value.items() if key != "type"}
    return {"type": name, **rest} if name else rest
