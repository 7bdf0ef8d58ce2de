"""Shapes: what they keep of a conversation, and examples with texts of their own."""

import jinja2

from sft.conversation import Conversation
from sft.formats.messages import normalize
from sft.tokens.shapes import Turn, example_of, shape_of, texts_looked_for

ASK, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}


def test_a_shape_has_roles_and_what_a_message_has_beside_its_text():
    shape = shape_of([ASK, ANSWER | {"content": " ", "tool_calls": [CALL, CALL], "loss": False}], [CALL])
    assert shape.turns == (
        Turn("user", is_blank=False, thinks=False, calls=0, has_id=False, is_trained=True),
        Turn("assistant", is_blank=True, thinks=False, calls=2, has_id=True, is_trained=False),
    )
    assert (shape.has_tools, shape.is_whole) == (True, True)
    assert shape_of([ASK | {"content": "x"}, ANSWER], None) == shape_of([ASK, ANSWER | {"content": "y"}], None)


def test_repeated_turns_of_a_long_conversation_count_a_few_times():
    shapes = {shape_of([ASK, ANSWER] * number, None) for number in range(5, 30)}
    assert len(shapes) == 1
    assert not shapes.pop().is_whole
    assert len({shape_of([ASK, ANSWER] * number, None) for number in range(1, 5)}) == 4


def test_an_example_has_the_shape_it_was_made_for_and_no_text_twice():
    result = {"role": "tool", "content": "c", "tool_call_id": "1"}
    messages = [ASK, ANSWER | {"tool_calls": [CALL], "reasoning_content": "r"}, result, ANSWER | {"loss": False}, ASK]
    shape = shape_of(messages, [CALL])
    example, tools = example_of(shape)
    normal = normalize({"messages": example, "tools": tools})
    assert isinstance(normal, Conversation)
    assert shape_of(normal.messages, normal.tools) == shape
    texts = [text for _, text in normal.parts() if text]
    assert all(sum(text in other for other in texts) == 1 for text in texts)
    assert example[2]["tool_call_id"] == example[1]["tool_calls"][0]["id"]


def test_texts_that_a_template_looks_for_are_found_and_role_names_are_not():
    source = (
        "{% if m.role == 'user' and '</think>' in m.content %}{{ m.content.split('[X]')[0] + '<|end|>' }}{% endif %}"
    )
    assert texts_looked_for(jinja2.Environment(autoescape=True).parse(source)) == ("</think>", "[X]")
