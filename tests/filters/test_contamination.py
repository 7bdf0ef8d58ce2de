"""Contamination: which share of a benchmark item makes a conversation contaminated, and what does not."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.cli import InputError
from sft.conversation import Conversation
from sft.filters.contamination import MAX_ITEMS, MIN_WORDS, QUOTED_CHARS, BenchmarkItems, quote
from sft.filters.dedup.words import words
from sft.formats.messages import normalize
from tests.support.contamination import check_contamination
from tests.support.project import ROOT, printed_by_processes

LABELLED = [json.loads(line) for line in (ROOT / "tests/labelled/contamination.jsonl").read_text("utf-8").splitlines()]
# What n-grams cannot tell, by name, so that a change for better or worse shows.
MISSED = {"choices-in-another-order", "numbers-in-digits", "paraphrase", "translation", "words-inserted"}
N, RATIO = 13, 0.5
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def chat(*turns):
    roles = ["user", "assistant"] * len(turns)
    return Conversation([{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)], None)


def reason(conversation, *items, n=N, ratio=RATIO):
    found = check_contamination(
        conversation, BenchmarkItems([("bench", str(i), t) for i, t in enumerate(items)], n), ratio
    )
    return found.reason if found else None


@pytest.fixture(scope="module")
def all_items():
    return BenchmarkItems(
        [("labelled", f"{row['id']}/{i}", t) for row in LABELLED for i, t in enumerate(row["items"])], N
    )


@pytest.mark.parametrize("row", LABELLED, ids=lambda row: row["id"])
def test_a_labelled_conversation_gets_its_verdict_or_is_known_to_be_too_hard(row, all_items):
    rejection = check_contamination(normalize(row["conversation"]), all_items, RATIO)
    verdict = rejection.reason if rejection else None
    assert (verdict == row["expect"]) == (row["id"] not in MISSED)


def test_the_labelled_set_has_hard_negatives_and_two_halves():
    counted = Counter((row["half"], row["expect"]) for row in LABELLED)
    assert counted == {
        ("choose", "contaminated"): 15,
        ("prove", "contaminated"): 13,
        ("choose", None): 12,
        ("prove", None): 12,
    }
    assert MISSED < {row["id"] for row in LABELLED if row["expect"]}
    assert all(row["why"] for row in LABELLED)


TWENTY = " ".join(letter * 2 for letter in LETTERS[:20])  # eight 13-grams


@pytest.mark.parametrize(("first_words", "share"), [(13, 1 / 8), (14, 2 / 8), (16, 4 / 8), (19, 7 / 8)])
def test_the_share_is_of_the_n_grams_of_the_item(first_words, share):
    conversation = chat("Say " + " ".join(TWENTY.split()[:first_words]) + " please.", "No.")
    assert reason(conversation, TWENTY, ratio=share) == "contaminated"
    assert reason(conversation, TWENTY, ratio=share + 0.01) is None


def test_fewer_words_in_common_than_an_n_gram_are_nothing():
    assert reason(chat("Say " + " ".join(TWENTY.split()[:12]) + " please.", "No."), TWENTY, ratio=0.0) is None


def test_the_evidence_names_benchmark_item_and_text_as_it_stands_there():
    benchmarks = BenchmarkItems(
        [("gsm", "test/7", "Ann has three red apples and Tom eats two of them before lunch.")], N
    )
    rejection = check_contamination(
        chat("Look: ANN has “three” red apples, and Tom eats two of them\nbefore lunch! How many?", "1"),
        benchmarks,
        RATIO,
    )
    assert rejection is not None
    assert rejection.reason == "contaminated"
    assert rejection.evidence == (
        "gsm: 100% of test/7 in messages[0]: 'ANN has “three” red apples, and Tom eats two of them\\nbefore lunch'"
    )


def test_the_item_of_which_most_is_there_is_named():
    half = " ".join(TWENTY.split()[:16]) + " one two three four"
    benchmarks = BenchmarkItems([("a", "half", half), ("b", "whole", TWENTY), ("c", "again", TWENTY.upper())], N)
    rejection = check_contamination(chat(TWENTY, "Yes."), benchmarks, RATIO)
    assert rejection is not None
    assert rejection.evidence.startswith("b: 100% of whole in messages[0]: 'aa bb")
    assert benchmarks.names == [("a", "half"), ("b", "whole")]


def test_an_item_shorter_than_an_n_gram_must_stand_in_a_message_whole():
    item = " ".join(TWENTY.split()[:MIN_WORDS])
    assert reason(chat(f"Well, {item}?", "No."), item) == "contaminated"
    assert reason(chat("Well, " + item.removesuffix(" hh"), "No."), item, ratio=0.01) is None


def test_an_item_of_few_words_must_be_the_whole_message_of_a_user():
    assert reason(chat("who painted it", "Me."), "Who painted it?") == "contaminated"
    assert reason(chat("Who painted it, and when?", "Me."), "Who painted it?", ratio=0.01) is None
    assert reason(chat("Who? Guess!", "Who painted it?"), "Who painted it?", TWENTY) is None
    call = {"type": "function", "function": {"name": "open_project", "arguments": {}}}
    calling = [{"role": "user", "content": "Begin."}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    assert reason(Conversation(calling, None), "open_project", TWENTY) is None


def test_n_grams_do_not_reach_from_one_message_into_the_next():
    one, other = " ".join(TWENTY.split()[:10]), " ".join(TWENTY.split()[10:])
    assert reason(chat(f"{one} {other}", "Yes."), TWENTY) == "contaminated"
    assert reason(chat(one, other), TWENTY, ratio=0.01) is None


def test_an_n_gram_that_is_repeated_counts_once():
    once = " ".join(TWENTY.split()[:13])
    assert reason(chat(f"{once}. " * 8, "Yes."), TWENTY, ratio=0.2) is None
    assert reason(chat(f"{once}. " * 8, "Yes."), TWENTY, ratio=0.12) == "contaminated"


@pytest.mark.parametrize(("number", "expected"), [(MAX_ITEMS, "contaminated"), (MAX_ITEMS + 1, None)])
def test_what_many_items_share_does_not_count(number, expected):
    items = [f"{TWENTY} {' '.join(f'{letter}{word}' for word in 'xyz')}" for letter in LETTERS[:number]]
    assert reason(chat(TWENTY, "Yes."), *items) == expected
    assert reason(chat(items[0], "Yes."), *items) == "contaminated"


def test_items_of_which_nothing_is_their_own_count_whole():
    items = [TWENTY + " and"] + [f"{TWENTY} {letter}" for letter in LETTERS[:MAX_ITEMS]]
    own_less = " ".join(TWENTY.split()[:14])
    assert reason(chat(own_less, "Yes."), *items, own_less) == "contaminated"


def test_a_conversation_without_a_word_of_any_item_is_kept():
    assert reason(chat("ok", "Ωμέγα 漢字"), TWENTY) is None
    assert reason(chat("", "Yes."), TWENTY, "Who?") is None


@given(st.lists(st.sampled_from(LETTERS[:6]), min_size=MIN_WORDS, max_size=40), st.integers(8, 15))
def test_an_item_is_always_found_in_itself(item, n):
    text = " ".join(item)
    assert reason(chat(f"<<{text.upper()}>>", "Yes."), text, TWENTY, n=n, ratio=1.0) == "contaminated"


def test_a_verdict_does_not_depend_on_the_process():
    code = (
        "from sft.filters.contamination import *; from sft.conversation import Conversation as C\n"
        "from tests.support.contamination import check_contamination\n"
        f"print(check_contamination(C([{{'role': 'user', 'content': {TWENTY!r}}}], None), "
        f"BenchmarkItems([('a', str(i), {TWENTY!r}[i * 3:]) for i in range(3)], 13), 0.5))"
    )
    printed = printed_by_processes(code)
    assert printed == {f"Rejection(reason='contaminated', evidence=\"a: 100% of 0 in messages[0]: '{TWENTY}'\")\n"}


def test_too_short_n_grams_and_no_items_are_errors_that_name_the_param():
    with pytest.raises(InputError, match=r"^filter\.contamination\.n: 7 .* 8 "):
        BenchmarkItems([("a", "1", TWENTY)], 7)
    with pytest.raises(InputError, match=r"^fetch\.benchmarks: "):
        BenchmarkItems([("a", "1", " ?! ")], N)


@given(st.text(st.characters(codec="utf-8"), max_size=60), st.data())
def test_a_quotation_holds_the_words_it_was_asked_for(text, data):
    found = words(text)
    if found:
        start = data.draw(st.integers(0, len(found) - 1))
        end = data.draw(st.integers(start + 1, len(found)))
        assert words(quote(text, start, end)) == found[start:end]


def test_of_a_long_quotation_start_and_end_are_shown_and_letters_of_chinese_are_words():
    assert quote("我喜欢猫,你呢?", 1, 4) == "喜欢猫"
    whole = " ".join(f"word{number}" for number in range(100))
    start, end = quote(f"Say {whole}!", 1, 101).split(" ... ")
    assert (len(start), len(end)) == (QUOTED_CHARS, QUOTED_CHARS)
    assert whole.startswith(start)
    assert whole.endswith(end)


def test_the_evidence_names_the_message_with_the_item():
    turns = [
        {"role": "user", "content": "Do it."},
        {"role": "assistant", "content": "", "reasoning_content": f"They want {TWENTY}."},
    ]
    rejection = check_contamination(Conversation(turns, None), BenchmarkItems([("a", "1", TWENTY)], N), RATIO)
    assert rejection is not None
    assert "in messages[1]: 'aa bb" in rejection.evidence
