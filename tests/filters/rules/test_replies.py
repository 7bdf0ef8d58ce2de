"""Rules about answers: what is complete though it ends oddly, and the script of a text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.filters.rules.consistency import check_consistency
from sft.filters.rules.replies import FENCE, _fences, _script
from tests.filters.rules.test_consistency import answered


@pytest.mark.parametrize(
    "answer",
    [
        "```python\nprint(1)\n```",
        "~~~sh\nls\n~~~",
        "Use ```python inline``` so.",
        "```\nprint(1)",
        '{"a": 1}',
        "[1] A footnote that begins like a list",
        "The word is the",
    ],
)
def test_a_whole_answer_is_not_truncated(answer: str) -> None:
    assert check_consistency(answered(answer)) is None


LINE_PARTS = st.sampled_from(["```", "~~~", "`", "~", "python", " ", "\t", "x = 1", "\n", "\r", "\u2028"])


@given(st.lists(LINE_PARTS, max_size=40).map("".join))
def test_fences_are_the_lines_that_the_regex_finds(text: str) -> None:
    assert [fence.span() for fence in _fences(text)] == [fence.span() for fence in FENCE.finditer(text)]


@pytest.mark.parametrize(
    ("latin", "greek", "script"), [(95, 5, "LATIN"), (94, 5, ""), (29, 0, ""), (30, 0, "LATIN"), (1, 40, "GREEK")]
)
def test_a_script_has_nearly_all_letters_and_marks_outside_ascii_are_none(latin: int, greek: int, script: str) -> None:
    assert _script("a" * latin + "λ" * greek) == _script("“ ”…" * 50 + "λ" * greek + "a" * latin) == script


def test_a_link_counts_as_letters_only_where_all_is_ascii() -> None:
    assert _script("https://example.org/" + "a" * 30) == "LATIN"
    assert _script("https://example.org/" + "a" * 30 + " " + "λ" * 30) == "GREEK"
