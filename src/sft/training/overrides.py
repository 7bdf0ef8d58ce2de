"""The fields of `bridge` in params.yaml, checked against the classes of the installed Megatron-Bridge, and set last.

    check(values, classes)      unknown fields, with the nearest name, and values of another type: InputError
    apply(container, values)    the same for a ConfigContainer, and set them
    ignored(container, values)  after Bridge completed the config: fields that no longer have their value

A torch dtype is written by its name (bfloat16), an enum by the name of its member, a tuple as a list, a dataclass by
those of its fields that change.
"""

import copy
import dataclasses
import difflib
import enum
import functools
import inspect
import operator
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, PlainValidator, Strict, TypeAdapter, ValidationError

from sft.cli import InputError

PLACE = "params.yaml: bridge"
STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)
UNKNOWN = object()
"""The value that a field has before it is set, where no ConfigContainer is there."""
Values = Mapping[str, Mapping[str, Any]]


def section_classes(container: type) -> dict[str, list[type]]:
    """Return the dataclasses that each section of a ConfigContainer can be, or dict."""
    names = [field.name for field in dataclasses.fields(container) if not field.name.startswith("_")]
    return {name: found for name in names if (found := _classes(type_of(container, name)))}


def check(values: Values, classes: Mapping[str, list[type]], container: Any = None) -> None:
    """Raise InputError with every unknown section, unknown field, and value of another type.

    With a ConfigContainer, also where a dataclass that it does not have yet lacks a field.
    """
    if messages := list(_faults(values, classes, container)):
        raise InputError("\n".join(messages))


def apply(container: Any, values: Values) -> None:
    """Set fields of a ConfigContainer. Raises InputError: as check, and a new section lacks a field."""
    classes = section_classes(type(container))
    for name in values:
        if name in classes and getattr(container, name) is not None:
            classes[name] = [type(getattr(container, name))]
    check(values, classes, container)
    for name, section in values.items():
        current = getattr(container, name)
        if isinstance(current, dict):
            current.update(section)
            continue
        converted = {
            field: convert(value, type_of(classes[name][0], field), getattr(current, field, None))
            for field, value in section.items()
        }
        if current is None:
            try:
                setattr(container, name, classes[name][0](**converted))
            except (TypeError, AssertionError) as error:
                raise InputError(f"{PLACE}.{name}: {error}") from error
        else:
            for field, value in converted.items():
                setattr(current, field, value)


def ignored(container: Any, values: Values) -> list[str]:
    """Return the fields that have another value than was set: Bridge, the recipe or mixed_precision changed it."""
    messages = []
    for name, section in values.items():
        current = getattr(container, name)
        if isinstance(current, dict):
            continue
        for field, value in section.items():
            found = getattr(current, field, None)
            if current is None or found != convert(value, type_of(type(current), field), found):
                messages.append(f"{PLACE}.{name}.{field}: Megatron-Bridge replaces {value!r} by {found!r} here.")
    return messages


def _faults(values: Values, classes: Mapping[str, list[type]], container: Any) -> Iterator[str]:
    for name, section in values.items():
        if name not in classes:
            near = difflib.get_close_matches(name, classes, n=1, cutoff=0.0)
            yield f"{PLACE}.{name}: ConfigContainer has no such section. Did you mean {near[0]}? Known: " + ", ".join(
                sorted(classes)
            )
            continue
        fields = _fields(classes[name])
        for field, value in section.items():
            current = UNKNOWN if container is None else getattr(getattr(container, name), field, None)
            if fields is not None and field not in fields:
                owner = classes[name][0].__name__
                yield f"{PLACE}.{name}.{field}: {owner} has no such field. {_nearest(field, name, classes)}"
                continue
            if fields is not None:
                mistakes = [_mistake(value, type_of(owner, field), current) for owner in fields[field]]
            else:
                mistakes = ["" if isinstance(value, str | int | float | bool) else "expected a text or a number"]
            if all(mistakes):
                yield f"{PLACE}.{name}.{field}: {mistakes[0]}; found {value!r} ({type(value).__name__})."


def _nearest(field: str, section: str, classes: Mapping[str, list[type]]) -> str:
    """Return the question that names the nearest field: of this section, or the same name in another one."""
    fields = _fields(classes[section]) or {}
    known = [other for other in classes if field in (_fields(classes[other]) or {})]
    near = difflib.get_close_matches(field, fields, n=1, cutoff=0.75)
    if near or not known:
        near = near or difflib.get_close_matches(field, fields, n=1, cutoff=0.0)
        return f"Did you mean {section}.{near[0]}?"
    return f"Did you mean {known[0]}.{field}?"


