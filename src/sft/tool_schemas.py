"""Arguments of a tool call against the tool's JSON schema.

`schema_fault` never fetches anything, never raises, and never takes long, whatever schema a data set brings.
"""

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import referencing

FAULT_CHARS = 200
# Keywords under which a schema may allow arguments that its properties do not name.
SAYS_MORE = {"$ref", "$dynamicRef", "additionalProperties", "patternProperties", "unevaluatedProperties"}
SAYS_MORE |= {"allOf", "anyOf", "oneOf", "if", "dependentSchemas"}
# Python's regular expressions can take forever. Only patterns without a repeated group and with few unbounded
# repetitions are applied, to texts of this length at most: 200 ** 4 / 24 steps, a second, at the very worst.
PATTERN_CHARS, UNBOUNDED = 200, 4
CLASS_OR_ESCAPE = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)


def schema_fault(schema: Any, arguments: dict[str, Any]) -> str:
    """Say what is wrong with a call's arguments under a tool's JSON schema; empty if nothing.

    A fault of the schema itself starts with `schema: `. Arguments that the schema does not name are a fault,
    unless it says more about them: no function takes them.
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
        # What jsonschema raises for schemas that pass its own check: a $ref to no schema, a number too large.
        return f"schema: it cannot be applied: {str(fault)[:FAULT_CHARS]}"
    if error is not None:
        place = ".".join(str(part) for part in error.absolute_path)
        return f"{place + ': ' if place else ''}{error.message}"[:FAULT_CHARS]
    known = schema.get("properties") if isinstance(schema, dict) else None
    if isinstance(known, dict) and SAYS_MORE.isdisjoint(schema):
        unknown = sorted(set(arguments) - set(known))
        if unknown:
            return f"unknown arguments {', '.join(unknown)}; known: {', '.join(sorted(known)) or 'none'}"
    return ""


@functools.lru_cache(maxsize=4096)
def _validator(schema: str) -> Any:
    value = json.loads(schema)
    kind = jsonschema.validators.validator_for(value, default=jsonschema.Draft202012Validator)
    kind.check_schema(value)
    for name in _pattern_names(value):
        if not is_quick(name):
            raise jsonschema.exceptions.SchemaError(f"the pattern {name[:80]!r} may take forever")
    quick = jsonschema.validators.extend(kind, {"pattern": _match_quickly})
    return quick(value, registry=referencing.Registry())  # an empty registry: no schema is fetched from outside


def _match_quickly(_validator: Any, pattern: str, text: Any, _schema: Any) -> Iterator[Any]:
    """Apply `pattern` where that is quick; elsewhere the text passes."""
    applies = isinstance(text, str) and len(text) <= PATTERN_CHARS and is_quick(pattern)
    if applies and not re.search(pattern, text):
        yield jsonschema.exceptions.ValidationError(f"{text!r} does not match {pattern!r}")


def is_quick(pattern: str) -> bool:
    """Say whether a pattern surely fails in a short time on a short text.

    >>> is_quick(r"^[A-Z]{2}-\\d+$"), is_quick("(a+)+$"), is_quick("(a|a)*b"), is_quick("a*a*a*a*a*b")
    (True, False, False, False)
    """
    bare = CLASS_OR_ESCAPE.sub("x", pattern)
    return not re.search(r"\)[*+{]", bare) and len(re.findall(r"[*+]|\{\d*,\}", bare)) <= UNBOUNDED


def _pattern_names(schema: Any) -> Iterator[str]:
    """Find the patterns that name properties, anywhere in a schema."""
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            named = value.get("patternProperties")
            yield from named if isinstance(named, dict) else ()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
