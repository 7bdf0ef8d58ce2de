"""Near-duplicates: what asks and answers nearly the same is found, what only looks alike is not."""

import subprocess
import sys

import pytest

from sft.data.conversation import Conversation
from sft.data.duplicates import SIGNATURE_BYTES, NearDuplicates, check_near_duplicate, clusters, signature

ASKED = (
    "Please explain to a beginner how photosynthesis works in green plants, which parts of the leaf take part in it, "
    "and why it matters for the animals that live nearby."
)
ANSWERED = (
    "Green plants take in water and carbon dioxide. In the chloroplasts of the leaf the light of the sun splits the "
    "water, oxygen leaves through small pores, and sugar is built that feeds the plant and whoever eats it later."
)


def chat(asked: str = ASKED, answered: str = ANSWERED, system: str = "", tools: list | None = None) -> Conversation:
    first = [{"role": "system", "content": system}] if system else []
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return Conversation([*first, *turns], tools)


def found(conversation: Conversation, known: Conversation, threshold: float = 0.8) -> bool:
    index = NearDuplicates(threshold)
    index.add(known.id, signature(known))
    return index.find(signature(conversation)) is not None


@pytest.mark.parametrize(
    "other",
    [
        chat(),
        chat(asked=ASKED.upper()),
        chat(asked=f"  {ASKED}\n"),
        chat(answered=ANSWERED.replace("later", "afterwards")),
        chat(system="You are a patient teacher."),
        chat(tools=[{"type": "function", "function": {"name": "search"}}]),
    ],
)
def test_case_spaces_a_word_the_system_prompt_and_tools_make_no_other_conversation(other):
    assert found(other, chat())


@pytest.mark.parametrize(
    "other",
    [
        chat(answered="I would rather talk about the migration of birds, which is just as interesting: " * 2),
        chat(
            asked="Why do the leaves of trees turn red and yellow in autumn, and what happens to them in winter there?"
        ),
        chat(asked=f"{ASKED} Use 5 sentences."),
    ],
)
def test_another_answer_another_question_or_other_numbers_are_another_conversation(other):
    assert not found(other, chat())


def test_short_texts_are_similar_only_to_their_equals():
    assert found(chat("What is the sky?", "It is blue."), chat("what is the  SKY?", "It is blue."))
    assert not found(chat("What is the sky?", "It is blue."), chat("What is the sea?", "It is blue."))


def test_the_earliest_of_several_wins_and_the_evidence_names_it():
    index = NearDuplicates(0.8)
    first, second = chat(), chat(answered=ANSWERED.replace("later", "soon"))
    assert check_near_duplicate(index, first.id, signature(first)) is None
    rejection = check_near_duplicate(index, second.id, signature(second))
    assert rejection is not None
    assert rejection.reason == "near-duplicate"
    assert first.id in rejection.evidence


def test_clusters_join_what_is_similar_through_others_and_leave_the_rest_alone():
    same, alone = chat(), chat("What is the sky?", "It is blue.")
    near = chat(asked=ASKED.lower(), answered=ANSWERED + " ")
    groups = clusters([(c.id, signature(c)) for c in (same, alone, near)], 0.8)
    assert groups[near.id] == groups[same.id] == same.id
    assert groups[alone.id] == alone.id


def test_many_others_hide_nothing():
    index = NearDuplicates(0.8)
    for number in range(5_000):
        words = " ".join(f"w{number * 40 + n}x" for n in range(40)).translate(str.maketrans("0123456789", "abcdefghij"))
        index.add(f"{number:032x}", signature(chat(words, words)))
    assert index.find(signature(chat())) is None
    known = chat(answered=ANSWERED.replace("later", "soon"))
    index.add(known.id, signature(known))
    match = index.find(signature(chat()))
    assert match is not None
    assert 0.8 <= match.similarity < 1


def test_a_signature_is_the_same_in_every_process():
    program = (
        "from tests.data.test_duplicates import chat; from sft.data.duplicates import signature;"
        "print(signature(chat()).hex())"
    )
    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "src:.", "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == signature(chat()).hex()
    assert len(signature(chat())) == SIGNATURE_BYTES
