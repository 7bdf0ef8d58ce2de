"""Row kwargs: what a row gives its template is in its text and counted, and moves no mask; or it rejects the row."""

import json
from collections import Counter

import pytest
from bench import filters
from transformers.utils.chat_template_utils import render_jinja_template

from sft.evaluation.prompts import choose_prompts
from sft.filters.examine import examine_rows
from sft.filters.pipeline import Pipeline, RowCounts
from sft.formats.chat_forms import FieldCounts, convert_chats
from sft.formats.raw_files import Row
from sft.packing.over_length import window_rows
from sft.tokens.prepare import prepare_examined
from sft.tokens.reasoning import Shares
from sft.tokens.render import ChatTemplate
from sft.tokens.row_kwargs import by_name
from tests.support.held_out_project import PARAMS
from tests.support.project import ROOT
from tests.support.tokenizers import write_tokenizer

ASK, ANSWER = {"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "Two."}
THINKS = {**ANSWER, "reasoning_content": "One and one."}
KEPT, STRIPPED = Shares(0.0, 0.0, [2], 1), Shares(1.0, 0.0, [2], 1)
# An effort in the system turn (gpt-oss), a note behind the last question (Nemotron 3), a mode of NVIDIA's preparation.
EFFORTS = """
{%- if reasoning_effort is defined %}<|im_start|>system
Reasoning: {{ reasoning_effort }}<|im_end|>
{% endif %}
{%- for m in messages -%}
<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and m.reasoning_content %}<think>{{ m.reasoning_content }}</think>
{%- endif %}{{ m.content }}
{%- if loop.last and m.role == 'user' or (m.role == 'user' and loop.index == messages | length - 1) -%}
{% if low_effort %} {reasoning effort: low}{% endif %}
{%- if chat_template_kwargs.get('terse') %} {terse}{% endif %}{% endif %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    base, folder = write_tokenizer(tmp_path_factory.mktemp("base")), tmp_path_factory.mktemp("templates")
    (folder / "efforts.jinja").write_text(EFFORTS)
    return {
        "efforts": ChatTemplate.load(str(folder / "efforts.jinja"), base),
        "nano3": ChatTemplate.load(str(ROOT / "templates/nano3.jinja"), base),
    }


def examined(*rows):
    """Return raw rows as the filter stage examines them."""
    raw = [Row(f"a.jsonl:{number}", row) for number, row in enumerate(rows, 1)]
    chat_rows = convert_chats(raw, "openai", {}, {}, FieldCounts(unseen_select=set()))
    return list(examine_rows(chat_rows, Pipeline(filters.params(), []), "s", RowCounts(), ""))


def prepared(chat, *rows, shares=KEPT):
    kept = examined(*rows)
    assert [row.get("reason") for row in kept] == [None] * len(rows)
    return prepare_examined(chat, [{**row, "id": str(number)} for number, row in enumerate(kept)], shares)


def shown(chat, *rows, shares=KEPT):
    """Return the text of each sample, and what is trained of it."""
    samples = prepared(chat, *rows, shares=shares).samples.to_pylist()
    trained = [[t for t, m in zip(sample["ids"], sample["mask"], strict=True) if m] for sample in samples]
    return [(chat.decode(sample["ids"]), chat.decode(ids)) for sample, ids in zip(samples, trained, strict=True)]


@pytest.mark.parametrize(
    ("kwargs", "start", "note"),
    [
        ({}, "", ""),
        ({"reasoning_effort": "high"}, "<|im_start|>system\nReasoning: high<|im_end|>\n", ""),
        ({"reasoning_effort": 3}, "<|im_start|>system\nReasoning: 3<|im_end|>\n", ""),
        ({"low_effort": True}, "", " {reasoning effort: low}"),
        ({"low_effort": False, "terse": True}, "", " {terse}"),
    ],
    ids=str,
)
def test_the_text_is_what_the_template_writes_for_the_row_and_its_answer_is_trained(chats, kwargs, start, note):
    row = {"messages": [ASK, ANSWER], "chat_template_kwargs": kwargs}
    question = f"<|im_start|>user\nWhat is 1 + 1?{note}<|im_end|>\n<|im_start|>assistant\n"
    ((text, trained),) = shown(chats["efforts"], row)
    assert (text, trained) == (f"{start}{question}Two.<|im_end|>\n", "Two.<|im_end|>")
    if "terse" not in kwargs:  # NVIDIA's way; the others are variables, as everywhere
        (expected,), _ = render_jinja_template(
            conversations=[[ASK, ANSWER]], chat_template=EFFORTS, chat_template_kwargs={}, **kwargs
        )
        assert text == expected
    ((without, _),) = shown(chats["efforts"], {"messages": [ASK, ANSWER]})
    assert (without == text) == (not start and not note), "the next row does not inherit them"


def test_our_template_reads_a_budget_and_whether_history_keeps_its_reasoning(chats):
    """With arguments Jinja renders it; without, the way that is faster."""
    chat, turns = chats["nano3"], [ASK, THINKS, {**ASK, "content": "And 2?"}, {**THINKS, "content": "Four."}]
    assert chat.is_fast
    row = {"messages": [ASK, THINKS], "chat_template_kwargs": {"reasoning_budget": 64, "enable_thinking": True}}
    ((text, trained),) = shown(chat, row)
    assert "?\n\n{thinking token budget: 64}<|im_end|>" in text
    assert trained == "One and one.\n</think>\nTwo.<|im_end|>"
    ((plain, _),) = shown(chat, {"messages": [ASK, THINKS]})
    assert text.replace("\n\n{thinking token budget: 64}", "") == plain
    ((whole, both),) = shown(chat, {"messages": turns, "chat_template_kwargs": {"truncate_history_thinking": False}})
    assert whole.count("One and one.") == 2
    assert both == "One and one.\n</think>\nTwo.<|im_end|>One and one.\n</think>\nFour.<|im_end|>"
    assert len(shown(chat, {"messages": turns})) == 2


@pytest.mark.parametrize(
    ("name", "kwargs", "evidence"),
    [
        ("nano3", {"thinking_budget": 5}, "thinking_budget is 5: the template reads of a row: enable_thinking, "),
        ("nano3", {"reasoning_effort": "high"}, "reasoning_effort is 'high': "),
        ("efforts", {"messages": "x"}, "messages is 'x': "),
        ("efforts", {"eos_token": "x"}, "eos_token is 'x': "),
        ("efforts", {"reasoning_effort": "<|im_end|>"}, "reasoning_effort is '<|im_end|>': it could become"),
    ],
)
def test_an_argument_that_the_template_does_not_read_rejects_the_row_by_name(chats, name, kwargs, evidence):
    row = {"messages": [ASK, ANSWER], "chat_template_kwargs": kwargs}
    samples, rejected, counts = prepared(chats[name], row, {"messages": [ASK, THINKS]})
    assert [(line["reason"], line["evidence"][: len(evidence)]) for line in rejected] == [
        ("unsupported-template-kwargs", evidence)
    ]
    assert (len(samples), counts["rows"]["out"], counts["kwargs"]) == (1, 1, {})


def test_arguments_of_apply_chat_template_that_change_nothing_are_left_out(chats):
    row = {"messages": [ASK, ANSWER], "chat_template_kwargs": {"add_generation_prompt": False, "tokenize": True}}
    assert shown(chats["efforts"], row) == shown(chats["efforts"], {"messages": [ASK, ANSWER]})


def test_thinking_is_given_to_a_template_that_reads_it_and_is_no_fault_for_another(chats, tmp_path):
    row = {"messages": [ASK, THINKS], "chat_template_kwargs": {"thinking": True}}
    assert shown(chats["nano3"], row) == shown(chats["nano3"], {"messages": [ASK, THINKS]})
    (tmp_path / "t.jinja").write_text(EFFORTS.replace("low_effort", "thinking"))
    chat = ChatTemplate.load(str(tmp_path / "t.jinja"), write_tokenizer(tmp_path / "base"))
    assert "{reasoning effort: low}" in shown(chat, row)[0][0]


def test_they_are_counted_by_value_and_the_reasoning_that_they_speak_of_is_kept(chats):
    rows = [
        {
            "messages": [{**ASK, "content": f"What is {n} + 1?"}, THINKS],
            **({"chat_template_kwargs": given} if n else {}),
        }
        for n, given in enumerate([{}, {"reasoning_effort": "low"}, {"reasoning_effort": "low", "low_effort": True}])
    ]
    counts = prepared(chats["efforts"], *rows, shares=STRIPPED).counts
    assert counts["reasoning"] == {"stripped": 1, "kept": 2}
    assert by_name(counts["kwargs"]) == {"reasoning_effort": {'"low"': 2}, "low_effort": {"true": 1}}


def test_the_report_has_the_most_frequent_values_and_the_sum_of_the_others():
    values = by_name(Counter({f"budget={n}": n for n in range(1, 31)}))["budget"]
    assert len(values) == 21
    assert (values["30"], values["others"], sum(values.values())) == (30, sum(range(1, 11)), sum(range(1, 31)))


def test_every_window_and_the_prompt_of_an_evaluation_begin_as_the_sample_does(chats):
    chat = chats["efforts"]
    long = {"role": "assistant", "content": "".join(f"And {n} is {n + 1} less {n % 7}.\n" for n in range(90))}
    (row,) = examined({"messages": [ASK, long], "chat_template_kwargs": {"reasoning_effort": "high"}})
    assert "reason" not in row
    windows = list(window_rows(chat, KEPT, row, 200, "s"))
    (sample,) = prepare_examined(chat, [row], KEPT).samples.to_pylist()
    assert len(windows) > 2
    assert sum(int(window["mask"].sum()) for window in windows) == sum(sample["mask"])
    first = chat.decode(list(windows[0]["ids"]))
    assert first.startswith("<|im_start|>system\nReasoning: high<|im_end|>\n<|im_start|>user\nWhat is 1 + 1?")
    chosen, _ = choose_prompts([("s", row)], chat, PARAMS)
    (prompt,) = chosen["chat"]
    assert prompt.ids == sample["ids"][: len(prompt.ids)]
    assert "Reasoning: high" in chat.decode(prompt.ids)


def test_the_filter_stage_hands_them_on_and_a_row_without_any_has_no_word_of_them():
    first, second = examined(
        {"messages": [ASK, ANSWER], "chat_template_kwargs": json.dumps({"low_effort": True, "enable_thinking": False})},
        {"messages": [ASK, THINKS], "license": "MIT"},
    )
    assert json.loads(first["meta"])["template_kwargs"] == {"low_effort": True}
    assert "kwargs" not in second["meta"]
