"""answers: graded one by one, then as shares."""

from sft.evaluation.answers import answer_metrics, answer_rows, compare_answers, graded_answer
from sft.evaluation.prompts import Prompt

TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]
CALLS = [{"type": "function", "function": {"name": "now", "arguments": {}}}]
NOW = "<tool_call>\n<function=now>\n</function>\n</tool_call>\n"
STOP = 0


class Letters:
    """A tokenizer of characters, without the stop token."""

    stop_ids = (STOP,)

    def decode(self, ids):
        return "".join(map(chr, ids))

    def count_tokens(self, text):
        return len(text)


def prompt(kind, text="?"):
    tools, reference = (TOOLS, {"content": "", "tool_calls": CALLS}) if kind == "tool" else ([], {"content": "yes"})
    return Prompt("r", kind, "s", "c", "What now?", False, [ord(letter) for letter in text], tools, reference)


def answer(asked, text, stop=True):
    return graded_answer(asked, [*map(ord, text), *([STOP] if stop else [])], Letters())


def test_an_answer_says_whether_it_stopped_and_only_tool_calls_have_a_verdict():
    assert answer(prompt("chat"), "yes") == {
        "text": "yes",
        "stopped": True,
        "think_balanced": True,
        "rules": {"refusal": True},
    }
    cut = answer(prompt("tool"), "yes", stop=False)
    assert (cut["text"], cut["stopped"], cut["verdict"]["fault"]) == ("yes", False, "no-call")
    assert answer(prompt("tool"), NOW)["verdict"]["exact"] is True


def test_reasoning_that_the_prompt_opens_is_part_of_the_answer():
    asked = prompt("tool", "assistant\n<think>\n")
    assert answer(asked, "Look.</think>" + NOW)["verdict"]["exact"] is True
    assert answer(asked, NOW)["verdict"]["fault"] == "reasoning-not-closed"
    assert answer(asked, NOW)["think_balanced"] is False


def test_shares_are_of_the_prompts_that_ask_for_it_and_none_without_such_prompts():
    asked = prompt("tool")
    answers = [answer(asked, NOW), answer(asked, "no"), answer(prompt("chat"), "yes", stop=False)]
    metrics = answer_metrics(answers)
    measured = {name: share for name, share in metrics.items() if share is not None}
    assert set(measured.pop("intervals")) == set(measured)
    assert measured == {
        "rule_refusal": 1.0,
        "tool_call_well_formed": 0.5,
        "tool_call_known_function": 0.5,
        "tool_call_fits": 0.5,
        "tool_call_exact": 0.5,
        "stopped": 0.666667,
        "think_balanced": 1.0,
    }
    assert answer_metrics(answers[2:])["tool_call_exact"] is None
    assert answer_metrics([])["stopped"] is None
    assert "tool_call_exact" not in answer_metrics(answers[2:])["intervals"]


def test_the_same_prompts_are_compared_before_and_after():
    asked = prompt("tool")
    change = compare_answers([answer(asked, "no"), answer(asked, NOW)], [answer(asked, NOW), answer(asked, NOW)])
    assert change["tool_call_exact"] == {"better": 1, "worse": 0, "p": 1.0}


def test_a_row_has_the_prompt_and_both_answers():
    (row,) = answer_rows([prompt("chat")], [{"text": "a"}], [{"text": "b"}])
    assert (row["question"], row["prompt_tokens"], row["before"], row["after"]) == (
        "What now?",
        1,
        {"text": "a"},
        {"text": "b"},
    )
