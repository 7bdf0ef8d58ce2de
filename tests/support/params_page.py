"""Write docs/reference/params.md: every key of params.yaml with its type, default, meaning and the stage it reruns.

python -m tests.support.params_page
"""

import ast
import inspect
import itertools
import json
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel
from ruamel.yaml import YAML

from sft.cli import echo, make_parser, run_or_exit
from sft.files import REPOSITORY, publish_file
from sft.params.base import MAX_INT
from sft.params.schema import Params

PAGE = Path("docs/reference/params.md")
ENTRY = "<name>"  # of a source or an evaluation set
TYPES = {"integer": "integer", "number": "number", "boolean": "true or false", "string": "text", "null": "null"}
LIMITS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
INTRODUCTION = """\
# Reference of params

<!-- Written by `python -m tests.support.params_page` from the schema in src/sft/params/. Do not edit. -->

`params.yaml` is the only configuration: it determines the data and the model. Where things run is set in the
environment (`CLUSTER`, `MLFLOW_TRACKING_URI`, `SFT_PROCESSES`) and never changes a result.

Edit the file and run `make repro`, or try a value with `dvc exp run -S optimizer.lr=1e-5`. Every key is required,
except those of a source, an evaluation set or the base model that have a default below, and the keys below. An unknown
key, a wrong type or a value out of range is an error before a stage runs; it shows the line and the key that you
probably meant.

{optional}

*Default* is the value in this repository's `params.yaml`; for entries that you name (`<name>`) it applies if the key is
left out. *Reruns* is the first stage that runs again after a change; the stages that depend on its result follow.
"""


class Key(NamedTuple):
    """One row of the page."""

    name: str
    type: str
    default: str
    reruns: str
    meaning: str


def write_page(root: Path) -> str:
    """Return the page for the params.yaml and dvc.yaml of a repository."""
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load((root / "params.yaml").read_text(encoding="utf-8"))
    stages = yaml.load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    declared = {name: stage.get("do", stage).get("params", []) for name, stage in stages.items()}
    optional = ", ".join(f"`{name}` ({default})" for name, default in optional_keys())
    parts = [INTRODUCTION.replace("{optional}", textwrap.fill(f"Keys that may be left out: {optional}.", 120))]
    for section, field in Params.model_fields.items():
        model = typing.cast(type[BaseModel], field.annotation)
        parts += [f"## {section}\n\n{inspect.getdoc(model)}\n"]
        if not model.model_fields:
            continue
        parts += ["| key | type | default | reruns | meaning |\n|---|---|---|---|---|"]
        for key in section_keys(model, section, values[section], declared):
            parts[-1] += f"\n| `{key.name}` | {key.type} | {key.default} | {key.reruns} | {key.meaning} |"
        parts[-1] += "\n"
    return "\n".join(parts)


def optional_keys() -> Iterator[tuple[str, str]]:
    """Yield the keys outside of entries that may be left out, and what they are then."""
    for section, field in Params.model_fields.items():
        model = typing.cast(type[BaseModel], field.annotation)
        for name, inner in model.model_fields.items():
            if not inner.is_required() and not _section_of(inner.annotation)[1]:
                yield f"{section}.{name}", _shown(inner.get_default(call_default_factory=True))


def section_keys(
    model: type[BaseModel], prefix: str, values: Any, declared: Mapping[str, list[str]], *, in_entry: bool = False
) -> Iterator[Key]:
    """Yield the keys of a section and of the sections in it. In an entry that you name, defaults are the schema's."""
    schema = model.model_json_schema()
    docs = field_docs(model)
    for name, field in model.model_fields.items():
        key = f"{prefix}.{name}"
        section, is_entry = _section_of(field.annotation)
        if section is not None and not in_entry:
            default = ""
        elif isinstance(values, dict) and name in values:
            default = _shown(values[name])
        else:
            default = "required" if field.is_required() else _shown(field.get_default(call_default_factory=True))
        kind = type_text(schema["properties"][name])
        reruns = first_stage(key, declared) if section is None or in_entry else ""
        yield Key(key, kind, default, reruns, docs[name])
        if section is not None:
            inside = f"{key}.{ENTRY}" if is_entry else key
            below = values.get(name) if isinstance(values, dict) and not is_entry else None
            yield from section_keys(section, inside, below, declared, in_entry=in_entry or is_entry)


def _section_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """Return the section that a key holds, if any, and whether it holds entries by name."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    parts = typing.get_args(annotation)
    sections = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
    return (sections[0] if sections else None), typing.get_origin(annotation) is dict and bool(sections)


def field_docs(model: type[BaseModel]) -> dict[str, str]:
    """Return the text below each field of a section, also of the fields that it inherits."""
    docs: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if owner is not BaseModel and issubclass(owner, BaseModel) and owner.__module__.startswith("sft."):
            body = typing.cast(ast.ClassDef, ast.parse(inspect.getsource(owner)).body[0]).body
            for node, below in itertools.pairwise(body):
                is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and is_text:
                    docs[node.target.id] = " ".join(str(below.value.value).split())  # type: ignore[attr-defined]
    return docs


def type_text(schema: Mapping[str, Any]) -> str:
    """Return the type of a key and its allowed values, from its JSON schema.

    >>> type_text({"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "null"}]})
    'number >= 0, <= 1; or null'
    """
    if "$ref" in schema:
        return "section"
    if "anyOf" in schema:
        *first, last = [type_text(option) for option in schema["anyOf"]]
        return f"{', '.join(first)}{';' if '=' in first[-1] or '<' in first[-1] else ''} or {last}"
    if "enum" in schema:
        return "one of " + ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema["type"] == "array":
        return f"list of {type_text(schema['items'])}"
    if schema["type"] == "object":
        value = next(iter(schema.get("patternProperties", {}).values()), schema.get("additionalProperties", {}))
        return "entries by name" if "$ref" in value else f"mapping to {type_text(value)}"
    limits = ", ".join(
        f"{sign} {_plain(schema[name])}" for name, sign in LIMITS.items() if schema.get(name, MAX_INT) != MAX_INT
    )
    return f"{TYPES[schema['type']]} {limits}".strip()


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)


def first_stage(key: str, declared: Mapping[str, list[str]]) -> str:
    """Return the first stage of dvc.yaml that depends on a key; empty if there is none."""
    for stage, params in declared.items():
        for param in params:
            name = param.replace("${key}", ENTRY)
            if key == name or key.startswith(f"{name}."):
                return f"{stage}@{ENTRY}" if name != param else stage
    return ""


def _shown(value: Any) -> str:
    if isinstance(value, dict | types.NoneType | bool | list | int | float):
        return f"`{json.dumps(value, ensure_ascii=False)}`"
    return f"`{value}`" if value else "empty"


def main() -> None:
    """Write the page of this repository."""
    with publish_file(REPOSITORY / PAGE) as partial:
        partial.write_text(write_page(REPOSITORY), encoding="utf-8")
    echo(f"wrote {PAGE}")


if __name__ == "__main__":
    make_parser(__name__, __doc__).parse_args()
    run_or_exit(main)
