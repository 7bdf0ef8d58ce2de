"""Check the arguments of a tool call against the tool's JSON schema.

`schema_fault` fetches nothing, raises nothing, and takes a short time for any schema.
"""

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import referencing

FAULT_CHARS = 200
# Keywords with which a schema may allow arguments that are not in its properties.
ALLOWS_MORE = {"$ref", "$dynamicRef", "additionalProperties", "patternProperties", "unevaluatedProperties"}
ALLOWS_MORE |= {"allOf", "anyOf", "oneOf", "if", "dependentSchemas"}
# Python's regular expressions can take exponential time. A pattern is applied only if it has no repeated group and few
# unbounded repetitions, and only to short texts: at most 200 ** 4 / 24 steps, which take a second.
PATTERN_CHARS, UNBOUNDED = 200, 4
CLASS_OR_ESCAPE = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)


def schema_fault(schema: Any, arguments: dict[str, Any]) -> str:
    """Return what is wrong with the arguments of a call under the tool's JSON schema; empty if nothing is.

    A fault of the schema itself starts with `schema: `. Arguments that are not in the properties of the schema are a
    fault, unless one of ALLOWS_MORE allows them.
    """
    if schema is None:
        return ""
    try:
        validator = _validator(json.dumps(schema, sort_keys=True))
        error = jsonschema.exceptions.best_match(validator.iter_errors(arguments))
    except (jsonschema.exceptions.SchemaError, referencing.exceptions.Unresolvable) as fault:
        return f"schema: {str(fault).splitlines()[0][:FAULT_CHARS]}"
    except RecursionError:
        return "schema: it refers to itself without end"
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as fault:
        # jsonschema raises these for schemas that pass its own check: a $ref to no schema, a number too large.
        return f"schema: it cannot be applied: {str(fault)[:FAULT_CHARS]}"
    if error is not None:
        place = ".".join(str(part) for part in error.absolute_path)
        return f"{place + ': ' if place else ''}{error.message}"[:FAULT_CHARS]
    known = schema.get("properties") if isinstance(schema, dict) else None
    if isinstance(known, dict) and ALLOWS_MORE.isdisjoint(schema):
        unknown = sorted(set(arguments) - set(known))
        if unknown:
            return f"unknown arguments {', '.join(unknown)}; known: {', '.join(sorted(known)) or 'none'}"
    return ""


@functools.lru_cache(maxsize=4096)
def _validator(schema: str) -> Any:
    value = json.loads(schema)
    dialect = jsonschema.validators.validator_for(value, default=jsonschema.Draft202012Validator)
    dialect.check_schema(value)
    for name in _pattern_names(value):
        if not is_quick(name):
            raise jsonschema.exceptions.SchemaError(f"the pattern {name[:80]!r} may take forever")
    validator = jsonschema.validators.extend(dialect, {"pattern": _match_quickly})
    return validator(value, registry=referencing.Registry())  # an empty registry: no schema is fetched from outside


def _match_quickly(_validator: Any, pattern: str, text: Any, _schema: Any) -> Iterator[Any]:
    """Apply a pattern if that is quick; otherwise the text passes."""
    applies = isinstance(text, str) and len(text) <= PATTERN_CHARS and is_quick(pattern)
    if applies and not re.search(pattern, text):
        yield jsonschema.exceptions.ValidationError(f"{text!r} does not match {pattern!r}")


def is_quick(pattern: str) -> bool:
    """Return whether a pattern is sure to take a short time on a short text.

    >>> is_quick(r"^[A-Z]{2}-\\d+$"), is_quick("(a+)+$"), is_quick("(a|a)*b"), is_quick("a*a*a*a*a*b")
    (True, False, False, False)
    """
    bare = CLASS_OR_ESCAPE.sub("x", pattern)
    return not re.search(r"\)[*+{]", bare) and len(re.findall(r"[*+]|\{\d*,\}", bare)) <= UNBOUNDED


def _pattern_names(schema: Any) -> Iterator[str]:
    """Yield the patterns of property names, anywhere in a schema."""
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            patterns = value.get("patternProperties")
            yield from patterns if isinstance(patterns, dict) else ()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
