"""Near-duplicates: what is similar and what is not, on every machine, at every size of the index."""

import json
import random

import pytest

from sft.conversation import Conversation, normalise
from sft.filters.dedup.near import (
    NUMBERS_BYTES,
    RECALL,
    RECENT,
    SIGNATURE_BYTES,
    SLOTS,
    Match,
    NearDuplicates,
    banding,
    check_near_duplicate,
    signature,
)
from tests.support.project import ROOT, printed_by_processes

THRESHOLD = 0.8
LABELLED = [json.loads(line) for line in (ROOT / "tests/labelled/duplicates.jsonl").read_text("utf-8").splitlines()]
# What words in common cannot tell, by name, so that a change for better or worse shows.
MISSED = {"british-or-american", "paraphrase", "step-numbers-added", "short-and-reworded", "time-stamps-of-tools"}
FALSE_ALARMS = {"boilerplate-asked-for", "long-instruction-short-input"}

QUESTION = "Why do cats purr when they are stroked, and do they do it at other times as well, for example when ill?"
ANSWER = "Cats purr when they are content, but also when they are in pain or afraid, because it seems to calm them."


def talk(question=QUESTION, answer=ANSWER, **more):
    outcome = normalise(
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]}
    )
    assert isinstance(outcome, Conversation), outcome
    return outcome


def found(one, other, threshold=THRESHOLD):
    index = NearDuplicates(threshold)
    index.add("one", signature(one))
    return index.find(signature(other))


def similar_by(share, sketch, seed=0):
    """Another signature that has this share of the slots of each side in common."""
    changed = bytearray(sketch)
    for side in (0, 1):
        for slot in random.Random(seed + side).sample(range(SLOTS), SLOTS - round(share * SLOTS)):
            changed[NUMBERS_BYTES + side * SLOTS + slot] ^= 1
    return bytes(changed)


def random_sketches(number, seed=0):
    drawn = random.Random(seed)
    return [drawn.randbytes(SIGNATURE_BYTES) for _ in range(number)]


@pytest.mark.parametrize("pair", LABELLED, ids=lambda pair: pair["id"])
def test_a_labelled_pair_gets_its_verdict_or_is_known_to_be_too_hard(pair):
    verdict = "near-duplicate" if found(normalise(pair["a"]), normalise(pair["b"])) else None
    assert (verdict == pair["expect"]) == (pair["id"] not in MISSED | FALSE_ALARMS)


def test_precision_and_recall_on_the_labelled_pairs_are_as_documented():
    for half, right_found_all in (("choose", (11, 12, 13)), ("prove", (10, 11, 13))):
        pairs = [pair for pair in LABELLED if pair["half"] == half]
        hits = [pair for pair in pairs if found(normalise(pair["a"]), normalise(pair["b"]))]
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
        "from sft.conversation import Conversation as C; from sft.filters.dedup.near import signature\n"
        f"print(signature(C({talk().messages!r}, None)).hex())"
    )
    printed = {text.strip() for text in printed_by_processes(code)}
    assert printed == {signature(talk()).hex()}


def test_numbers_tell_conversations_apart_however_long_they_are():
    long = "They went up the hill together and down again on the other side, as they always did. " * 3
    places = ["the mill", "the bridge", "the old oak", "the church", "the well", "the ford"]
    story = " ".join(f"At {place}, {long}" for place in places)
    assert found(talk(story + " It was 7 o'clock."), talk(story + " It was 7 o'clock!")) == Match("one", 1.0)
    assert found(talk(story + " It was 7 o'clock."), talk(story + " It was 8 o'clock.")) is None


def test_short_texts_are_similar_only_to_their_equals():
    assert found(talk("What is the sky?", "It is blue."), talk("what is the  SKY?", "It is blue.")) == Match("one", 1.0)
    assert found(talk("What is the sky?", "It is blue."), talk("What is the sea?", "It is blue.")) is None
    assert found(talk("Simplify x + 1 + x.", "It depends."), talk("Simplify x - 1 + x.", "It depends.")) is None


