"""The page of all params: as committed, complete, and right about what reruns."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from sft.files import REPOSITORY
from sft.params.explain import known_keys
from sft.params.schema import Params
from sft.params.training import Checkpoint
from tests.support.params_page import (
    PAGE,
    Key,
    field_docs,
    first_stage,
    optional_keys,
    section_keys,
    type_text,
    write_page,
)

DECLARED = {
    "fetch": ["fetch.sources.${key}.uri"],
    "filter": ["fetch.sources.${key}.read", "filter"],
    "pack": ["fetch.sources", "pack"],
}


def rows() -> dict[str, list[str]]:
    """The rows of the committed page by key, without the key."""
    lines = [line for line in (REPOSITORY / PAGE).read_text().splitlines() if line.startswith("| `")]
    return {line.split(" | ")[0].strip("| `"): line.strip("| ").split(" | ")[1:] for line in lines}


def test_the_committed_page_is_what_the_program_writes():
    assert (REPOSITORY / PAGE).read_text() == write_page(REPOSITORY), "run: python -m tests.support.params_page"


def test_every_key_has_a_type_and_a_meaning():
    assert list(rows()) == [key for key in known_keys(Params) if key not in Params.model_fields]
    for key, (kind, *_, meaning) in rows().items():
        assert kind, key
        assert len(meaning) > 10, key
        assert meaning.endswith("."), key


def test_defaults_are_those_of_params_yaml():
    values = YAML(typ="safe").load(REPOSITORY / "params.yaml")
    assert rows()["pack.pack_size"][1] == f"`{values['pack']['pack_size']}`"
    assert rows()["filter.judge.model"][1] == "`null`"
    assert rows()["fetch.sources.<name>.uri"][1] == "required"
    assert rows()["fetch.sources.<name>.domain"][1] == "`unspecified`"


def leaves_out(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each key of params.yaml outside of entries, and the values without it."""
    for name in values:
        key = f"{above}{name}"
        without = {other: value for other, value in values.items() if other != name}
        if above:
            yield key, without
        if type(values[name]) is dict and key != "fetch" and values[name]:
            yield from ((inner, {**without, name: left}) for inner, left in leaves_out(values[name], f"{key}."))


def is_valid(values: dict[str, Any]) -> bool:
    try:
        Params.model_validate(values)
    except ValidationError:
        return False
    return True


def test_the_keys_that_may_be_left_out_are_listed():
    values = YAML(typ="safe").load(REPOSITORY / "params.yaml")
    assert is_valid(values)
    optional = {key for key, left in leaves_out(values) if is_valid(left)}
    listed = {key for key, _ in optional_keys()}
    here = {key for key, _ in leaves_out(values)} - {"train.train_iters"}  # one of it and epochs is needed
    assert {"prep.max_tokens", "eval.engine"} <= optional == listed & here
    page = (REPOSITORY / PAGE).read_text()
    assert all(f"`{key}`\n(" in page or f"`{key}` (" in page for key in listed)


@pytest.mark.parametrize(
    ("key", "stage"),
    [
        ("fetch.sources.<name>.uri", "fetch@<name>"),
        ("fetch.sources.<name>.read.max_rows", "filter@<name>"),
        ("fetch.sources.<name>.epochs", "pack"),
        ("filter.judge.model", "filter"),
        ("pack.seed", "pack"),
        ("train.train_iters", ""),
    ],
)
def test_the_first_stage_that_declares_a_key_reruns(key, stage):
    assert first_stage(key, DECLARED) == stage


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "integer", "exclusiveMinimum": 0, "maximum": 16777216}, "integer > 0, <= 16777216"),
        ({"type": "number", "minimum": 0.5}, "number >= 0.5"),
        ({"anyOf": [{"type": "boolean"}, {"type": "null"}]}, "true or false or null"),
        ({"enum": ["last", "best"]}, "one of `last`, `best`"),
        ({"const": 1}, "`1`"),
        ({"type": "array", "items": {"type": "string"}}, "list of text"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "mapping to text"),
        ({"type": "object", "patternProperties": {"^a$": {"$ref": "#/$defs/Source"}}}, "entries by name"),
    ],
)
def test_types_are_read_from_the_schema(schema, text):
    assert type_text(schema) == text


def test_a_meaning_is_the_text_below_the_field():
    assert field_docs(Checkpoint)["save_interval"] == "Steps between two checkpoints."
    values = {"save_interval": 7}
    first = next(section_keys(Checkpoint, "checkpoint", values, {"train": ["checkpoint"]}))
    assert first == Key("checkpoint.save_interval", "integer > 0", "`7`", "train", "Steps between two checkpoints.")
