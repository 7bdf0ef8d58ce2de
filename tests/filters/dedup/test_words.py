"""Words: the same whatever stands beside them, and as numbers the same as by their letters."""

import random
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from sft.filters.dedup import words as module
from sft.filters.dedup.words import hash_words, words

# Text with few characters that are not ASCII is read from one of these to the next.
FEW_OTHERS = [f"{'as it is in most texts ' * 4}{end}" for end in ("e", "E", "=", "1", "\n", "")]
FEW_OTHERS += [
    "\u0301",
    "\u0338",
    "\u0327\u0301",
    "\u00e9",
    "\u1e9b\u0323",
    "\u1100\u1161",
    "\u0663",
    "\ufb01",
    "\u00bd",
]
texts = st.lists(
    st.one_of(
        st.text(st.characters(codec="utf-8"), max_size=30),
        st.lists(st.sampled_from(FEW_OTHERS)).map("".join),
        st.lists(
            st.sampled_from(["It's", "NEW", "3.5", "\u0663", "\u00b2", "\n", " ", "\x01", "\u6f22", "a", "A", "\uff11"])
        ).map("".join),
    ),
    max_size=6,
)


@given(st.text(st.characters(codec="utf-8")))
def test_words_have_no_case_no_punctuation_and_no_compatibility_forms(text):
    split = words(text)
    assert all(word and not any(map(str.isspace, word)) for word in split)
    assert all(unicodedata.category(letter)[0] in "LMN" for word in split for letter in word)
    assert words(unicodedata.normalize("NFKC", text)) == split


def test_words_do_not_depend_on_other_text():
    text = "It's 3.5 km to Rome_2; don't STOP!"
    assert words(text) == ["it", "s", "3", "5", "km", "to", "rome", "2", "don", "t", "stop"]
    assert words(text + " é") == [*words(text), "é"]


def test_scripts_without_spaces_have_a_word_per_letter():
    assert words("我喜欢猫。") == ["我", "喜", "欢", "猫"]
    assert words("ใช่ ok") == ["ใ", "ช่", "ok"]


@given(texts)
def test_equal_words_have_equal_numbers_and_different_ones_have_not(given_texts):
    found = hash_words(given_texts)
    expected = [words(text) for text in given_texts]
    assert found.starts.tolist() == [sum(map(len, expected[:n])) for n in range(len(given_texts) + 1)]
    flat = [word for own in expected for word in own]
    assert len(found.hashes) == len(found.numbers) == len(flat)
    assert len(set(zip(flat, found.hashes.tolist(), strict=True))) == len(set(flat)) == len(set(found.hashes.tolist()))
    assert found.numbers.tolist() == [any(map(str.isdigit, word)) for word in flat]


def test_hashes_do_not_depend_on_other_texts_and_blocks(monkeypatch):
    drawn = random.Random(1)
    given_texts = ["".join(drawn.choices("abcd 12é\n", k=drawn.randrange(200))) for _ in range(100)]
    whole = hash_words(given_texts)
    monkeypatch.setattr(module, "BLOCK_BYTES", 64)
    for other in (hash_words(given_texts), *[hash_words([*given_texts, "x"])]):
        assert other.hashes[: len(whole.hashes)].tolist() == whole.hashes.tolist()
    alone = [hash_words([text]).hashes.tolist() for text in given_texts]
    assert [number for own in alone for number in own] == whole.hashes.tolist()
    assert len(set(whole.hashes.tolist())) > 500


def test_a_number_is_the_same_on_every_machine():
    assert [f"{number:016x}" for number in hash_words(["Cats purr.", "", "漢 42"]).hashes.tolist()] == [
        "6b98ad0e42af72bd",
        "08d449d904471401",
        "d886d7765a5b86b8",
        "f6951518e3fee9ae",
    ]


def test_no_two_of_a_million_words_have_the_same_number():
    found = hash_words(
        [" ".join(f"{n:x}" for n in range(start, start + 50_000)) for start in range(0, 1_000_000, 50_000)]
    )
    assert len(set(found.hashes.tolist())) == 1_000_000
