"""Reasoning control: which conversations lose reasoning, how much is kept, and that nothing else decides."""

import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.hashing import keyed_hash
from sft.tokens.reasoning import MODES, Controlled, Shares, control_reasoning, truncate
from sft.tokens.tokenizer import SafeTokenizer
from tests.support.tokenizers import write_tokenizer

THOUGHTS = "First look at the tools, then call one of them, or none."
MESSAGES = [
    {"role": "user", "content": "What is the sum?"},
    {"role": "assistant", "content": "12", "reasoning_content": THOUGHTS},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes", "reasoning_content": "7 + 5"},
]


@pytest.fixture(scope="module")
def ranges(tmp_path_factory):
    return SafeTokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer"))).token_ranges


def shares(strip=0.0, truncate=0.0, budgets=(4, 8), seed=1):
    return Shares(strip=strip, truncate=truncate, budgets=list(budgets), seed=seed)


# --- The draw ------------------------------------------------------------------------------------------------


def test_the_shares_are_met_and_independent_of_the_other_draws_of_the_same_hash(ranges):
    modes = {f"id-{n}": control_reasoning(f"id-{n}", MESSAGES, shares(0.1, 0.03), ranges).mode for n in range(4000)}
    measured = {mode: sum(value == mode for value in modes.values()) / 4000 for mode in set(modes.values())}
    assert measured == pytest.approx({"stripped": 0.1, "truncated": 0.03, "kept": 0.87}, abs=0.015)
    held_out = sorted(modes, key=lambda name: keyed_hash(1, name))[:400]  # as a split with the same seed draws
    assert sum(modes[name] == "stripped" for name in held_out) / 400 == pytest.approx(0.1, abs=0.05)


def test_the_extremes_take_all_or_nothing(ranges):
    for name in ("a", "b", "c"):
        assert control_reasoning(name, MESSAGES, shares(strip=1.0), ranges).mode == "stripped"
        assert control_reasoning(name, MESSAGES, shares(truncate=1.0), ranges).mode == "truncated"
        assert control_reasoning(name, MESSAGES, shares(), ranges) == Controlled(MESSAGES, "kept", None, 0)


def test_another_seed_draws_other_conversations(ranges):
    drawn = {
        seed: [control_reasoning(str(n), MESSAGES, shares(0.5, seed=seed), ranges).mode for n in range(50)]
        for seed in (1, 2)
    }
    assert drawn[1] != drawn[2]


def test_the_same_conversation_is_drawn_alike_in_another_process_with_another_hash_seed(ranges):
    code = (
        "from sft.tokens.reasoning import Shares, control_reasoning\n"
        "params = Shares(strip=0.3, truncate=0.3, budgets=[1, 2, 3], seed=1)\n"
        "messages = [{'role': 'assistant', 'content': '', 'reasoning_content': 'aaaaa'}]\n"
        "ranges = lambda text, most=None: [(i, i + 1) for i in range(len(text))][:most]\n"
        "for n in range(40): print(control_reasoning(str(n), messages, params, ranges))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("0", "77")
    ]
    assert runs[0] == runs[1]
    assert {mode for mode in (b"kept", b"stripped", b"truncated") if mode in runs[0]} == {
        b"kept",
        b"stripped",
        b"truncated",
    }


def test_a_conversation_without_reasoning_is_left_alone(ranges):
    plain = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert control_reasoning("a", plain, shares(strip=1.0), ranges) == Controlled(plain, "none", None, 0)


# --- The effect ---------------------------------------------------------------------------------


def test_stripping_takes_all_reasoning_and_nothing_else(ranges):
    messages, mode, budget, removed, *_ = control_reasoning("a", MESSAGES, shares(strip=1.0), ranges)
    assert messages == [{key: message[key] for key in ("role", "content")} for message in MESSAGES]
    assert (mode, budget) == ("stripped", None)
    assert removed == len(ranges(THOUGHTS)) + len(ranges("7 + 5"))


def test_truncating_cuts_each_answers_reasoning_to_the_budget_and_keeps_the_answers(ranges):
    messages, mode, budget, removed, cut, _ = control_reasoning(
        "a", MESSAGES, shares(truncate=1.0, budgets=[6]), ranges
    )
    assert (mode, budget, cut) == ("truncated", 6, {1})
    assert [message["content"] for message in messages] == [message["content"] for message in MESSAGES]
    first, second = messages[1]["reasoning_content"], messages[3]["reasoning_content"]
    assert (first, second) == ("First look at the tools,", "7 + 5")
    assert len(ranges(first)) <= 6
    assert removed == len(ranges(THOUGHTS)) - len(ranges(first))
    assert MESSAGES[1]["reasoning_content"] == THOUGHTS, "the input is not changed"


def test_only_budgets_that_cut_something_are_drawn_and_without_one_all_is_kept(ranges):
    longest = len(ranges(THOUGHTS))
    for name in map(str, range(20)):
        assert control_reasoning(name, MESSAGES, shares(truncate=1.0, budgets=[4, longest]), ranges).budget == 4
        assert control_reasoning(name, MESSAGES, shares(truncate=1.0, budgets=[longest]), ranges) == Controlled(
            MESSAGES,
            "kept",
            None,
            0,
        )


def test_every_budget_is_drawn_whatever_their_order(ranges):
    first, second = (
        [control_reasoning(str(n), MESSAGES, shares(truncate=1.0, budgets=budgets), ranges).budget for n in range(60)]
        for budgets in ([2, 4, 8], [8, 2, 4])
    )
    assert set(first) == {2, 4, 8}
    assert first == second


def test_reasoning_of_which_nothing_fits_is_removed(ranges):
    messages = [{"role": "assistant", "content": "a", "reasoning_content": "👩 and more"}]
    assert len({character for character in ranges("👩")}) < len(ranges("👩"))
    controlled = control_reasoning("a", messages, shares(truncate=1.0, budgets=[1]), ranges)
    assert controlled.messages == [{"role": "assistant", "content": "a"}]


@settings(max_examples=300)
@given(st.one_of(st.text(min_size=1), st.text(alphabet="👩é 한a\n", min_size=1)), st.integers(1, 12))
def test_a_cut_is_clean_within_the_budget_and_near_it(ranges, text, budget):
    short = truncate(text, budget, ranges)
    assert text.startswith(short)
    assert short == short.rstrip()
    assert len(ranges(short)) <= budget
    if len(ranges(text)) <= budget:
        assert short == text.rstrip()
    elif text.isascii() and text.isalpha():
        assert len(ranges(short)) >= budget - 1


def test_every_conversation_has_one_mode(ranges):
    counts, removed = Counter(), 0
    for n in range(100):
        controlled = control_reasoning(str(n), MESSAGES if n % 2 else MESSAGES[:1], shares(0.4, 0.3), ranges)
        counts[controlled.mode] += 1
        removed += controlled.tokens_removed
    assert counts.keys() <= set(MODES)
    assert (counts["none"], counts["stripped"] > 0, removed > 0) == (50, True, True)
