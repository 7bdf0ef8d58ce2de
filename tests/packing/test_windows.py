"""Windows: what each has of a long sample, and that no token is trained twice or under another's tools."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.packing.windows import LongAnswer, LongSample, cut_windows
from sft.tokens.outline import LINE, PARAGRAPH

STOP, OPENS, CLOSED = 2, 7, 8
NO_TOOLS = frozenset()


def pin(*, system=2, tools=()):
    """A pinned start of `system` tokens 90 and, for each tool, as many tokens 91, 92, ... as `tools` says."""

    def start(chosen):
        return np.array([90] * system + [91 + tool for tool in sorted(chosen) for _ in range(tools[tool])], np.int32)

    def pinned(called, most, *, fill=False):
        chosen = set(called)
        for tool in range(len(tools)) if fill else ():
            chosen |= {tool} if len(start(chosen | {tool})) <= most else set()
        return start(chosen) if len(start(chosen)) <= most else None

    return pinned


def sample(*turns, pinned=2, breaks=(), said=None, calls=()):
    """A sample of turns (tokens of the question, tokens of the answer); a header is OPENS, the answer ends with STOP.

    Tokens of questions count from 100, those of answers from 200. breaks: (token, kind).
    """
    ids, starts, questions, answers = [90] * pinned, [], [], []
    for number, (asked, answered) in enumerate(turns):
        starts.append(len(ids))
        questions.append(len(ids))
        ids += range(100, 100 + asked)
        starts.append(len(ids))
        header, begin = len(ids), len(ids) + 1
        ids += [OPENS, *range(200, 200 + answered - 1), STOP]
        called = frozenset(calls[number]) if calls else NO_TOOLS
        answers.append(LongAnswer(header, begin, len(ids), begin if said is None else begin + said, called))
    mask = np.zeros(len(ids), np.uint8)
    for answer in answers:
        mask[answer.start : answer.end] = 1
    kinds = np.zeros(len(ids), np.uint8)
    for token, kind in breaks:
        kinds[token] = kind
    headers = np.array([CLOSED], np.int32), np.array([OPENS], np.int32)
    return LongSample(np.array(ids, np.int32), mask, pinned, starts, questions, answers, kinds, headers)


def shown(windows):
    """Each window as (tokens that are context, trained tokens)."""
    return [(window.ids[window.mask == 0].tolist(), window.ids[window.mask == 1].tolist()) for window in windows]


def test_the_question_stays_whole_and_the_answer_is_cut_behind_its_last_line_that_fits():
    long = sample((4, 12), breaks=[(9, LINE), (12, LINE), (13, PARAGRAPH), (14, LINE)])
    (asked, first), (again, rest) = shown(cut_windows(long, pin(), 16))
    assert (asked, first) == ([90, 90, 100, 101, 102, 103, OPENS], [200, 201, 202, 203, 204, 205, 206]), "a paragraph"
    assert rest == [207, 208, 209, 210, STOP], "only the window with the stop token ends the turn"
    assert again == [90, 90, OPENS, *first], "all messages that fit"


def test_whole_turns_share_a_window_and_later_ones_show_earlier_messages_where_there_is_room():
    long = sample((3, 4), (3, 4), (3, 4))
    assert shown(cut_windows(long, pin(), 18)) == [
        ([90, 90, 100, 101, 102, OPENS, 100, 101, 102, OPENS], [200, 201, 202, STOP, 200, 201, 202, STOP]),
        ([90, 90, 100, 101, 102, OPENS, 200, 201, 202, STOP, 100, 101, 102, OPENS], [200, 201, 202, STOP]),
    ]


@pytest.mark.parametrize(("said", "header"), [(None, CLOSED), (16, OPENS), (2, CLOSED)])
def test_a_header_opens_the_reasoning_only_if_the_window_begins_inside_of_it(said, header):
    _, (context, _) = shown(cut_windows(sample((2, 20), said=said), pin(), 16))
    assert context[2] == header


def test_a_call_has_its_tool_and_others_as_they_fit():
    (window,) = cut_windows(sample((3, 4), pinned=30, calls=[{1}]), pin(tools=(20, 4, 3)), 18)
    assert window.ids.tolist() == [90, 90, *[92] * 4, *[93] * 3, 100, 101, 102, OPENS, 200, 201, 202, STOP]


def test_a_call_is_left_if_there_is_no_room_for_its_tool_and_the_turns_around_it_are_trained():
    long = sample((3, 4), (3, 4), (3, 4), pinned=30, calls=[{}, {0}, {}])
    assert [trained for _, trained in shown(cut_windows(long, pin(tools=(20,)), 18))] == [[200, 201, 202, STOP]] * 2


def test_a_call_that_is_cut_has_its_tool_in_every_window():
    long = sample((3, 30), pinned=30, calls=[{0}])
    windows = shown(cut_windows(long, pin(tools=(4,)), 20))
    assert len(windows) > 2
    assert all(context[:6] == [90, 90, 91, 91, 91, 91] for context, _ in windows)


def test_a_question_that_does_not_fit_is_shown_from_where_it_does():
    ((context, trained),) = shown(cut_windows(sample((40, 6)), pin(), 16))
    assert trained == [200, 201, 202, 203, 204, STOP]
    assert context == [90, 90, *range(134, 140), OPENS]


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(2, 60), st.sets(st.integers(0, 2))), min_size=1, max_size=6),
    st.integers(0, 20),
    st.lists(st.integers(0, 400), max_size=30),
    st.tuples(*[st.integers(1, 20)] * 3),
    st.integers(8, 64),
    st.one_of(st.none(), st.integers(0, 60)),
)
def test_each_trained_token_is_in_one_window_but_those_of_calls_without_room(turns, system, lines, tools, limit, said):
    system += 1
    long = sample(
        *[turn[:2] for turn in turns], pinned=system + sum(tools), said=said, calls=[called for *_, called in turns]
    )
    long.breaks[[line for line in lines if line < len(long.ids)]] = LINE
    long.ids[:] = np.arange(1000, 1000 + len(long.ids))  # so that each token is known
    windows = cut_windows(long, pin(system=system, tools=tools), limit)
    trained = np.concatenate([window.ids[window.mask == 1] for window in windows] or [np.empty(0, np.int32)])
    assert (np.diff(trained) > 0).all(), "each once, in order"
    left = np.setdiff1d(long.ids[long.mask == 1], trained) - 1000
    owner = {token: answer for answer in long.answers for token in range(answer.start, answer.end)}
    assert all(owner[token].called for token in left.tolist())
    for window in windows:
        assert window.mask[0] == 0
        assert len(window.ids) <= limit
        for token in (window.ids[window.mask == 1] - 1000).tolist():
            assert all(91 + tool in window.ids for tool in owner[token].called)
