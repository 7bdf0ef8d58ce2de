"""Check the arguments of a conversation's tool calls against the JSON schemas of its tools.

    ToolSchemas({name: schema}).fault(name, arguments) -> what is wrong, or ""

jsonschema-rs validates, in native code that cannot be interrupted. A schema can be written so that it runs without end
or takes all memory: subschemas that double with each `$ref`, slow patterns on long texts. So its work is estimated
first, in steps that depend on schema and arguments only, and a conversation has a BUDGET of them. Nothing is fetched.
"""

import functools
import json
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jsonschema_rs

FAULT_CHARS = 200
# Keywords with which a schema may allow arguments that are not in its properties.
ALLOWS_MORE = {"$ref", "$dynamicRef", "additionalProperties", "patternProperties", "unevaluatedProperties"}
ALLOWS_MORE |= {"allOf", "anyOf", "oneOf", "if", "dependentSchemas"}

# Steps per conversation. The costliest schemas that we could write take a few seconds for them; no call of the default
# blend takes a hundredth of them.
BUDGET = 20_000_000
VISIT = 60  # a subschema applied to a value, and a step for each character of the value
# Validators kept for other conversations, each of a schema so small that they together cost what one conversation may.
KEPT_VALIDATORS = 64
SCHEMA_CHAR, REPETITION = 20, 10_000  # compile a character of a schema, and a repetition {m,n} in a pattern
# Regex engines, and the steps they take for a character. A schema gets the first that compiles its patterns: the linear
# one in little memory, in more memory, and for look-around and back-references one that goes back GO_BACKS times.
GO_BACKS = 1_000
ENGINES: tuple[tuple[jsonschema_rs.RegexOptions | jsonschema_rs.FancyRegexOptions, int], ...] = (
    (jsonschema_rs.RegexOptions(size_limit=1 << 16), 20),
    (jsonschema_rs.RegexOptions(size_limit=1 << 21), 500),
    (jsonschema_rs.FancyRegexOptions(backtrack_limit=GO_BACKS, size_limit=1 << 14), 4_000),
)
COUNTS = re.compile(r'\{[^"}]')  # the start of {m,n}, in JSON
LONG_NUMBER = re.compile(r"\d{19}")
DEPTH = 500  # subschemas and values within each other; more may not fit on the stack
TOO_DEEP = "nested too deep, or it refers to itself without end"

