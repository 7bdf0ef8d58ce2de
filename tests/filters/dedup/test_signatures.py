"""Signatures: which conversations are similar, and the same bytes on every machine."""

import json

import numpy as np
import pytest

from sft.conversation import Conversation
from sft.filters.dedup.signatures import HEADER
from sft.formats.messages import normalize
from tests.support.project import ROOT, printed_by_processes
from tests.support.similarity import signature, similarity

THRESHOLD = 0.8
LABELLED = [json.loads(line) for line in (ROOT / "tests/labelled/duplicates.jsonl").read_text("utf-8").splitlines()]
# What words in common cannot tell, by name, so that a change for better or worse shows.
MISSED = {"british-or-american", "paraphrase", "step-numbers-added", "short-and-reworded", "time-stamps-of-tools"}
FALSE_ALARMS = {"boilerplate-asked-for", "long-instruction-short-input"}

QUESTION = "Why do cats purr when they are stroked, and do they do it at other times as well, for example when ill?"
ANSWER = "Cats purr when they are content, but also when they are in pain or afraid, because it seems to calm them."


def talk(question=QUESTION, answer=ANSWER, **more):
    outcome = normalize(
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]}
    )
    assert isinstance(outcome, Conversation), outcome
    return outcome


def compare(left, right):
    return similarity(signature(left), signature(right))


def are_similar(pair):
    return compare(normalize(pair["a"]), normalize(pair["b"])) >= THRESHOLD


@pytest.mark.parametrize("pair", LABELLED, ids=lambda pair: pair["id"])
def test_a_labelled_pair_gets_its_verdict_or_is_known_to_be_too_hard(pair):
    verdict = "near-duplicate" if are_similar(pair) else None
    assert (verdict == pair["expect"]) == (pair["id"] not in MISSED | FALSE_ALARMS)


def test_precision_and_recall_on_the_labelled_pairs_are_as_documented():
    for half, right_found_all in (("choose", (11, 12, 13)), ("prove", (10, 11, 13))):
        pairs = [pair for pair in LABELLED if pair["half"] == half]
        hits = list(filter(are_similar, pairs))
        right = [pair for pair in hits if pair["expect"]]
        assert len(pairs) == 27
        assert (len(right), len(hits), sum(bool(pair["expect"]) for pair in pairs)) == right_found_all


def test_a_signature_is_these_bytes_on_every_machine():
    """The key, the number of shingles of both sides, the shingles."""
    ascii_only = signature(talk())
    assert len(ascii_only) == 4 * (HEADER + 20 + 18)
    assert (ascii_only[:16].hex(), ascii_only[-4:].hex()) == ("e9d3c39178fdc71a1400000012000000", "91c16bf7")
    mixed = signature(talk("Größe: 42 ㎞?", "漢字 " * 9 + "कहानी ไทย \uff26\uff35\uff2c\uff2c Ünïcode"))
    assert (mixed[:16].hex(), mixed[-4:].hex()) == ("739e27fce53c54890100000008000000", "9fee77ff")


def test_shingles_are_in_order_and_distinct_on_each_side():
    numbers = np.frombuffer(signature(talk("to and fro " * 30, ANSWER)), "<u4")
    assert numbers[2:HEADER].tolist() == [3, 18]
    asked, answered = numbers[HEADER : HEADER + 3], numbers[HEADER + 3 :]
    assert (np.diff(asked.astype(np.int64)) > 0).all()
    assert (np.diff(answered.astype(np.int64)) > 0).all()


def test_the_similarity_is_the_share_of_common_shingles_on_the_less_similar_side():
    """Questions of 20 shingles, the last of which differs; answers of 18 and 19 shingles."""
    words = QUESTION.split()[:21]
    left, right = talk(" ".join([*words, "one"])), talk(" ".join([*words, "other"]), ANSWER + " always")
    assert compare(left, right) == compare(right, left) == 19 / 21
    assert compare(talk(), talk(answer=ANSWER + " always")) == 18 / 19


def test_a_signature_does_not_depend_on_the_process():
    code = (
        "from sft.conversation import Conversation as C; from tests.support.similarity import signature\n"
        f"print(signature(C({talk().messages!r}, None)).hex())"
    )
    printed = {text.strip() for text in printed_by_processes(code)}
    assert printed == {signature(talk()).hex()}


def test_numbers_tell_conversations_apart_however_long_they_are():
    long = "They went up the hill together and down again on the other side, as they always did. " * 3
    places = ["the mill", "the bridge", "the old oak", "the church", "the well", "the ford"]
    story = " ".join(f"At {place}, {long}" for place in places)
    assert compare(talk(story + " It was 7 o'clock."), talk(story + " It was 7 o'clock!")) == 1.0
    assert compare(talk(story + " It was 7 o'clock."), talk(story + " It was 8 o'clock.")) == 0


def test_short_texts_are_similar_only_to_their_equals():
    assert compare(talk("What is the sky?", "It is blue."), talk("what is the  SKY?", "It is blue.")) == 1.0
    assert compare(talk("What is the sky?", "It is blue."), talk("What is the sea?", "It is blue.")) == 0
    assert compare(talk("Simplify x + 1 + x.", "It depends."), talk("Simplify x - 1 + x.", "It depends.")) == 0


def test_system_prompts_and_tool_lists_do_not_count():
    plain = talk()
    dressed = Conversation(
        [{"role": "system", "content": "You are a vet."}, *plain.messages],
        [{"type": "function", "function": {"name": "search"}}],
    )
    assert compare(plain, dressed) == 1.0
    assert plain.id != dressed.id


def test_reasoning_is_part_of_the_answer():
    left = talk(reasoning_content="Purring is often taken for contentment, but vets hear it from hurt animals as well.")
    right = talk(reasoning_content="Stay brief. Mention pain, fear, calm. The user wants to know the other times, too.")
    assert compare(left, left) == 1.0
    assert compare(left, right) < 0.5
