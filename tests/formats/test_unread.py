"""Keys and columns that no table names: those whose words say that they matter reject the row, the others count."""

import pytest

from sft.conversation import Conversation, Rejection
from sft.formats.messages import normalize

ASK, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def reason(messages, row=None):
    """Return why a row is rejected; empty text if it is kept."""
    outcome = normalize({"messages": messages}, row or {}, {"messages"})
    return outcome.reason if isinstance(outcome, Rejection) else ""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("do_not_train", True),
        ("isTrained", False),
        ("skip_loss", 1),
        ("compute-loss", "no"),
        ("token_weights", [0, 0, 1]),
        ("importance_weight", 0.3),
        ("exclude", True),
        ("metadata", {"is_trained": False}),
        ("flags", {"no_train": "1"}),
    ],
)
def test_a_flag_under_an_unknown_name_rejects_the_row(key, value):
    assert reason([ASK, {**ANSWER, key: value}, ASK, ANSWER]) == "unclear-train-flag"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_loss", 2.31),
        ("train_step", 0),
        ("skip", "a"),
        ("exclude", False),
        ("include", True),
        ("has_context", True),
        ("target_reached", False),
        ("language", "en"),
        ("is_error", False),
        ("finish_reason", "stop"),
        ("thinking_time", "3 seconds"),
        ("judge_reasoning", "It is right."),
        ("tool_call_ids", ["call_1"]),
        ("tool_choice", {"type": "auto"}),
        ("function_call", {"name": None, "arguments": None}),
    ],
)
def test_other_keys_of_an_answer_are_counted(key, value):
    assert reason([ASK, {**ANSWER, key: value}]) == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss_masks", [0, 1]),
        ("train_mask", [0, 0, 0, 1]),
        ("trainable_turns", [3]),
        ("turn_weights", "[0.0, 1.0]"),
        ("train_on_last_turn_only", True),
        ("metadata", {"loss_masks": [0, 1]}),
        ("no_train", 1),
        ("trainable", "no"),
        ("is_train", False),
        ("skip", True),
        ("included", False),
        ("reasoning_loss_mask", [0, 1]),
        ("image_loss_mask", [0, 1, 0, 1]),
        ("train_on_reasoning", False),
    ],
)
def test_flags_of_turns_in_an_unknown_column_reject_the_row(name, value):
    assert reason([ASK, ANSWER, ASK, ANSWER], {name: value}) == "unclear-train-flag"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attention_mask", [1] * 9),
        ("used_in_training", True),
        ("loss", 2.3),
        ("weights", [0.1, 2.5]),
        ("train", 7),
        ("skip_prompt", False),
        ("skip", False),
        ("included", True),
        ("is_train", True),
        ("train_idx", 1),
        ("training_step", 0),
        ("training_source", "on"),
        ("completion_tokens", 1),
        ("completion_tokens", [12, 7]),
        ("is_reasoning_complete", [True]),
        ("cot_source", "on"),
        ("task_completion", True),
    ],
)
def test_other_columns_with_such_words_are_counted(name, value):
    assert reason([ASK, ANSWER, ASK, ANSWER], {name: value}) == ""


def test_a_flag_of_a_part_or_a_call_under_an_unknown_name_rejects_the_row():
    call = {"type": "function", "function": {"name": "f", "arguments": {}}, "masked_out": True}
    assert reason([ASK, {**ANSWER, "tool_calls": [call]}]) == "unclear-train-flag"
    part = {"type": "text", "text": "b", "is_trained": False}
    assert reason([ASK, {**ANSWER, "content": [part]}]) == "unclear-train-flag"


@pytest.mark.parametrize("key", ["scratchpad", "reasoning_steps", "internalMonologue", "rationale"])
def test_a_thought_under_an_unknown_key_rejects_the_row(key):
    assert reason([ASK, {**ANSWER, key: "First count."}]) == "unread-reasoning"
    assert reason([ASK, {**ANSWER, key: "high"}]) == ""
    assert reason([ASK, {**ANSWER, "content": "<think>First count.</think>b", "info": {key: "First count."}}]) == ""


@pytest.mark.parametrize("key", ["cot", "thinking_content", "thoughtProcess", "chain_of_thought"])
def test_known_names_of_a_thought_are_read_in_messages_and_beside_them(key):
    for outcome in (
        normalize({"messages": [ASK, {**ANSWER, key: "First count."}]}),
        normalize({"messages": [ASK, ANSWER]}, {key: "First count."}),
    ):
        assert isinstance(outcome, Conversation), outcome
        assert outcome.messages[1]["reasoning_content"] == "First count."


def test_a_column_that_may_be_a_thought_rejects_the_row_unless_the_answer_has_one():
    assert reason([ASK, ANSWER], {"model_reasoning": "First count."}) == "unplaced-reasoning"
    assert reason([ASK, ANSWER, ASK, ANSWER], {"thoughts": ["First count.", "Then add."]}) == "unplaced-reasoning"
    assert reason([ASK, {**ANSWER, "reasoning_content": "Add."}], {"gemini_thinking": "First count."}) == ""
    assert reason([ASK, {**ANSWER, "content": "First count. b"}], {"model_reasoning": "First count."}) == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reasoning_type", "multi hop"),
        ("reasoningModel", "DeepSeek R1"),
        ("cot_source", "a web page"),
        ("judge_reasoning", "The answer is right."),
        ("is_reasoning_complete", [True]),
    ],
)
def test_a_column_about_a_thought_is_counted(name, value):
    assert reason([ASK, ANSWER], {name: value}) == ""