# The dialects that are known; any other is read as the newest.
DIALECTS = re.compile(r"https?://json-schema\.org/(schema|draft-0[4-7]/schema|draft/(2019-09|2020-12)/schema)#?")
# Keywords with subschemas for the same value, for each of its members, and those whose subschemas have names.
SAME = {"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "dependencies", "contentSchema"}
MEMBERS = {"items", "prefixItems", "additionalItems", "unevaluatedItems", "contains", "patternProperties"}
MEMBERS |= {"additionalProperties", "unevaluatedProperties", "propertyNames"}
NAMED = {"dependentSchemas", "dependencies", "patternProperties"}
REFERENCES = {"$ref", "$dynamicRef", "$recursiveRef"}
UNEVALUATED = {"unevaluatedProperties", "unevaluatedItems"}


class _CannotApplyError(Exception):
    """Why a schema cannot be applied."""


class ToolSchemas:
    """The schemas of a conversation's tools, by name, and its budget. A schema is compiled when it is needed."""

    def __init__(self, schemas: Mapping[str, Any]) -> None:
        self._schemas, self._left = schemas, BUDGET
        self._compiled: dict[str, tuple[Any, int]] = {}

    def fault(self, name: str, arguments: dict[str, Any]) -> str:
        """Return what is wrong with the arguments of a call under the schema of its tool; empty if nothing is.

        A fault of the schema itself, or one too costly to apply, starts with `schema: `. Arguments that are not in
        the properties of the schema are a fault, unless one of ALLOWS_MORE allows them.
        """
        schema = self._schemas[name]
        if schema is None:
            return ""
        try:
            if name not in self._compiled:
                self._compiled[name] = _compile(schema, self._take)
            validator, pattern_char = self._compiled[name]
            for steps in estimated_steps(schema, arguments, pattern_char):
                self._take(steps)
            validator.validate(arguments)
        except jsonschema_rs.ValidationError as error:
            is_fault = name not in self._compiled
            if isinstance(error.kind, jsonschema_rs.ValidationErrorKind.BacktrackLimitExceeded):
                return f"schema: a pattern goes back more than {GO_BACKS} times"
            place = ".".join(str(part) for part in error.instance_path)
            return f"{'schema: ' * is_fault}{place + ': ' if place else ''}{error.message}"[:FAULT_CHARS]
        except RecursionError:
            return f"schema: {TOO_DEEP}"
        except (_CannotApplyError, jsonschema_rs.ReferencingError, ValueError) as error:
            # ValueError: too deep for the parser, half a surrogate pair, a number of thousands of digits.
            return f"schema: {TOO_DEEP if 'Recursion limit' in str(error) else error}"[:FAULT_CHARS]
        known = schema.get("properties") if isinstance(schema, dict) else None
        if isinstance(known, dict) and ALLOWS_MORE.isdisjoint(schema):
            unknown = sorted(set(arguments) - set(known))
            if unknown:
                return f"unknown arguments {', '.join(unknown)}; known: {', '.join(sorted(known)) or 'none'}"
        return ""

    def _take(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise _CannotApplyError(f"to check the calls of the conversation takes more than {BUDGET:,} steps")


def _compile(schema: Any, take: Callable[[int], None]) -> tuple[Any, int]:
    """Return the validator of a schema, and the steps it takes to match a character by a pattern.

    Raises:  jsonschema_rs.ValidationError, _CannotApplyError, ValueError: a fault of the schema.
    """
    if not isinstance(schema, dict | bool):
        raise _CannotApplyError("expected an object or a boolean")
    text = json.dumps(schema)
    cost = SCHEMA_CHAR * len(text) + REPETITION * len(COUNTS.findall(text))
    take(cost)
    if '"unevaluated' in text:
        for steps in _inlined_steps(schema):
            cost += steps
            take(steps)
    return _validator(text) if cost <= BUDGET // KEPT_VALIDATORS else _validator.__wrapped__(text)


@functools.lru_cache(maxsize=KEPT_VALIDATORS)
def _validator(text: str) -> tuple[Any, int]:
    """Return as `_compile`, for a schema as JSON text: most conversations of a source have the tools of others."""
    schema = json.loads(text)
    dialect = schema.get("$schema") if isinstance(schema, dict) else None
    if isinstance(schema, dict) and isinstance(dialect, str) and not DIALECTS.fullmatch(dialect):
        schema = {key: value for key, value in schema.items() if key != "$schema"}
    for number, (engine, pattern_char) in enumerate(ENGINES, start=1):
        try:
            validator = jsonschema_rs.validator_for(
                schema, pattern_options=engine, validate_formats=False, retriever=_refuse
            )
        except jsonschema_rs.ValidationError:
            if number == len(ENGINES):
                raise
        else:
            return validator, pattern_char
    raise AssertionError


def estimated_steps(root: Any, arguments: Any, pattern_char: int) -> Iterator[int]:
    """Yield the steps of applying each subschema to each value, as if none failed.

    Raises:  _CannotApplyError: too deep, or a reference that is no pointer into the schema.
    """
    waiting: list[tuple[Any, Any, int]] = [(root, arguments, 0)]
    while waiting:
        schema, value, depth = waiting.pop()
        if depth > DEPTH:
            raise _CannotApplyError(TOO_DEEP)
        if not isinstance(schema, dict):
            yield 1
            continue
        if depth and isinstance(schema.get("$id", schema.get("id")), str):
            raise _CannotApplyError("a subschema with an id of its own")
        yield VISIT + len(schema) + _chars(value)
        times = 1 if UNEVALUATED.isdisjoint(schema) else 3  # the other subschemas are applied again
        for key, inner in schema.items():
            values = [value]
            if key in REFERENCES:
                subschemas = [_target(root, inner)]
            elif key in SAME or key in MEMBERS:
                subschemas = inner if isinstance(inner, list) else [inner]
                if key in NAMED and isinstance(inner, dict):
                    subschemas = list(inner.values())
                if key in MEMBERS:
                    values = _members(value, names=key == "propertyNames")
            else:
                if key == "properties" and isinstance(inner, dict) and isinstance(value, dict):
                    waiting += [(inner[name], value[name], depth + 1) for name in value if name in inner]
                elif key == "pattern" and isinstance(value, str):
                    yield pattern_char * (len(value) + 1)
                elif key in ("enum", "const"):
                    yield _chars(inner)
                elif key == "uniqueItems" and isinstance(value, list) and LONG_NUMBER.search(json.dumps(value)):
                    yield len(value) * _chars(value)  # compared in pairs
                continue
            if key == "patternProperties" and isinstance(value, dict):
                yield pattern_char * len(subschemas) * sum(len(name) + 1 for name in value)
            yield len(subschemas) * len(values) * times
            waiting += [(subschema, item, depth + 1) for subschema in subschemas for item in values] * times


def _inlined_steps(root: Any) -> Iterator[int]:
    """Yield the steps of compiling unevaluatedProperties and unevaluatedItems: all that applies beside them is copied.

    Raises:  _CannotApplyError: too deep, or a reference that is no pointer into the schema.
    """
    values, waiting = [root], list[tuple[Any, int]]()
    while values:
        value = values.pop()
        if isinstance(value, dict) and not UNEVALUATED.isdisjoint(value):
            waiting.append((value, 0))
        values += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    while waiting:
        schema, depth = waiting.pop()
        yield VISIT
        if depth > DEPTH:
            raise _CannotApplyError(TOO_DEEP)
        if isinstance(schema, dict):
            times = 1 if UNEVALUATED.isdisjoint(schema) else 3
            for key in [key for key in schema if key in REFERENCES or key in SAME]:
                inner = _target(root, schema[key]) if key in REFERENCES else schema[key]
                some = list(inner.values()) if key in NAMED and isinstance(inner, dict) else inner
                some = some if isinstance(some, list) else [some]
                waiting += [(subschema, depth + 1) for subschema in some] * times


def _chars(value: Any) -> int:
    """Return how many characters a value takes as JSON, about."""
    return len(value) if isinstance(value, str) else len(json.dumps(value))


def _members(value: Any, names: bool) -> list[Any]:
    if isinstance(value, dict):
        return list(value if names else value.values())
    return value if isinstance(value, list) else []


def _target(root: Any, reference: Any) -> Any:
    """Return the subschema that a reference points to. Raises _CannotApplyError: it points to none in this schema."""
    path = urllib.parse.unquote(reference).split("/") if isinstance(reference, str) else []
    target = root if path[:1] == ["#"] else None
    for part in path[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list) and name.isdecimal() and int(name) < len(target):
            target = target[int(name)]
        else:
            target = target.get(name) if isinstance(target, dict) else None
        if target is None:
            break
    if target is None:
        raise _CannotApplyError(f"reference {str(reference)[:80]!r}: expected # or #/..., a place in the schema")
    return target


def _refuse(uri: str) -> Any:
    raise ValueError(f"{uri}: schemas are not fetched")
