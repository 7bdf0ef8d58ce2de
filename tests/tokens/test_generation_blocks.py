"""Generation blocks of templates/nano3.jinja: other trainers mask by them, as transformers does, and mask as we do."""

from pathlib import Path

import pytest

from sft.tokens.render import ChatTemplate
from tests.support.tiny_model import ADDED_TOKENS
from tests.support.tokenizers import REASONING_AND_TOOLS, write_tokenizer

NANO3 = Path(__file__).parents[2] / "templates" / "nano3.jinja"
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}}}}]


def asks(text="What is 1 + 1?"):
    return {"role": "user", "content": text}


def says(text, **more):
    return {"role": "assistant", "content": text, **more}


def calls(*numbers, **more):
    return says(
        "",
        tool_calls=[{"type": "function", "function": {"name": "add", "arguments": {"a": n}}} for n in numbers],
        **more,
    )


RESULT = {"role": "tool", "content": "2"}
SYSTEM = {"role": "system", "content": "Be brief."}
CONVERSATIONS = {
    "one turn": ([asks(), says("It is 2.")], None),
    "several turns": (
        [SYSTEM, asks(), says("It is 2."), asks("Sure?"), says("Yes."), asks("Why?"), says("é \n")],
        None,
    ),
    "reasoning": ([asks(), says("2", reasoning_content="1 and 1 are 2.")], None),
    "reasoning in the last answer": ([asks(), says("2"), asks("Sure?"), says("Yes.", reasoning_content="So.")], None),
    "calls": ([asks(), calls(1, 1), RESULT, RESULT, says("2")], TOOLS),
    "calls behind words and reasoning": (
        [asks(), calls(1, reasoning_content="Use add."), RESULT, says("It is 2.", reasoning_content="Done.")],
        TOOLS,
    ),
    "only space": ([asks(), says("a"), asks(), says(" b ")], None),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    from transformers import PreTrainedTokenizerFast

    folder = write_tokenizer(tmp_path_factory.mktemp("tokenizer"), ADDED_TOKENS + REASONING_AND_TOOLS)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.chat_template = NANO3.read_text(encoding="utf-8")
    return ChatTemplate.load(str(NANO3), folder), tokenizer


def mask_of_transformers(tokenizer, messages, tools):
    encoded = tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return encoded["input_ids"], encoded["assistant_masks"]


@pytest.mark.parametrize(("messages", "tools"), CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_the_mask_of_transformers_is_ours(loaded, messages, tools):
    chat, tokenizer = loaded
    (sample,) = chat.encode(chat.render_samples(messages, tools))
    ids, mask = mask_of_transformers(tokenizer, messages, tools)
    assert ids == sample.ids
    assert mask == list(sample.mask)
    assert 0 < sum(mask) < len(mask)


def test_an_earlier_answer_that_lost_its_reasoning_is_trained_by_others_only(loaded):
    """The difference that is known: we train that answer with its reasoning, in a sample of its own."""
    chat, tokenizer = loaded
    messages = [asks(), says("2", reasoning_content="So."), asks("Sure?"), says("Yes.")]
    ids, mask = mask_of_transformers(tokenizer, messages, None)
    _, last = chat.encode(chat.render_samples(messages, None))
    assert ids == last.ids
    assert sum(mask) > sum(last.mask) > 0
