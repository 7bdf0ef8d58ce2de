"""Segments: a tiny case by hand; a batch gives what each sample gives alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.tokens.segments import UNTRAINED, Segments
from sft.tokens.tokenizer import SafeTokenizer, iter_samples
from tests.support.tokenizers import write_tokenizer


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return SafeTokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer"))).encoder


def ids(encoder, text):
    return encoder.encode([text])[0].tolist()


def test_texts_and_control_ids_are_in_order_and_the_mask_marks_the_trained_ones(encoder):
    segments = Segments()
    segments.add("ask", UNTRAINED, (2, 50, 1))
    segments.add("\na", 1, (2, 50), trained_ids=1, end=2)
    segments.end_sample()
    segments.add("b", 0, (), end=1)
    segments.end_sample()
    columns = segments.encode(encoder)
    ask, newline, a, b = (ids(encoder, text) for text in ("ask", "\n", "a", "b"))
    assert columns.ids.tolist() == [*ask, 2, 50, 1, *newline, *a, 2, 50, *b]
    assert columns.mask.tolist() == [0] * (len(ask) + 3 + len(newline)) + [1] * (len(a) + 1) + [0] + [1] * len(b)
    assert columns.sizes.tolist() == [len(ask) + len(newline) + len(a) + 5, len(b)]
    assert columns.turn_ends.tolist() == [len(ask) + 3 + len(newline) + len(a) + 1, len(b)]
    assert columns.turns.tolist() == [1, 1]
    assert columns.rejected == {}
    assert (columns.ids.dtype, columns.mask.dtype, columns.turn_ends.dtype) == (np.int32, np.uint8, np.int32)


def test_a_token_that_spans_the_place_rejects_its_sample_alone(encoder):
    segments = Segments()
    assert len(ids(encoder, " the")) == 1
    for place in (0, 2, 4):
        segments.add(" the", place, (2,), trained_ids=1, end=2)
        segments.end_sample()
    columns = segments.encode(encoder)
    assert list(columns.rejected) == [1]
    assert columns.rejected[1].evidence == "token ' the' is part prompt, part answer"
    assert [sample.mask for sample in list(iter_samples(columns))[::2]] == [[1, 1], [0, 1]]


def test_truncated_samples_leave_nothing_behind(encoder):
    segments, expected = Segments(), Segments()
    for each in (segments, expected):
        each.add("a", 0, (2,), 1, 2)
        each.end_sample()
    segments.add("b", 0, (2,), 1, 2)
    segments.end_sample()
    segments.add("not finished", UNTRAINED)
    segments.truncate(1)
    assert vars(segments) == vars(expected)
    assert Segments().encode(encoder).ids.tolist() == []


segment = st.tuples(
    st.text("ab é\n", max_size=5),
    st.integers(UNTRAINED, 5),
    st.lists(st.integers(0, 2), max_size=3).map(tuple),
    st.integers(0, 3),
    st.integers(0, 2),
)


@settings(max_examples=200)
@given(st.lists(st.lists(segment, min_size=1, max_size=4), min_size=1, max_size=4))
def test_a_batch_gives_what_its_samples_give_alone(encoder, samples):
    def add(segments, sample):
        for text, place, control, trained, end in sample:
            segments.add(
                text, min(place, len(text)), control, min(trained, len(control)), end if control else min(end, 1)
            )
        segments.end_sample()

    together, alone = Segments(), []
    for sample in samples:
        add(together, sample)
        single = Segments()
        add(single, sample)
        alone += iter_samples(single.encode(encoder))
    assert list(iter_samples(together.encode(encoder))) == alone
