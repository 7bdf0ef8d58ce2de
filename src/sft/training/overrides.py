"""The fields of `bridge` in params.yaml, checked against the classes of the installed Megatron-Bridge, and set last.

    check(values, classes)      unknown fields, with the nearest name, and values of another type: InputError
    apply(container, values)    the same for a ConfigContainer, and set them
    ignored(container, values)  after Bridge completed the config: fields that no longer have their value

A field of a section that is itself a dataclass takes its fields; a torch dtype is written by its name (bfloat16), an
enum by the name of its member.
"""

import dataclasses
import difflib
import enum
import inspect
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError

from sft.cli import InputError

PLACE = "params.yaml: bridge"
Values = Mapping[str, Mapping[str, Any]]


def section_classes(container: type) -> dict[str, list[type]]:
    """Return the dataclasses that each section of a ConfigContainer can be, or dict."""
    names = [field.name for field in dataclasses.fields(container) if not field.name.startswith("_")]
    return {name: found for name in names if (found := _classes(type_of(container, name)))}


def check(values: Values, classes: Mapping[str, list[type]]) -> None:
    """Raise InputError with every unknown section, unknown field, and value of another type."""
    if messages := list(_faults(values, classes)):
        raise InputError("\n".join(messages))


def apply(container: Any, values: Values) -> None:
    """Set fields of a ConfigContainer. Raises InputError: as check, and a new section lacks a field."""
    classes = section_classes(type(container))
    for name in values:
        if name in classes and getattr(container, name) is not None:
            classes[name] = [type(getattr(container, name))]
    check(values, classes)
    for name, section in values.items():
        current = getattr(container, name)
        if isinstance(current, dict):
            current.update(section)
            continue
        converted = {field: convert(value, type_of(classes[name][0], field)) for field, value in section.items()}
        if current is None:
            try:
                setattr(container, name, classes[name][0](**converted))
            except TypeError as error:
                raise InputError(f"{PLACE}.{name}: {error}") from error
        else:
            for field, value in converted.items():
                setattr(current, field, value)


def ignored(container: Any, values: Values) -> list[str]:
    """Return the fields that have another value than was set: Bridge, the recipe or mixed_precision changed it."""
    return [
        f"{PLACE}.{name}.{field}: Megatron-Bridge replaces {value!r} by {found!r} for these params."
        for name, section in values.items()
        if not isinstance(getattr(container, name), dict)
        for field, value in section.items()
        if (found := getattr(getattr(container, name), field))
        != convert(value, type_of(type(getattr(container, name)), field))
    ]


def _faults(values: Values, classes: Mapping[str, list[type]]) -> Iterator[str]:
    for name, section in values.items():
        if name not in classes:
            near = difflib.get_close_matches(name, classes, n=1, cutoff=0.0)
            yield f"{PLACE}.{name}: ConfigContainer has no such section. Did you mean {near[0]}? Known: " + ", ".join(
                sorted(classes)
            )
            continue
        fields = _fields(classes[name])
        for field, value in section.items():
            if fields is not None and field not in fields:
                owner = classes[name][0].__name__
                yield f"{PLACE}.{name}.{field}: {owner} has no such field. {_nearest(field, name, classes)}"
            elif fields is not None and all(_mistake(value, type_of(owner, field)) for owner in fields[field]):
                expected = type_of(fields[field][0], field)
                yield f"{PLACE}.{name}.{field}: {_mistake(value, expected)}; found {value!r} ({type(value).__name__})."
            elif fields is None and not isinstance(value, str | int | float | bool):
                yield f"{PLACE}.{name}.{field}: expected a text or a number; found {value!r} ({type(value).__name__})."


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


def _mistake(value: Any, hint: Any) -> str:
    """Return what is wrong with a value for a type, "" if nothing."""
    try:
        convert(value, hint)
    except ValidationError as error:
        return "; ".join(dict.fromkeys(fault["msg"] for fault in error.errors()))
    return ""


def convert(value: Any, hint: Any) -> Any:
    """Return a value of YAML as a type has it. Raises ValidationError: it is none of that type."""
    for part in (hint, *typing.get_args(hint)):
        if part is torch.dtype and isinstance(value, str) and isinstance(getattr(torch, value, None), torch.dtype):
            return getattr(torch, value)
        if isinstance(part, type) and issubclass(part, enum.Enum) and value in part.__members__:
            return part[value]
    return TypeAdapter(hint, config=ConfigDict(strict=True, arbitrary_types_allowed=True)).validate_python(value)