def _fields(classes: list[type]) -> dict[str, list[type]] | None:
    """Return which of the classes have each field; None for a dict."""
    if classes == [dict]:
        return None
    found: dict[str, list[type]] = {}
    for owner in classes:
        for field in dataclasses.fields(owner):
            if not field.name.startswith("_"):
                found.setdefault(field.name, []).append(owner)
    return found


def type_of(owner: type, field: str) -> Any:
    """Return the type of a field of a dataclass, read from the class that declares it; Any if it has no meaning."""
    for base in owner.__mro__:
        if field in (annotations := inspect.get_annotations(base)):
            declared = types.SimpleNamespace(__annotations__={field: annotations[field]})
            try:
                return typing.get_type_hints(declared, vars(sys.modules[base.__module__]))[field]
            except NameError:  # a name that is imported for type checkers only
                return Any
    return Any


def _classes(hint: Any) -> list[type]:
    """Return the dataclasses in a type, or [dict]."""
    if typing.get_origin(hint) is dict:
        return [dict]
    parts = [hint, *typing.get_args(hint)]
    return [part for part in parts if isinstance(part, type) and dataclasses.is_dataclass(part)]


def _mistake(value: Any, hint: Any, current: Any) -> str:
    """Return what is wrong with a value for a type, "" if nothing."""
    try:
        convert(value, hint, current)
    except ValidationError as error:
        return _message(error)
    return ""


def convert(value: Any, hint: Any, current: Any = None) -> Any:
    """Return a value of YAML as a type has it; a dataclass is `current` with other values in the fields that it names.

    If `current` is UNKNOWN, a dataclass is checked and returned as a dict of its fields.

    Raises ValidationError: it is none of that type.
    """
    return TypeAdapter(_in_yaml(hint, current), config=STRICT).validate_python(value)


def _in_yaml(hint: Any, current: Any) -> Any:
    """Return a type as pydantic reads it from YAML, which has no dtypes, enums, dataclasses and tuples."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is torch.dtype:
        return Annotated[Any, PlainValidator(_dtype)]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return Annotated[Any, PlainValidator(functools.partial(_member, hint))]
    if dataclasses.is_dataclass(hint):
        return Annotated[Any, PlainValidator(functools.partial(_dataclass, hint, current))]
    if tuple in (hint, origin):
        items = tuple(part if part is ... else _in_yaml(part, None) for part in parts or (Any, ...))
        return Annotated[tuple[items], Strict(False)]  # type: ignore[valid-type]
    if origin in (typing.Union, types.UnionType):
        return functools.reduce(operator.or_, (_in_yaml(part, current) for part in parts))
    if origin in (list, dict):
        return origin[tuple(_in_yaml(part, None) for part in parts)]
    return hint


def _dtype(value: Any) -> torch.dtype:
    dtype = getattr(torch, value, None) if isinstance(value, str) else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError("expected the name of a dtype, such as bfloat16")
    return dtype


def _member(owner: type[enum.Enum], value: Any) -> enum.Enum:
    if not isinstance(value, str) or value not in owner.__members__:
        raise ValueError(f"expected one of {', '.join(owner.__members__)}")
    return owner[value]


def _dataclass(owner: Any, current: Any, values: Any) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"expected the fields of {owner.__name__}")
    known = {field.name for field in dataclasses.fields(owner)}
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"{owner.__name__} has no field {unknown[0]!r}, only {', '.join(sorted(known))}")
    old = current if isinstance(current, owner) else None
    inner = UNKNOWN if current is UNKNOWN else None
    try:
        fields = {name: convert(item, type_of(owner, name), getattr(old, name, inner)) for name, item in values.items()}
    except ValidationError as error:
        raise ValueError(_message(error)) from error
    if current is UNKNOWN:
        return fields
    if old is None:
        try:
            return owner(**fields)
        except (TypeError, AssertionError) as error:  # a class of Bridge asserts what it wants
            raise ValueError(f"{owner.__name__}: {str(error) or 'it refuses these values'}") from error
    changed = copy.copy(old)
    for name, item in fields.items():
        object.__setattr__(changed, name, item)  # it may be frozen
    return changed


def _message(error: ValidationError) -> str:
    messages = [
        f"expected a value at index {fault['loc'][-1]}" if fault["type"] == "missing" else fault["msg"]
        for fault in error.errors()
    ]
    return "; ".join(dict.fromkeys(message.removeprefix("Value error, ") for message in messages))
