"""No rule takes the square of a text: long runs of what its regexes look for, in every place of a conversation.

A linear rule reads 100,000 characters in less than 0.2 CPU-seconds; one that looks at each pair of them takes minutes.
"""

import functools
import signal

import pytest
import yaml

from sft.conversation import Conversation
from sft.filters.control_tokens import check_control_tokens, count_control_tokens, escape
from sft.filters.narrative import NarrativePatterns, check_narrative
from sft.filters.repetition import check_repetitions
from sft.filters.rules.consistency import CHECKS
from sft.filters.structure import CHECKS as STRUCTURE
from sft.formats.messages import normalize
from sft.params.data import Repetition
from tests.support.project import ROOT

CHARS, CPU_SECONDS = 80_000, 2.5
RUNS = [  # (what is before it, repeated, after it)
    *[("", run, "") for run in ("\n", " ", "\r\n", "a", "\ue000", "[", "{", '{"a": ', "'a' ", "<", "`", "$")],
    *[("", run, "") for run in ("**", "User: a\n", "1 ", "<think>", "</think>", "</function_call> ", "I have now ")],
    *[
        ("```", " ", "!"),
        ("~~~", "\t", "!"),
        ("", "~~~ \n", ""),
        ("", "```a\n```\n", "```a"),
        ("[TOOL_CALLS]", " ", "a"),
    ],
    *[("", "our country ", ""), ("", "`our country` ", ""), ("", "> our country\n", "")],
    *[
        ("é ", "Ã© ", ""),
        ("a", "\u0301\u0316", ""),
        ("a", "\uff9e\u0338", ""),
        ("", "".join(f"{number} a " for number in range(60)), ""),
    ],
    *[("1", " ", "2"), ("\\boxed{", " ", "1"), ("User:", " ", ""), ("<tools>", "{'a': 1}, ", "</tools>")],
]
TOOL = {"type": "function", "function": {"name": "get_order", "parameters": {"type": "object"}}}


def conversations(text: str) -> list[Conversation]:
    """Return conversations with a text in every place where a row may have one."""
    asked = [{"role": "system", "content": text}, {"role": "user", "content": text}]
    answer = {"role": "assistant", "content": f"I have {text}", "reasoning_content": text}
    addresses = [f"user{number}@example.com" for number in range(CHARS // 50)]
    known = {"role": "user", "content": f"{text} {' '.join(addresses)}"}
    function = {"name": "get_order", "arguments": {"order_id": text, "to": addresses}}
    calling = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    result, done = {"role": "tool", "content": text}, {"role": "assistant", "content": f"It has been booked. {text}"}
    short = text[:200]
    turns = [{"role": role, "content": short} for role in ("user", "assistant")] * (CHARS // 400)
    return [
        Conversation([*asked, answer], [TOOL]),
        Conversation([known, calling, result, done], [TOOL]),
        Conversation(turns, None),
    ]


@functools.cache
def rules():
    repetition = yaml.safe_load((ROOT / "params.yaml").read_text())["filter"]["repetition"]
    patterns, limits = NarrativePatterns.load(ROOT / "filters/narrative.toml"), Repetition.model_validate(repetition)
    return (
        *CHECKS,
        *STRUCTURE,
        *(check_control_tokens, count_control_tokens, escape),
        lambda conversation: check_narrative(conversation, patterns),
        lambda conversation: check_repetitions([conversation], limits)[0],
        lambda conversation: normalize({"messages": conversation.messages, "tools": conversation.tools}),
    )


@pytest.mark.parametrize("run", RUNS, ids=lambda run: repr(run)[:40])
def test_a_long_run_takes_no_rule_long(run):
    before, repeated, after = run
    text = before + repeated * (CHARS // len(repeated)) + after

    def stop(*_):
        raise TimeoutError(f"more than {CPU_SECONDS} CPU-seconds")

    previous = signal.signal(signal.SIGPROF, stop)
    try:
        for conversation in conversations(text):
            garbage = STRUCTURE[0](conversation)
            for rule in rules() if garbage is None else STRUCTURE[:1]:
                signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
                rule(conversation)
                signal.setitimer(signal.ITIMER_PROF, 0)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
