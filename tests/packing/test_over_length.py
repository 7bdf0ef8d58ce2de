"""Over-length: a window starts with what the template writes for its tools, in every family that lists tools."""

import pytest

from sft.packing.over_length import ChangedError, longest, windows_of
from sft.packing.write import padded
from sft.tokens.reasoning import Controlled
from sft.tokens.render import ChatTemplate
from tests.support.families import load_family
from tests.support.project import ROOT
from tests.support.tokenizers import write_tokenizer


def tool(name):
    parameters = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    description = f"Tool {name} does what its long description says, many times. " * 3
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = [tool(name) for name in ("first", "second", "third")]
ASK = {"role": "user", "content": "What is the sum?"}
CALL = {"id": "abcd00000", "type": "function", "function": {"name": "second", "arguments": {"x": 1}}}
CALLS = [ASK, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
LONG = [ASK, {"role": "assistant", "content": "It is twelve. " * 20 + "\n\n" + "Yes it is. " * 20}]


def cut(chat, messages, tools, limit):
    return [
        (chat.decode(window.ids.tolist()), window)
        for _, _, windows in windows_of(chat, Controlled(messages, "none", None, 0), tools, limit)
        for window in windows
    ]


def whole(chat, messages, tools):
    (sample,) = chat.encode(chat.render_samples(messages, tools))
    return sample


@pytest.fixture(scope="module")
def nano3(tmp_path_factory):
    base = write_tokenizer(tmp_path_factory.mktemp("base"))
    return ChatTemplate.load(str(ROOT / "templates" / "nano3.jinja"), base)


@pytest.mark.parametrize("family", ["nano3", "qwen3", "llama3", "mistral-v3", "granite"])
def test_a_window_with_a_call_is_the_conversation_rendered_with_the_tools_that_fit(nano3, tmp_path, family):
    chat = nano3 if family == "nano3" else load_family(family, tmp_path / family)
    sizes = [len(whole(chat, CALLS, tools).ids) for tools in ([TOOLS[1]], TOOLS[:2], TOOLS)]
    for tools, limit in (([TOOLS[1]], sizes[0]), (TOOLS[:2], sizes[1]), (TOOLS[:2], sizes[1] + 9)):
        ((_, window),) = cut(chat, CALLS, TOOLS, limit)
        sample = whole(chat, CALLS, tools)
        assert window.ids.tolist() == sample.ids[: len(window.ids)]
        assert window.mask.tolist() == sample.mask[: len(window.ids)]
        assert int(window.mask.sum()) == sum(sample.mask)
    assert cut(chat, CALLS, TOOLS, sizes[0] - 2 * sum(sample.mask)) == [], "no room for the called tool"


@pytest.mark.parametrize("family", ["nano3", "llama3", "gemma2", "phi3", "vicuna"])
def test_the_windows_of_a_long_answer_train_each_of_its_tokens_once(nano3, tmp_path, family):
    chat = nano3 if family == "nano3" else load_family(family, tmp_path / family)
    sample = whole(chat, LONG, None)
    windows = cut(chat, LONG, None, 160)
    trained = [token for _, window in windows for token in window.ids[window.mask == 1].tolist()]
    assert trained == [token for token, is_trained in zip(sample.ids, sample.mask, strict=True) if is_trained]
    assert len(windows) > 2
    assert "What is the sum?" in windows[0][0]
    assert sum(window.covered for _, window in windows) <= len(sample.ids)


def test_a_conversation_that_has_no_samples_now_is_an_error(nano3):
    with pytest.raises(ChangedError, match="nothing-trained"):
        cut(nano3, [ASK], None, 16)


@pytest.mark.parametrize(("size", "multiple"), [(512, 1), (512, 8), (64, 6)])
def test_the_longest_sample_fits_with_its_padding_and_one_more_token_does_not(size, multiple):
    assert padded(longest(size, multiple), multiple) <= size < padded(longest(size, multiple) + 1, multiple)
