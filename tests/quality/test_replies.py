"""Replies: what is whole, though it ends oddly."""

import pytest

from sft.quality.consistency import check_consistency
from tests.quality.test_consistency import answered


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