def test_system_prompts_and_tool_lists_do_not_count():
    plain = talk()
    dressed = Conversation(
        [{"role": "system", "content": "You are a vet."}, *plain.messages],
        [{"type": "function", "function": {"name": "search"}}],
    )
    assert found(plain, dressed) == Match("one", 1.0)
    assert plain.id != dressed.id


def test_reasoning_is_part_of_the_answer():
    one = talk(reasoning_content="Purring is often taken for contentment, but vets hear it from hurt animals as well.")
    other = talk(reasoning_content="Stay brief. Mention pain, fear, calm. The user wants to know the other times, too.")
    assert found(one, one) == Match("one", 1.0)
    assert found(one, other) is None


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_bands_find_what_is_as_similar_as_the_threshold(threshold):
    slots, bands = banding(threshold)
    assert slots * bands <= SLOTS
    assert 1 - (1 - threshold ** (2 * slots)) ** bands >= RECALL
    sketches = random_sketches(300)
    index = NearDuplicates(threshold)
    for number, sketch in enumerate(sketches):
        index.add(str(number), sketch)
    hits = [index.find(similar_by(min(1, threshold + 0.01), sketch, seed)) for seed, sketch in enumerate(sketches)]
    assert sum(hit is not None and hit.winner == str(number) for number, hit in enumerate(hits)) >= RECALL * 300


def test_every_candidate_is_compared():
    sketch = random_sketches(1)[0]
    index = NearDuplicates(THRESHOLD)
    index.add("one", sketch)
    below = [index.find(similar_by(0.7, sketch, seed)) for seed in range(50)]
    above = [index.find(similar_by(0.85, sketch, seed)) for seed in range(50)]
    assert below == [None] * 50
    assert all(match and match.similarity == pytest.approx(0.85, abs=0.01) for match in above)


def test_both_sides_must_be_similar():
    one, other = random_sketches(2)
    half = NUMBERS_BYTES + SLOTS
    index = NearDuplicates(THRESHOLD)
    index.add("one", one)
    assert index.find(one) == Match("one", 1.0)
    assert index.find(one[:half] + other[half:]) is None
    assert index.find(one[:NUMBERS_BYTES] + other[NUMBERS_BYTES:half] + one[half:]) is None
    assert index.find(other[:NUMBERS_BYTES] + one[NUMBERS_BYTES:]) is None


def test_an_index_that_has_sorted_its_runs_finds_what_it_found_before():
    sketches = random_sketches(2 * RECENT + 100)
    index = NearDuplicates(THRESHOLD)
    for number, sketch in enumerate(sketches):
        index.add(f"{number:032x}", sketch)
    for number in (0, RECENT - 1, RECENT, 2 * RECENT - 1, 2 * RECENT, 2 * RECENT + 99):
        assert index.find(similar_by(0.9, sketches[number])) == Match(f"{number:032x}", pytest.approx(0.9, abs=0.01))
    assert index.find(random_sketches(1, seed=1)[0]) is None


def test_the_earliest_of_several_wins():
    sketch = random_sketches(1)[0]
    index = NearDuplicates(THRESHOLD)
    for name, share in (("first", 0.9), ("second", 1.0)):
        index.add(name, similar_by(share, sketch))
    assert index.find(sketch) == Match("first", pytest.approx(0.9, abs=0.01))


def test_what_is_refused_is_not_compared_with():
    near = signature(talk(answer=ANSWER + " Vets know this."))
    index = NearDuplicates(THRESHOLD)
    assert check_near_duplicate(index, "a" * 32, signature(talk())) is None
    refused = check_near_duplicate(index, "b" * 32, near)
    assert refused is not None
    assert (refused.reason, refused.evidence) == ("near-duplicate", f"0.84 similar to {'a' * 32}, which came before")
    assert check_near_duplicate(index, "c" * 32, near) == refused


def test_an_id_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="expected 1 to 32 characters"):
        NearDuplicates(THRESHOLD).add("x" * 33, bytes(SIGNATURE_BYTES))
