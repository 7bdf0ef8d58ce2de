"""Repetition: conversations in which the model got stuck in a loop, and would teach that.

A conversation -> None, or a rejection with the repeated text, how often it occurs and where. Only what is trained is
checked: the reasoning, the answer and the call arguments of each assistant turn, each by itself, then all turns
together. Four kinds of repetition are found, by exact counting:

    lines       a line or sentence, again and again: loops of sentences and of paragraphs, A-B-A-B
    words       a sequence of words, again and again inside a window; also with a number that changes
    characters  a few characters over and over: aaaa, !!!!, 0 0 0 0; and numbers that only count on
    turns       the same message answered with the same action, again and again

Lines, words and turns have one measure: a *span* covers at least `repeats` occurrences of one item, and nearly all of
it are items that occur as often. A refrain between verses, a row of a table or a case of a proof may occur as often,
but other text is between. Time is linear in the text.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import sub

import numpy as np
import numpy.typing as npt

from sft.conversation import Conversation, Message, Rejection, trained_turns
from sft.filters.dedup.words import MULTIPLIERS, Hashes, hash_words
from sft.filters.encoding import quote
from sft.params.data import Repetition

# A longer word outside ASCII is text without spaces (Chinese, Thai): each of its characters counts as a word.
MAX_WORD_CHARS = 20
# Shorter lines ("}", "return x", "yes") are no evidence of a loop; their words may be.
MIN_LINE_CHARS = 16
SENTENCE_ENDS = (". ", "! ", "? ")
OTHER_SENTENCE_ENDS = ("。", "！", "？", "।")  # noqa: RUF001
# A window of SCREEN_WORDS words is checked closely if at most half of the words are distinct, and at most this share of
# its sequences of three.
SCREEN_WORDS, SCREEN_SEQUENCES = 60, 0.6
STEP_WORDS = SCREEN_WORDS // 2
WINDOWS_AT_ONCE = 1024
# With a larger share of digits than this, a loop with a changing number is data.
NUMBERED_DIGITS = 0.1
# With at least this share of symbols that programs have and prose has not, it is code, where people repeat as often as
# CODE_TIMES the limit of prose.
CODE_SYMBOLS, MIN_CODE_SYMBOLS, CODE_TIMES = "()[]{}<>=_;/\\", 0.05, 4
# Periods of a loop of characters: the divisors of COMMON_PERIOD up to 12, so that one comparison finds them all.
COMMON_PERIOD, PERIODS = 60, (1, 2, 3, 4, 5, 6, 10, 12)
PROBE_CHARS = 32
# In a loop over all turns, a line must occur this many times as often.
TOGETHER = 2

DIGITS = b"0123456789"
# Of the same length: letters in lower case and digits stay, punctuation becomes a space. Bytes above 127 stay.
WORDS = bytes(byte if byte > 127 or chr(byte).isalnum() else 32 for byte in bytes(range(256)).lower())
NOT_LETTERS = bytes(byte for byte in range(128) if not chr(byte).isalpha())
WORDS_WITHOUT_NUMBERS = WORDS.translate(bytes.maketrans(DIGITS, b" " * 10))
Regions = list[tuple[int, int]]  # (first word, end) of parts of a text
NUMBERS, LETTER = re.compile(r"[0-9]+"), re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class Span:
    """Items start <= i < end of a sequence; `first` and `second` are the nearest occurrences of one item in it."""

    start: int
    end: int
    first: int
    second: int
    repeats: int
    """How often that item occurs in the span."""


def check_repetitions(conversations: Sequence[Conversation], limits: Repetition) -> list[Rejection | None]:
    """Return the rejection of each conversation by its first loop, or None."""
    shortest = min(limits.min_letters, limits.max_char_run, limits.max_counting_run)
    messages_of = [conversation.messages for conversation in conversations]
    texts = [
        [(turn, *each) for turn in trained_turns(messages) for each in trained_texts(messages[turn])]
        for messages in messages_of
    ]
    long = [
        text
        for each in texts
        for _, _, text in each
        if len(text) >= shortest or len(text.encode("utf-8", "surrogatepass")) >= shortest
    ]
    regions = dict(zip(long, poor_regions(long), strict=True))
    return [_first_loop(messages, each, regions, limits) for messages, each in zip(messages_of, texts, strict=True)]


def _first_loop(
    messages: list[Message], texts: list[tuple[int, str, str]], regions: Mapping[str, Regions], limits: Repetition
) -> Rejection | None:
    turns = trained_turns(messages)
    all_texts, all_lines = [], []
    for index, kind, text in texts:
        lines = split_lines(text)
        if text in regions and (loop := find_loop(text, lines, regions[text], limits)):
            reason = "repetition-reasoning" if kind == "reasoning" else "repetition-answer"
            return Rejection(reason, f"messages[{index}] {kind}, {loop}")
        if kind == "call":  # it is one line, which counts as text between repeated lines, never as one
            text = f"{index}: {text.replace('\n', ' ')}"
            lines = split_lines(text)
        all_texts.append(text)
        all_lines += lines
    if len(turns) > 1 and (loop := find_line_loop("\n".join(all_texts), all_lines, limits, TOGETHER)):
        return Rejection("repetition-trajectory", f"all turns in a row, {loop}")
    if loop := find_turn_loop(messages, turns, limits):
        return Rejection("repetition-trajectory", loop)
    return None


def trained_texts(message: Message) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of a turn: reasoning, answer, and the arguments of each call."""
    if reasoning := message.get("reasoning_content"):
        yield "reasoning", reasoning
    if message["content"]:
        yield "answer", message["content"]
    for call in message.get("tool_calls", []):
        yield "call", json.dumps(call["function"]["arguments"], ensure_ascii=False).replace("\\n", "\n")


