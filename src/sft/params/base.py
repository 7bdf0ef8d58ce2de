"""The base class of all sections of params.yaml, and types of their values."""

import hashlib
import json
import re
from collections.abc import Collection
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
MAX_INT = (1 << 53) - 1  # the largest that YAML, JSON and NumPy all keep
Positive = Annotated[int, Field(gt=0, le=MAX_INT)]
Seed = Annotated[int, Field(ge=0, lt=1 << 31)]
Name = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9-]*$")]
LICENSE_CHARS = 120  # of the name of a license that a row states
AND = r"(?<![^\s)])and(?![^\s(])"
OR = r"(?<![^\s)])or(?![^\s(])(?!\s+(?:any\s+)?(?:later|newer))"  # "GPL 3 or later" is one license


class Section(BaseModel):
    """A section of params.yaml: unknown keys, missing keys and other types are errors; values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def license_choices(text: str) -> list[list[str]]:
    """Return what a license asks for: one of each list. A comma is an `and` that binds least; brackets group.

    >>> license_choices("Apache-2.0, MIT AND (CC0-1.0 OR CC-BY-4.0)")
    [['Apache-2.0'], ['MIT'], ['CC0-1.0', 'CC-BY-4.0']]
    """
    every = _split(text, ",")
    if len(every) == 1:
        if len(choice := _split(text, OR)) > 1:
            return [choice]
        if len(every := _split(text, AND)) == 1:
            return license_choices(text[1:-1]) if text[:1] == "(" and text[-1:] == ")" else [[text]]
    return [choice for each in every for choice in license_choices(each)]


def _split(text: str, operator: str) -> list[str]:
    """Return the parts of a text between operators that are outside of brackets."""
    parts, depth = [""], 0
    for token in re.split(rf"([()]|{operator})", text, flags=re.IGNORECASE):
        depth += {"(": 1, ")": -1}.get(token, 0)
        if depth == 0 and re.fullmatch(operator, token, re.IGNORECASE):
            parts.append("")
        else:
            parts[-1] += token
    return [part.strip() for part in parts]


def license_names(text: str) -> set[str]:
    """Return the licenses that a text names; a choice of some is one of them.

    >>> sorted(license_names("Apache-2.0, MIT and CC-BY-4.0")), license_names("MIT OR CC0-1.0")
    (['Apache-2.0', 'CC-BY-4.0', 'MIT'], {'MIT or CC0-1.0'})
    """
    return {" or ".join(choice) for choice in license_choices(text)} - {""}


def is_under(license: str, excluded: Collection[str]) -> bool:
    """Return whether a license is excluded, in any case of letters: by name, or all that it lets you choose from.

    One of `excluded` that names several, as reports write it, excludes what names all of them.

    >>> is_under("MIT and GPL-3.0", ["gpl-3.0"]), is_under("MIT", ["MIT, GPL-3.0"])
    (True, False)
    >>> is_under("MIT OR GPL-3.0", ["GPL-3.0"]), is_under("MIT OR GPL-3.0", ["MIT", "GPL-3.0"])
    (False, True)
    """
    names = license_names(license.casefold())
    if any(set() < license_names(each.casefold()) <= names for each in excluded):
        return True
    choices = [choice for choice in license_choices(license) if len(choice) > 1]
    return any(all(is_under(each, excluded) for each in choice) for choice in choices)


def license_name(value: Any) -> str:
    """Return what a row says about its license as one line: names of a list with commas; "" if it says nothing.

    The whole text of a license is cut after LICENSE_CHARS, with a hash of it, so that it can be a key of a report.

    >>> license_name(["MIT", "CC0-1.0"]), license_name("  MIT "), license_name(None)
    ('MIT, CC0-1.0', 'MIT', '')
    """
    values = value if isinstance(value, list) else [value or ""]
    texts = (each if isinstance(each, str) else json.dumps(each, sort_keys=True) for each in values)
    name = ", ".join(" ".join(text.split()) for text in texts)
    if len(name) <= LICENSE_CHARS:
        return name
    return f"{name[:LICENSE_CHARS]}... ({hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]})"
