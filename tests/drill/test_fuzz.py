"""fuzz: a few examples of each target; a target that raises something else is caught."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from tests.drill.fuzz import fuzz, targets


@pytest.mark.parametrize("name", ["rows", "schemas", "templates", "params"])
def test_damaged_input_is_a_message(name: str) -> None:
    ran, failure = fuzz(*targets()[name], 10)
    assert (ran >= 1, failure) == (True, "")


def test_what_is_not_a_message_is_caught_with_its_input() -> None:
    def fails(folder: Path, value: Any) -> None:
        assert value < 1000

    ran, failure = fuzz(st.integers(0, 2000), fails, 200)
    assert ran > 1
    assert "value=1000" in failure
