"""Signatures: which conversations are similar, and the same bytes on every machine."""

import json

import pytest

from sft.conversation import Conversation, normalize
from sft.filters.dedup.signatures import SIGNATURE_BYTES, signature
from sft.filters.dedup.within_source import SignatureIndex, Similar
from tests.support.project import ROOT, printed_by_processes

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


def find(left, right, threshold=THRESHOLD):
    index = SignatureIndex(threshold)
    index.add("left", signature(left))
    return index.find(signature(right))


@pytest.mark.parametrize("pair", LABELLED, ids=lambda pair: pair["id"])
def test_a_labelled_pair_gets_its_verdict_or_is_known_to_be_too_hard(pair):
    verdict = "near-duplicate" if find(normalize(pair["a"]), normalize(pair["b"])) else None
    assert (verdict == pair["expect"]) == (pair["id"] not in MISSED | FALSE_ALARMS)


def test_precision_and_recall_on_the_labelled_pairs_are_as_documented():
    for half, right_found_all in (("choose", (11, 12, 13)), ("prove", (10, 11, 13))):
        pairs = [pair for pair in LABELLED if pair["half"] == half]
        hits = [pair for pair in pairs if find(normalize(pair["a"]), normalize(pair["b"]))]
        right = [pair for pair in hits if pair["expect"]]
        assert len(pairs) == 27
        assert (len(right), len(hits), sum(bool(pair["expect"]) for pair in pairs)) == right_found_all


def test_a_signature_is_these_bytes_on_every_machine():
    ascii_only = signature(talk())
    assert len(ascii_only) == SIGNATURE_BYTES
    assert (ascii_only[:12].hex(), ascii_only[-4:].hex()) == ("fc552c95a0bb0d3eec5fccc2", "94bc6304")
    mixed = signature(talk("Größe: 42 ㎞?", "漢字 " * 9 + "कहानी ไทย \uff26\uff35\uff2c\uff2c Ünïcode"))
    assert (mixed[:12].hex(), mixed[-4:].hex()) == ("0b0e1a128caab791c6530133", "4beecad4")


def test_a_signature_does_not_depend_on_the_process():
    code = (
        "from sft.conversation import Conversation as C; from sft.filters.dedup.signatures import signature\n"
        f"print(signature(C({talk().messages!r}, None)).hex())"
    )
    printed = {text.strip() for text in printed_by_processes(code)}
    assert printed == {signature(talk()).hex()}


def test_numbers_tell_conversations_apart_however_long_they_are():
    long = "They went up the hill together and down again on the other side, as they always did. " * 3
    places = ["the mill", "the bridge", "the old oak", "the church", "the well", "the ford"]
    story = " ".join(f"At {place}, {long}" for place in places)
    assert find(talk(story + " It was 7 o'clock."), talk(story + " It was 7 o'clock!")) == Similar("left", 1.0)
    assert find(talk(story + " It was 7 o'clock."), talk(story + " It was 8 o'clock.")) is None


def test_short_texts_are_similar_only_to_their_equals():
    assert find(talk("What is the sky?", "It is blue."), talk("what is the  SKY?", "It is blue.")) == Similar(
        "left", 1.0
    )
    assert find(talk("What is the sky?", "It is blue."), talk("What is the sea?", "It is blue.")) is None
    assert find(talk("Simplify x + 1 + x.", "It depends."), talk("Simplify x - 1 + x.", "It depends.")) is None


def test_system_prompts_and_tool_lists_do_not_count():
    plain = talk()
    dressed = Conversation(
        [{"role": "system", "content": "You are a vet."}, *plain.messages],
        [{"type": "function", "function": {"name": "search"}}],
    )
    assert find(plain, dressed) == Similar("left", 1.0)
    assert plain.id != dressed.id


def test_reasoning_is_part_of_the_answer():
    left = talk(reasoning_content="Purring is often taken for contentment, but vets hear it from hurt animals as well.")
    right = talk(reasoning_content="Stay brief. Mention pain, fear, calm. The user wants to know the other times, too.")
    assert find(left, left) == Similar("left", 1.0)
    assert find(left, right) is None