def split_lines(text: str) -> list[str]:
    """Return the lines and sentences of a text; one character is missing after each."""
    for mark in SENTENCE_ENDS if text.isascii() else SENTENCE_ENDS + OTHER_SENTENCE_ENDS:
        if mark[0] in text:  # one character is found much faster than two
            text = text.replace(mark, mark[:-1] + "\n")
    return text.split("\n")


def find_loop(text: str, lines: list[str], regions: Regions, limits: Repetition) -> str:
    """Return the evidence of the first loop in a text with these `split_lines` and `poor_regions`, or ""."""
    loop = find_line_loop(text, lines, limits) or find_word_loop(text, regions, limits)
    return loop or find_char_run(text, limits)


def find_line_loop(text: str, lines: list[str], limits: Repetition, times: int = 1) -> str:
    """Return the evidence of a line or sentence that occurs `times` x line_repeats times, with little other text."""
    repeats = limits.line_repeats * times
    long = [line for line in lines if len(line) >= MIN_LINE_CHARS]
    if len(long) - len(set(long)) < repeats - 1 or max(Counter(map(str.strip, long)).values()) < repeats:
        return ""
    keys = [line.strip() if len(line) >= MIN_LINE_CHARS else None for line in lines]
    span = find_span(
        keys,
        lambda: _letters_of_lines("\n".join(lines)),
        repeats,
        len(keys),
        limits.min_repeated_share,
        limits.min_letters,
    )
    if span is None:
        return ""
    starts = [0, *accumulate(len(line) + 1 for line in lines)]
    unit = text[starts[span.first] : starts[span.second]]
    return _evidence(unit, span.repeats, starts[span.start], starts[span.end] - 1)


def find_word_loop(text: str, regions: Regions, limits: Repetition) -> str:
    """Return the evidence of a sequence of words that occurs often in a window, with the same or other numbers."""
    if not regions:
        return ""
    spaced = _translate(text, WORDS_WITHOUT_NUMBERS)
    words = _words(spaced)
    starts: list[int] = []
    for first, last in regions:
        if _sequence_span(words[first:last], limits.ngram_repeats, limits):
            starts = starts or _starts(spaced, words)
            if loop := _word_loop(text, starts[first], starts[last], limits):
                return loop
    return ""


