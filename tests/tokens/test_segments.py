"""Pieces: a tiny case by hand, and that a batch is what its samples are alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.tokens.segments import UNTRAINED, Pieces
from sft.tokens.tokenizer import SafeTokenizer, samples_of
from tests.support.tokenizers import write_tokenizer


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return SafeTokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer"))).engine


def ids(engine, text):
    return engine.encode([text])[0].tolist()


def test_texts_and_runs_stand_one_behind_the_other_and_the_mask_says_what_is_trained(engine):
    pieces = Pieces()
    pieces.add("ask", UNTRAINED, (2, 50, 1))
    pieces.add("\na", 1, (2, 50), trained=1, end=2)
    pieces.finish()
    pieces.add("b", 0, (), end=1)
    pieces.finish()
    columns = pieces.encode(engine)
    ask, newline, a, b = (ids(engine, text) for text in ("ask", "\n", "a", "b"))
    assert columns.ids.tolist() == [*ask, 2, 50, 1, *newline, *a, 2, 50, *b]
    assert columns.mask.tolist() == [0] * (len(ask) + 3 + len(newline)) + [1] * (len(a) + 1) + [0] + [1] * len(b)
    assert columns.sizes.tolist() == [len(ask) + len(newline) + len(a) + 5, len(b)]
    assert columns.turn_ends.tolist() == [len(ask) + 3 + len(newline) + len(a) + 1, len(b)]
    assert columns.turns.tolist() == [1, 1]
    assert columns.refused == {}
    assert (columns.ids.dtype, columns.mask.dtype, columns.turn_ends.dtype) == (np.int32, np.uint8, np.int32)


def test_a_token_across_the_place_refuses_its_sample_alone(engine):
    pieces = Pieces()
    assert len(ids(engine, " the")) == 1
    for place in (0, 2, 4):
        pieces.add(" the", place, (2,), trained=1, end=2)
        pieces.finish()
    columns = pieces.encode(engine)
    assert list(columns.refused) == [1]
    assert columns.refused[1].evidence == "token ' the' is part prompt, part answer"
    assert [sample.mask for sample in list(samples_of(columns))[::2]] == [[1, 1], [0, 1]]


def test_what_is_forgotten_was_never_there(engine):
    pieces, expected = Pieces(), Pieces()
    for each in (pieces, expected):
        each.add("a", 0, (2,), 1, 2)
        each.finish()
    pieces.add("b", 0, (2,), 1, 2)
    pieces.finish()
    pieces.add("not finished", UNTRAINED)
    pieces.forget(1)
    assert vars(pieces) == vars(expected)
    assert Pieces().encode(engine).ids.tolist() == []


piece = st.tuples(
    st.text("ab é\n", max_size=5),
    st.integers(UNTRAINED, 5),
    st.lists(st.integers(0, 2), max_size=3).map(tuple),
    st.integers(0, 3),
    st.integers(0, 2),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(piece, min_size=1, max_size=4), min_size=1, max_size=4))
def test_a_batch_is_what_its_samples_are_alone(engine, samples):
    def add(pieces, sample):
        for text, place, run, trained, end in sample:
            pieces.add(text, min(place, len(text)), run, min(trained, len(run)), end if run else min(end, 1))
        pieces.finish()

    together, alone = Pieces(), []
    for sample in samples:
        add(together, sample)
        one = Pieces()
        add(one, sample)
        alone += samples_of(one.encode(engine))
    assert list(samples_of(together.encode(engine))) == alone
