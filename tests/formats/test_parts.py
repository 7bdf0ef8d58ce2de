"""Parts of a content: results of tools are known by their type or by their key."""

import pytest

from sft.formats.flags import UnfitRowError
from sft.formats.not_read import NotRead
from sft.formats.parts import is_result_part, read_id, read_part, text_of


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "tool_response", "value": "1"}, True),
        ({"functionResponse": {"response": {}}}, True),
        ({"type": "text", "text": "a"}, False),
        ("a", False),
    ],
)
def test_a_result_is_known_by_its_type_or_its_key(part, expected):
    assert is_result_part(part) is expected


def test_texts_are_joined_and_a_picture_is_no_text():
    assert text_of(["a", {"type": "text", "value": "b"}], "content", NotRead()) == "ab"
    with pytest.raises(UnfitRowError, match="non-text-content"):
        read_part({"type": "image_url", "image_url": "a.jpg"}, NotRead())


def test_an_id_is_text():
    assert (read_id(7, "id"), read_id("a", "id")) == ("7", "a")
    with pytest.raises(UnfitRowError, match="malformed-row"):
        read_id(True, "id")
