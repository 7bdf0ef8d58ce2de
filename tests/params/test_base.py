"""Sections are strict: no unknown key, no missing key, no conversion, no change."""

import pytest
from pydantic import ValidationError

from sft.params.base import Digest, Name, Positive, Section, Share


class Example(Section):
    share: Share
    count: Positive
    name: Name
    digest: Digest


VALID = {"share": 0.5, "count": 1, "name": "my-source2", "digest": "0" * 64}


def test_a_section_takes_its_keys_and_nothing_else():
    assert Example.model_validate(VALID).model_dump() == VALID


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("share", 1.5),
        ("share", float("nan")),
        ("share", "0.5"),
        ("count", 0),
        ("count", 1.5),
        ("count", True),
        ("name", "My Source"),
        ("name", "-a"),
        ("digest", "0" * 63),
        ("digest", "A" * 64),
        ("other", 1),
    ],
)
def test_a_wrong_value_or_an_unknown_key_is_an_error_at_the_key(key, value):
    with pytest.raises(ValidationError) as error:
        Example.model_validate({**VALID, key: value})
    assert [fault["loc"] for fault in error.value.errors()] == [(key,)]


@pytest.mark.parametrize("key", list(VALID))
def test_a_missing_key_is_an_error(key):
    with pytest.raises(ValidationError) as error:
        Example.model_validate({name: value for name, value in VALID.items() if name != key})
    assert [(fault["loc"], fault["type"]) for fault in error.value.errors()] == [((key,), "missing")]


def test_a_section_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Example.model_validate(VALID).count = 2
