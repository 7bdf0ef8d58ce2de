"""Outline: where messages, answers and lines are in the tokens of a sample, whatever the family."""

import numpy as np
import pytest

from sft.tokens.outline import LINE, PARAGRAPH, outline
from sft.tokens.render import ChatTemplate
from tests.support.families import load_family
from tests.support.project import ROOT
from tests.support.tokenizers import write_tokenizer

ASK, MORE = {"role": "user", "content": "What is the <|im_end|> sum?"}, {"role": "user", "content": "And then?"}


def outlined(chat, messages):
    """The text that each message starts with, that of each answer, and that of the answer behind its reasoning."""
    (rendered,) = chat.render_samples(messages, None)
    (sample,) = chat.encode([rendered])
    found = outline(chat, rendered, messages)
    assert len(found.breaks) == len(sample.ids)
    mask = [0] * len(sample.ids)
    for answer in found.answers:
        mask[answer.start : answer.end] = [1] * (answer.end - answer.start)
    assert mask == sample.mask
    ends = [*(start.token for start in found.starts[1:]), len(sample.ids)]
    starts = {
        start.message: chat.decode(sample.ids[start.token : end]) for start, end in zip(found.starts, ends, strict=True)
    }
    said = {answer.message: chat.decode(sample.ids[answer.content : answer.end]) for answer in found.answers}
    return sample, found, starts, said


@pytest.mark.parametrize(
    ("family", "started", "answered"),
    [
        ("chatml", "<|im_start|>user\n", "<|im_start|>assistant\n"),
        ("llama3", "<|start_header_id|>user", "<|start_header_id|>assistant"),
        ("gemma2", "<start_of_turn>user\n", "<start_of_turn>model\n"),
        ("mistral-v3", "[INST]", "[/INST]"),
        ("deepseek-v3", "<｜User｜>", "<｜Assistant｜>"),  # noqa: RUF001
    ],
)
def test_a_message_starts_at_the_token_that_opens_its_turn(tmp_path, family, started, answered):
    messages = [ASK, {"role": "assistant", "content": "Twelve."}, MORE, {"role": "assistant", "content": "More."}]
    _, _, starts, said = outlined(load_family(family, tmp_path / family), messages)
    assert {
        index: text.startswith(answered if index % 2 else started) for index, text in starts.items()
    } == dict.fromkeys(range(4), True)
    assert {index: text[:4] for index, text in said.items()} == {1: "Twel", 3: "More"}


@pytest.mark.parametrize("family", ["chatml", "llama3", "granite"])
def test_a_content_is_not_found_inside_a_control_token(tmp_path, family):
    answer = {"role": "assistant", "content": "Twelve."}
    messages = [ASK, answer, {"role": "user", "content": "d"}, answer]  # <|im_end|>
    _, _, starts, _ = outlined(load_family(family, tmp_path / family), messages)
    assert list(starts) == [0, 1, 2, 3]


def test_reasoning_and_lines_end_where_they_end_in_the_text(tmp_path):
    chat = ChatTemplate.load(str(ROOT / "templates" / "nano3.jinja"), write_tokenizer(tmp_path / "base"))
    thought = {"role": "assistant", "content": "Twelve.\n\nOr so.\nYes.", "reasoning_content": "Seven and\nfive."}
    sample, found, starts, said = outlined(chat, [ASK, thought])
    assert said == {1: "Twelve.\n\nOr so.\nYes.<|im_end|>"}
    assert list(starts) == [0, 1]
    assert [chat.decode(sample.ids[: token + 1])[-12:] for token in np.flatnonzero(found.breaks == PARAGRAPH)] == [
        "k>\nTwelve.\n\n"
    ]
    lines = [chat.decode(sample.ids[: token + 1]) for token in np.flatnonzero(found.breaks == LINE)]
    assert all(text.endswith("\n") for text in lines)
    assert any(text.endswith("Or so.\n") for text in lines)