def _word_loop(text: str, begin: int, stop: int, limits: Repetition) -> str:
    """Return the evidence of a loop of words in the characters begin <= i < stop of a text."""
    for table, repeats in ((WORDS, limits.ngram_repeats), (WORDS_WITHOUT_NUMBERS, limits.max_numbered_repeats)):
        spaced = _translate(text[begin:stop], table)
        words = _words(spaced)
        if span := _sequence_span(words, repeats, limits):
            starts = [begin + start for start in _starts(spaced, words)]
            start, end = starts[span.start], starts[min(span.end + limits.ngram - 1, len(words))]
            if table is WORDS or not _is_data_or_code(text[start:end], span.repeats, limits):
                return _evidence(text[starts[span.first] : starts[span.second]], span.repeats, start, end)
    return ""


def _is_data_or_code(text: str, repeats: int, limits: Repetition) -> bool:
    """Return whether repeats that differ in numbers are data, or generated code such as a test for each case."""
    digits, symbols = (sum(map(text.count, letters)) for letters in ("0123456789", CODE_SYMBOLS))
    is_code = symbols >= MIN_CODE_SYMBOLS * len(text) and repeats < CODE_TIMES * limits.max_numbered_repeats
    return digits > NUMBERED_DIGITS * len(text) or is_code


