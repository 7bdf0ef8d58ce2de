"""rules: what each rule applies to, and what keeps or breaks it."""

import pytest

from sft.evaluation.rules import check_rules
from sft.metric_labels import RULES

ON, OFF, NONE = "<|im_start|>assistant\n<think>\n", "<|im_start|>assistant\n<think></think>", "<|im_start|>assistant\n"
GERMAN = "Das ist eine Antwort in deutscher Sprache."
ENGLISH = "This is an answer in the English language."


def check(prompt, text, expected="ok", *, budget=None, **reference):
    return check_rules(
        prompt,
        text,
        {"content": expected, **reference},
        thinking=prompt == ON,
        budget=budget,
        count_tokens=lambda words: len(words.split()),
    )


@pytest.mark.parametrize(
    ("prompt", "text", "rule", "kept"),
    [
        (ON, "so it is\n</think>yes", "reasoning_on", True),
        (ON, "\n</think>yes", "reasoning_on", False),
        (ON, "so it is and so on", "reasoning_on", False),
        (OFF, "yes", "reasoning_off", True),
        (OFF, "<think>so</think>yes", "reasoning_off", False),
        (OFF, "so</think>yes", "reasoning_off", False),
    ],
)
def test_a_model_reasons_where_the_prompt_asks_for_it_and_only_there(prompt, text, rule, kept):
    found = check(prompt, text)
    assert found[rule] is kept
    assert {name for name in found if name.startswith("reasoning")} == {rule}
    assert not {name for name in check(NONE, text) if name.startswith("reasoning")}, "a template without think tags"


@pytest.mark.parametrize(("text", "kept"), [("a b\n</think>c", True), ("a b c</think>d", False), ("a b", False)])
def test_a_budget_counts_the_tokens_of_reasoning_that_ends(text, kept):
    assert check(ON, text, budget=2)["within_budget"] is kept
    assert "within_budget" not in check(ON, text)


@pytest.mark.parametrize(
    ("rule", "expected", "text", "kept"),
    [
        ("language", GERMAN, "Hier ist noch eine ganz andere Antwort.", True),
        ("language", GERMAN, ENGLISH, False),
        ("language", GERMAN, "42", True),
        ("language", GERMAN, "", False),
        ("language", "42", ENGLISH, None),
        ("form", '{"a": 1}', '```json\n{"b": 2}\n```', True),
        ("form", '{"a": 1}', '{"a": 1', False),
        ("form", "[1]", '{"a": 1}', False),
        ("form", "```python\nx\n```", "So:\n```py\ny\n```", True),
        ("form", "text", "{}", None),
        ("refusal", "Here you are.", "I cannot help with that.", False),
        ("refusal", "I'm sorry, but I can't do that.", "I am unable to do this.", True),
        ("refusal", "I'm sorry, but I can't do that.", "Sure.", False),
        ("math", r"So \boxed{\frac{1}{2}}.", "The answer is 0.5", True),
        ("math", r"\boxed{12}", "the result is 13", False),
        ("math", r"\boxed{12}", "nothing", False),
        ("math", "12", "12", None),
    ],
)
def test_an_answer_is_compared_with_the_reference(rule, expected, text, kept):
    assert check(OFF, text, expected).get(rule) is kept


def test_a_call_of_tools_is_measured_by_its_reasoning_alone():
    assert set(check(OFF, "yes", "", tool_calls=[{}])) == {"reasoning_off"}
    assert set(check(OFF, "yes", r"\boxed{1} in the text before a call", tool_calls=[{}])) == {"reasoning_off"}
    every = {**check(ON, "x", rf'{{"{GERMAN}": "\\boxed{{1}}"}}', budget=1), **check(OFF, "x")}
    assert set(every) == set(RULES)
