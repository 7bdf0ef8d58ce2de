"""prompts: the same samples and prompts are chosen in whatever order the data comes."""

import json

from sft.evaluation.prompts import choose_prompts, choose_segments, find_reference, rank, split_packs
from tests.support.held_out_project import PARAMS

TOOLS = [{"type": "function", "function": {"name": "get_weather"}}]
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}


def row(identity, messages, tools=None):
    tools = json.dumps(tools) if tools else None
    return {"id": identity, "messages": json.dumps(messages), "tools": tools, "meta": "{}"}


class FixedTemplate:
    """A template whose prompt is as long as its last message."""

    row_kwargs = frozenset()

    def prompt_ids(self, messages, tools, *, thinking, budget=None, kwargs):
        return [int(thinking)] * len(messages[-1]["content"])


def long_row(identity, length):
    return row(identity, [{"role": "user", "content": "x" * length}, {"role": "assistant", "content": "y"}])


def test_prompts_left_out_counts_those_that_rank_before_the_last_chosen_in_any_order_of_rows():
    by_rank = sorted((f"c{n}" for n in range(8)), key=lambda identity: rank(PARAMS.seed, identity))
    lengths = dict(zip(by_rank, [500, 10, 500, 10, 500, 10, 10, 10], strict=True))
    for order in (by_rank, by_rank[::-1], sorted(by_rank)):
        rows = [("s", long_row(identity, lengths[identity])) for identity in order]
        chosen, left_out = choose_prompts(rows, FixedTemplate(), PARAMS)
        assert [prompt.conversation_id for prompt in chosen["chat"]] == [by_rank[1], by_rank[3]]
        assert left_out == {"over-length": 2}
    chosen, left_out = choose_prompts(rows, FixedTemplate(), PARAMS.model_copy(update={"chat_prompts": 20}))
    assert (len(chosen["chat"]), left_out) == (5, {"over-length": 3})


def test_a_prompt_ends_before_the_first_call_and_thinks_if_the_reference_did():
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "Look."},
    ]
    chosen, _ = choose_prompts([("s", row("a", messages, TOOLS))], FixedTemplate(), PARAMS)
    (prompt,) = chosen["tool"]
    assert (prompt.question, prompt.thinking, prompt.ids) == ("three", True, [1] * 5)
    assert prompt.reference["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}
    assert chosen["chat"] == []


def test_a_conversation_with_tools_and_no_call_asks_for_nothing():
    messages = [{"role": "user", "content": "What is 1 and 0?"}, {"role": "assistant", "content": "1"}]
    assert find_reference(messages, TOOLS) is None


def test_packs_are_split_at_their_starts_and_the_choice_ignores_how_they_were_packed():
    one = {
        "input_ids": [1, 2, 3],
        "loss_mask": [1, 1, 0],
        "seq_start_id": [0],
        "conversation_id": ["a"],
        "source": ["s"],
        "repeat": [0],
        "window": [0],
    }
    two = {
        "input_ids": [4, 5],
        "loss_mask": [1, 0],
        "seq_start_id": [0],
        "conversation_id": ["b"],
        "source": ["s"],
        "repeat": [0],
        "window": [0],
    }
    both = {
        "input_ids": [1, 2, 3, 4, 5],
        "loss_mask": [1, 1, 0, 1, 0],
        "seq_start_id": [0, 3],
        "conversation_id": ["a", "b"],
        "source": ["s", "s"],
        "repeat": [0, 0],
        "window": [0, 0],
    }
    assert [segment.ids for segment in split_packs([both], seed=1)] == [[1, 2, 3], [4, 5]]
    assert [segment.ids for segment in split_packs([both | {"repeat": [0, 1]}], seed=1)] == [[1, 2, 3]]
    choices = [choose_segments(split_packs(packs, seed=1), {"s": "d"}, 1) for packs in ([one, two], [both], [two, one])]
    assert choices[0] == choices[1] == choices[2]
    assert len(choices[0]["d"]) == 1
    assert len(choose_segments(split_packs([both], seed=1), {"s": "d"}, None)["d"]) == 2