@pytest.mark.parametrize("key", ["toolInvocations", "tool_uses", "actions", "invalid_tool_calls"])
def test_calls_under_an_unknown_key_reject_the_row(key):
    assert reason([ASK, {**ANSWER, key: [{"name": "f"}]}]) == "unread-call"
    assert reason([ASK, {**ANSWER, key: []}]) == ""
    assert reason([ASK, {**ANSWER, key: [{"name": None}]}]) == ""


def test_what_a_question_is_about_cannot_be_left_out():
    assert reason([{**ASK, "documents": [{"text": "Rome is big."}]}, ANSWER]) == "unread-context"
    assert reason([{**ASK, "file_name": "my report.pdf"}, ANSWER]) == ""
    assert reason([{**ASK, "content": "Rome is big. Is it?", "context": "Rome is big."}, ANSWER]) == ""
    assert reason([ASK, ANSWER], {"options": ["Rome", "Paris"]}) == "unread-options"
    assert reason([ASK, ANSWER], {"choices": {"text": ["Rome", "Paris"], "label": ["A", "B"]}}) == "unread-options"
    assert reason([ASK, ANSWER], {"options": {"temperature": 0.7, "num_ctx": 4096}}) == ""
    assert reason([ASK, ANSWER], {"choices": [{"message": {"content": "b"}}, {"message": {"content": "c"}}]}) == ""
    assert reason([ASK, ANSWER], {"A": "Rome", "B": "Paris"}) == "unread-options"
    assert reason([{"role": "user", "content": "Rome or Paris?"}, ANSWER], {"options": ["Rome", "Paris"]}) == ""


def test_an_answer_that_is_not_whole_or_not_read_rejects_the_row():
    assert reason([ASK, {**ANSWER, "finish_reason": "length"}]) == "cut-answer"
    assert reason([ASK, ANSWER], {"finish_reason": "length"}) == "cut-answer"
    assert reason([ASK, ANSWER], {"metadata": {"finish_reason": "stop"}}) == ""
    assert reason([ASK, ANSWER, ASK], {"response": "c"}) == "unread-answer"
    assert reason([ASK, ANSWER], {"response": "b"}) == ""


def test_a_tag_in_code_stands_for_no_column_that_holds_text():
    html = {"role": "assistant", "content": "Write <video> around it."}
    assert reason([ASK, html], {"solution": "b", "answer": "b"}) == ""
    assert reason([ASK, html], {"video_ids": [7]}) == "non-text-content"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("documents", [{"title": "T", "text": "A long passage."}]),
        ("context", "A long passage."),
        ("retrieved_chunks", ["A long passage."]),
        ("sourceDocuments", "A long passage."),
    ],
)
def test_documents_in_a_column_reject_the_row_unless_a_message_has_them(name, value):
    assert reason([ASK, ANSWER], {name: value}) == "unread-context"
    shown = {"role": "user", "content": "From: A  long\npassage."}
    assert reason([shown, ANSWER], {name: value}) == ""


@pytest.mark.parametrize(
    "value",
    [
        [{"title": "On it", "text": "A long passage.", "url": "https://example.org/a/b/c"}],
        [{"page_content": "A long passage.", "metadata": {"source": "my files of 2020.pdf"}}],
        {"docs": [{"id": "d1", "text": "A long passage."}]},
        '[{"title": "Its size", "text": "A long passage."}]',
        ['A "long"\npassage.'],
    ],
    ids=str,
)
def test_a_message_has_documents_if_it_has_their_texts(value):
    shown = [{"role": "user", "content": 'From: {"text": "A \\"long\\"\\npassage."}'}, ANSWER]
    plain = [{"role": "user", "content": "From: A long passage."}, ANSWER]
    assert (reason(shown, {"documents": value}), reason(plain, {"documents": value})) == ("", "")
    assert reason([{**plain[0], "documents": value}, ANSWER]) == ""
    assert reason([ASK, ANSWER], {"documents": value}) == "unread-context"
    assert reason([{**ASK, "documents": value}, ANSWER]) == "unread-context"


@pytest.mark.parametrize("name", ["retrieved_at", "document_ids", "contextWindow", "document_page"])
def test_what_is_said_about_documents_is_counted(name):
    assert reason([ASK, ANSWER], {name: "a text of words"}) == ""
    assert reason([ASK, ANSWER], {"retrieved": "2024-05-01 12:00:00", "context": "customer support"}) == ""


@pytest.mark.parametrize("name", ["context_type", "document_id", "context"])
def test_a_label_of_a_context_is_counted(name):
    assert reason([ASK, ANSWER], {name: "math" if name == "context" else "two words"}) == ""


def test_an_answer_that_was_truncated_rejects_the_row():
    for name in ("is_truncated", "truncated", "responseTruncated"):
        assert reason([ASK, ANSWER], {name: True}) == "cut-answer"
        assert reason([ASK, {**ANSWER, name: True}]) == "cut-answer"
        assert reason([ASK, ANSWER], {name: False}) == ""
    assert reason([ASK, ANSWER], {"prompt_truncated": True}) == ""