def poor_regions(texts: Sequence[str]) -> list[Regions]:
    """Return the parts of each text with few distinct words, and a window to either side.

    Their words are few, and so are their sequences of three: a loop has few of both, a table has many sequences.
    """
    words = hash_words(texts, _word_bytes)
    sequences = words.hashes.copy()  # of three words from each place on
    sequences[:-2] += words.hashes[1:-1] * np.uint64(MULTIPLIERS[0]) + words.hashes[2:] * np.uint64(MULTIPLIERS[1])
    lengths = np.diff(words.starts)
    windows = np.where(lengths < 3, 0, np.maximum(1, -(-lengths // STEP_WORDS) - 1))
    text = np.repeat(np.arange(len(texts)), windows)
    places = STEP_WORDS * (np.arange(len(text)) - np.repeat(np.cumsum(windows) - windows, windows))
    regions: list[Regions] = [[] for _ in texts]
    for some in np.split(np.arange(len(text)), range(WINDOWS_AT_ONCE, len(text), WINDOWS_AT_ONCE)):
        sizes = np.minimum(SCREEN_WORDS, lengths[text[some]] - places[some])
        starts = words.starts[text[some]] + places[some]
        few = np.flatnonzero(_distinct(words.hashes, starts, sizes) <= sizes // 2)
        few = few[_distinct(sequences, starts[few], sizes[few] - 2) <= SCREEN_SEQUENCES * sizes[few]]
        for number, place in zip(text[some][few].tolist(), places[some][few].tolist(), strict=True):
            begin, end = max(0, place - SCREEN_WORDS), min(int(lengths[number]), place + 2 * SCREEN_WORDS)
            if regions[number] and begin <= regions[number][-1][1]:
                begin, _ = regions[number].pop()
            regions[number].append((begin, end))
    return regions


def _distinct(hashes: Hashes, starts: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return how many distinct hashes each window has, of at most SCREEN_WORDS."""
    places = np.minimum(np.arange(SCREEN_WORDS), sizes[:, None] - 1)  # a shorter one has its last hash more often
    ordered = np.sort(hashes[starts[:, None] + places], axis=1)
    changes: npt.NDArray[np.int64] = (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1)
    return changes + 1


def _word_bytes(text: str) -> bytes:
    """Return the `_words` of a text without numbers in UTF-8, with spaces between."""
    if text.isascii():
        return text.encode().translate(WORDS_WITHOUT_NUMBERS)
    return " ".join(_words(_translate(text, WORDS_WITHOUT_NUMBERS))).encode("utf-8", "surrogatepass")


def _sequence_span(words: list[str], repeats: int, limits: Repetition) -> Span | None:
    sequences = list(zip(*(words[i:] for i in range(limits.ngram)), strict=False))
    window = limits.window * repeats // limits.ngram_repeats
    return find_span(
        sequences, lambda: _word_letters(words), repeats, window, limits.min_repeated_share, limits.min_letters
    )


def find_char_run(text: str, limits: Repetition) -> str:
    """Return the evidence of a few characters repeated without gaps, or of numbers that only count on."""
    step = max(1, limits.max_char_run - COMMON_PERIOD - PROBE_CHARS)  # every long enough part has a probe
    for probe in range(0, len(text) - COMMON_PERIOD - PROBE_CHARS + 1, step):
        if text[probe : probe + PROBE_CHARS] == text[probe + COMMON_PERIOD : probe + COMMON_PERIOD + PROBE_CHARS]:
            for period in PERIODS:
                start, end = _periodic(text, probe, period)
                if end - start >= limits.max_char_run:
                    return _evidence(text[start : start + period], (end - start) // period, start, end)
    encoded = text.encode("utf-8", "surrogatepass")
    if len(encoded) - len(encoded.translate(None, DIGITS)) >= limits.max_counting_run:
        return _counting_run(text, limits.max_counting_run)
    return ""


def find_turn_loop(messages: Sequence[Message], turns: Sequence[int], limits: Repetition) -> str:
    """Return the evidence of the same message answered with the same action again and again.

    Another result, or another answer to the same result, is progress and no loop. `turns` are the indices of assistant
    messages.
    """
    if sum(len(messages[index].get("tool_calls", "1")) for index in turns) < limits.turn_repeats:
        return ""
    steps = [
        (index, (messages[index - 1]["content"] if index else "", action))
        for index in turns
        for action in _actions(messages[index])
    ]
    places, actions = [index for index, _ in steps], [action for _, action in steps]
    span = find_span(
        actions, lambda: [1] * len(actions), limits.turn_repeats, len(actions), limits.min_repeated_share, 0
    )
    if span is None:
        return ""
    first, last = places[span.start], places[span.end - 1]
    return f"messages[{first}] to messages[{last}]: {span.repeats} times {quote(actions[span.first][1])}"


def find_span(
    keys: Sequence[Hashable],
    weigh: Callable[[], Sequence[int]],
    repeats: int,
    window: int,
    min_repeated_share: float,
    min_letters: int,
) -> Span | None:
    """Return the first span that is a loop, as the head of this file defines it.

    Args:  keys: the items, compared by equality; None is never repeated. weigh: returns the letters of each item, of at
    least as many items; called only if needed. repeats, window: a span needs `repeats` occurrences of one key within
    `window` items.
    """
    if len(keys) < repeats:
        return None
    often = {key for key, count in Counter(keys).items() if count >= repeats and key is not None}
    if not often:
        return None
    places = defaultdict(list)
    for position, key in enumerate(keys):
        if key in often:
            places[key].append(position)
    weights = weigh()[: len(keys)]
    total = [0, *accumulate(weights)]
    repeated = [0, *accumulate(w if key in often else 0 for w, key in zip(weights, keys, strict=True))]
    opened = [0] * (len(keys) + 1)
    for occurrences in places.values():
        for start, last in zip(occurrences, occurrences[repeats - 1 :], strict=False):
            end = last + 1
            is_dense = repeated[end] - repeated[start] >= min_repeated_share * (total[end] - total[start])
            if end - start <= window and is_dense:
                opened[start] += 1
                opened[end] -= 1
    depth = list(accumulate(opened))
    edges = [i for i in range(len(depth)) if (depth[i] > 0) != (i > 0 and depth[i - 1] > 0)]
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        if total[end] - total[start] >= min_letters:
            counts = Counter(key for key in keys[start:end] if key in often)
            item, count = max(counts.items(), key=lambda entry: entry[1])  # of equal counts the first
            inside = [place for place in places[item] if start <= place < end]
            first, second = min(pairwise(inside), key=lambda pair: pair[1] - pair[0])
            return Span(start, end, first, second, count)
    return None


def _translate(text: str, table: bytes) -> str:
    """Return a text of the same length; of its ASCII letters in lower case, no punctuation."""
    return text.encode("utf-8", "surrogatepass").translate(table).decode("utf-8", "surrogatepass")


def _words(spaced: str) -> list[str]:
    """Return the words between spaces; a long word outside ASCII is split into characters: it has no spaces."""
    words = spaced.split()
    if spaced.isascii():
        return words
    split: list[str] = []
    for word in words:
        if len(word) < MAX_WORD_CHARS or word.isascii():
            split.append(word)
        else:
            split += word
    return split


def _starts(spaced: str, words: list[str]) -> list[int]:
    """Return where each word starts, and the end."""
    starts, position = [], 0
    for word in words:
        position = spaced.index(word, position)
        starts.append(position)
        position += len(word)
    return [*starts, len(spaced)]


def _letters(text: str) -> int:
    """Return the letters of a text in UTF-8 bytes: a Chinese character counts as three letters."""
    if text.isascii():
        return len(text) if text.isalpha() else len(text.encode().translate(None, NOT_LETTERS))
    return sum(len(character.encode("utf-8", "replace")) for character in text if character.isalpha())


def _letters_of_lines(text: str) -> list[int]:
    """Return the letters of each line."""
    if text.isascii():
        return list(map(len, text.encode().translate(None, NOT_LETTERS.replace(b"\n", b"")).split(b"\n")))
    return [_letters(line) for line in text.split("\n")]


def _word_letters(words: list[str]) -> list[int]:
    letters = {word: _letters(word) for word in set(words)}
    return [letters[word] for word in words]


def _periodic(text: str, probe: int, period: int) -> tuple[int, int]:
    """Return (start, end) of the part around `probe` that repeats itself after `period` characters."""
    start = end = probe
    while start > 0 and text[start - 1] == text[start - 1 + period]:
        start -= 1
    while end + period < len(text) and text[end] == text[end + period]:
        end += 1
    return start, end + period


def _counting_run(text: str, min_numbers: int) -> str:
    """Return the evidence of consecutive numbers, no letter between, that grow or shrink by the same step."""
    numbers = [int(number[-18:]) for number in NUMBERS.findall(text)]
    steps = list(map(sub, numbers[1:], numbers))
    spans: list[tuple[int, int]] = []
    end = 0
    for probe in range(0, len(steps), max(1, min_numbers // 2)):  # every long enough part has a probe
        if probe < end or not steps[probe]:
            continue
        start = end = probe
        while start > 0 and steps[start - 1] == steps[probe]:
            start -= 1
        while end < len(steps) and steps[end] == steps[probe]:
            end += 1
        if end - start + 1 >= min_numbers:
            spans = spans or [match.span() for match in NUMBERS.finditer(text)]
            begin, stop = spans[start][0], spans[end][1]
            if not LETTER.search(text, begin, stop):
                return _evidence(text[begin : spans[min(start + 3, end)][1]], end - start + 1, begin, stop)
    return ""


def _actions(message: Message) -> list[str]:
    """Return the actions of a turn: its calls, or its answer."""
    calls = [call["function"] for call in message.get("tool_calls", [])]
    if not calls:
        return [message["content"]]
    return [f"{call['name']} {json.dumps(call['arguments'], sort_keys=True, ensure_ascii=False)}" for call in calls]


def _evidence(unit: str, repeats: int, start: int, end: int) -> str:
    return f"characters {start} to {end}: {repeats} times {quote(unit.strip() or unit)}"
