"""Repetition: conversations in which the model got stuck, and would teach it.

A conversation -> None, or a rejection with the repeated text, how often it comes and where. Judged is what
is trained: the reasoning, the answer and the long arguments of every assistant turn, each apart, then all
turns together. Text of users and tools never is. Four things are looked for, all by exact counting:

    lines       a line or sentence, again and again: loops of sentences and of paragraphs, A-B-A-B
    words       a sequence of words, again and again inside a window; also with a number that changes
    characters  a few characters over and over: aaaa, !!!!, 0 0 0 0; and numbers that only count on
    turns       the same message answered with the same action, again and again

One measure serves lines, words and turns: a *stretch* reaches over `repeats` occurrences of one item, and
nearly all in it are items that come so often. A refrain between verses, a row of a table or a case of a
proof comes as often, but what stands between does not. Time is linear in the text.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from operator import sub

from sft.conversation import Conversation, Message, Rejection
from sft.filters.repetition_screen import LONGEST_WORD, OTHER_SENTENCE_ENDS, SENTENCE_ENDS, SHORTEST_LINE, screen
from sft.params.data import Repetition

# A window of so many words is looked at closely when at most half of them are distinct, and at most this share
# of its sequences of three.
SCREEN_WORDS, SCREEN_SEQUENCES = 60, 0.6
# A loop with a changing number is one of words: more digits in it than this share, and it is data.
NUMBERED_DIGITS = 0.1
# Units of a loop of characters: the divisors of COMMON_PERIOD up to 12, so that one comparison finds them all.
COMMON_PERIOD, PERIODS = 60, (1, 2, 3, 4, 5, 6, 10, 12)
PROBE_CHARS = 32
EVIDENCE_CHARS = 160
# A line comes so many times as often in a loop over all turns.
TOGETHER = 2
# Screened together: the numbers on the way stay in the processor's cache.
BLOCK_CHARS = 1 << 18

DIGITS = b"0123456789"
# Same length out as in: small letters and digits stay, punctuation becomes a space. Bytes above 127 stay.
WORDS = bytes(byte if byte > 127 or chr(byte).isalnum() else 32 for byte in bytes(range(256)).lower())
NOT_LETTERS = bytes(byte for byte in range(128) if not chr(byte).isalpha())
WORDS_WITHOUT_NUMBERS = WORDS.translate(bytes.maketrans(DIGITS, b" " * 10))
NUMBERS, LETTER = re.compile(r"[0-9]+"), re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class Trained:
    """What of a conversation is judged."""

    turns: list[int]
    """Indices of its messages."""
    texts: list[tuple[int, str, str]]
    """(index, kind, text)"""
    in_a_row: list[str] | None
    """The texts of several turns, a call in one line: it counts as what stands between, never as a repeated line."""

    @classmethod
    def of(cls, conversation: Conversation) -> "Trained":
        """Collect the texts of assistant turns that are trained."""
        turns = [
            (index, message)
            for index, message in enumerate(conversation.messages)
            if message["role"] == "assistant" and message.get("loss") is not False
        ]
        texts = [(index, kind, text) for index, message in turns for kind, text in trained_texts(message)]
        lines = [text if kind != "call" else f"{index}: {text.replace('\n', ' ')}" for index, kind, text in texts]
        return cls([index for index, _ in turns], texts, lines if len(turns) > 1 else None)


@dataclass(frozen=True)
class Stretch:
    """Items start <= i < end of a sequence, in which `first` and `second` are the nearest two of one item."""

    start: int
    end: int
    first: int
    second: int
    repeats: int
    """How often that item comes in the stretch."""


def check_repetition(conversation: Conversation, limits: Repetition) -> Rejection | None:
    """Return the first loop of a conversation, or None."""
    return check_repetitions([conversation], limits)[0]


def check_repetitions(conversations: Sequence[Conversation], limits: Repetition) -> list[Rejection | None]:
    """Check many conversations: a screen of all their texts at once first; few must be looked at closely."""
    found: list[Rejection | None] = []
    block: list[tuple[Conversation, Trained]] = []
    size = 0
    for place, conversation in enumerate(conversations):
        trained = Trained.of(conversation)
        block.append((conversation, trained))
        size += sum(len(text) for _, _, text in trained.texts)
        if size >= BLOCK_CHARS or place == len(conversations) - 1:
            found += _check_block(block, limits)
            block, size = [], 0
    return found


def _check_block(block: Sequence[tuple[Conversation, Trained]], limits: Repetition) -> Iterator[Rejection | None]:
    """Yield the first loop of each conversation, or None."""
    texts: list[str] = []
    groups: list[int] = []
    begins: list[int] = []
    for group, (_, trained) in enumerate(block):
        begins.append(len(texts))
        texts += [text for _, _, text in trained.texts]
        groups += [group if kind != "call" else len(block) for _, kind, _ in trained.texts]
        if trained.in_a_row is not None:  # calls are other lines there
            calls = [line for line, (_, kind, _) in zip(trained.in_a_row, trained.texts, strict=True) if kind == "call"]
            texts += calls
            groups += [group] * len(calls)
    screened = screen(texts, groups, len(block) + 1, limits, TOGETHER)
    for (conversation, trained), begin, together in zip(block, begins, screened.together.tolist(), strict=False):
        own = slice(begin, begin + len(trained.texts))
        looks = list(zip(screened.lines[own].tolist(), screened.words[own].tolist(), strict=True))
        yield _first_loop(conversation, trained, limits, looks, together)


def _first_loop(
    conversation: Conversation,
    trained: Trained,
    limits: Repetition,
    looks: Sequence[tuple[bool, bool]],
    together: bool,
) -> Rejection | None:
    """Return the first loop; `looks` say of each text whether lines and words are looked for, `together` of all."""
    shortest = min(limits.min_letters, limits.max_char_run, limits.max_counting_run)
    for (index, kind, text), (lines, words) in zip(trained.texts, looks, strict=True):
        if len(text.encode("utf-8", "surrogatepass")) >= shortest and (loop := find_loop(text, limits, lines, words)):
            reason = "repetition-reasoning" if kind == "reasoning" else "repetition-answer"
            return Rejection(reason, f"messages[{index}] {kind}, {loop}")
    if together and trained.in_a_row is not None:
        if loop := find_line_loop("\n".join(trained.in_a_row), limits, TOGETHER):
            return Rejection("repetition-trajectory", f"all turns in a row, {loop}")
    if loop := find_turn_loop(conversation.messages, trained.turns, limits):
        return Rejection("repetition-trajectory", loop)
    return None


def trained_texts(message: Message) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of a turn: its reasoning, its answer, and the arguments of each call."""
    if reasoning := message.get("reasoning_content"):
        yield "reasoning", reasoning
    if message["content"]:
        yield "answer", message["content"]
    for call in message.get("tool_calls", []):
        yield "call", json.dumps(call["function"]["arguments"], ensure_ascii=False).replace("\\n", "\n")


def find_loop(text: str, limits: Repetition, lines: bool = True, words: bool = True) -> str:
    """Describe the first loop in a text; empty if there is none, or one of lines or words that is not looked for."""
    return (
        (lines and find_line_loop(text, limits)) or (words and find_word_loop(text, limits)) or find_run(text, limits)
    )


def find_line_loop(text: str, limits: Repetition, times: int = 1) -> str:
    """Find lines or sentences that come back `times` x line_repeats times, with little else between."""
    repeats = limits.line_repeats * times
    marked = text
    for mark in SENTENCE_ENDS if text.isascii() else SENTENCE_ENDS + OTHER_SENTENCE_ENDS:
        marked = marked.replace(mark, mark[:-1] + "\n")  # as long as before: places stay
    lines = marked.split("\n")
    long = [line for line in lines if len(line) >= SHORTEST_LINE]
    if len(long) - len(set(long)) < repeats - 1:
        return ""
    keys = [line.strip() if len(line) >= SHORTEST_LINE else None for line in lines]
    stretch = find_stretch(
        keys, lambda: _letters_of_lines(marked), repeats, len(keys), limits.min_repeated_share, limits.min_letters
    )
    if stretch is None:
        return ""
    starts = [0, *accumulate(len(line) + 1 for line in lines)]
    unit = text[starts[stretch.first] : starts[stretch.second]]
    return _describe(unit, stretch.repeats, starts[stretch.start], starts[stretch.end] - 1)


def find_word_loop(text: str, limits: Repetition) -> str:
    """Find a sequence of words that comes back inside a window, as it is or with another number in it."""
    plain = _plain(text, WORDS_WITHOUT_NUMBERS)
    words = _words(plain)
    starts: list[int] = []
    for first, last in _poor_regions(words):
        if _sequence_stretch(words[first:last], limits.ngram_repeats, limits):
            starts = starts or _starts(plain, words)
            if loop := _word_loop(text, starts[first], starts[last], limits):
                return loop
    return ""


def _word_loop(text: str, begin: int, stop: int, limits: Repetition) -> str:
    """Look closely at the characters begin <= i < stop of a text."""
    for table, repeats in ((WORDS, limits.ngram_repeats), (WORDS_WITHOUT_NUMBERS, limits.max_numbered_repeats)):
        plain = _plain(text[begin:stop], table)
        words = _words(plain)
        if stretch := _sequence_stretch(words, repeats, limits):
            starts = [begin + start for start in _starts(plain, words)]
            start, end = starts[stretch.start], starts[min(stretch.end + limits.ngram - 1, len(words))]
            digits = sum(map(text[start:end].count, "0123456789"))
            if table is WORDS or digits <= NUMBERED_DIGITS * (end - start):
                return _describe(text[starts[stretch.first] : starts[stretch.second]], stretch.repeats, start, end)
    return ""


def _poor_regions(words: list[str]) -> Iterator[tuple[int, int]]:
    """Yield where a text has few distinct words, with a window to either side."""
    first = last = -1
    for place in range(0, max(1, len(words) - SCREEN_WORDS // 2), SCREEN_WORDS // 2):
        window = words[place : place + SCREEN_WORDS]
        if len(set(window)) <= len(window) // 2 and _has_few_sequences(window):
            if first >= 0 and place - SCREEN_WORDS > last:
                yield first, last
                first = -1
            first = max(0, place - SCREEN_WORDS) if first < 0 else first
            last = min(len(words), place + 2 * SCREEN_WORDS)
    if first >= 0:
        yield first, last


def _has_few_sequences(window: list[str]) -> bool:
    """Say whether a window with few distinct words has few sequences of them too: a loop has, a table has not."""
    return len(set(zip(window, window[1:], window[2:], strict=False))) <= SCREEN_SEQUENCES * len(window)


def _sequence_stretch(words: list[str], repeats: int, limits: Repetition) -> Stretch | None:
    sequences = list(zip(*(words[i:] for i in range(limits.ngram)), strict=False))
    window = limits.window * repeats // limits.ngram_repeats
    return find_stretch(
        sequences, lambda: _word_letters(words), repeats, window, limits.min_repeated_share, limits.min_letters
    )


def find_run(text: str, limits: Repetition) -> str:
    """Find a few characters over and over with nothing between, or numbers that only count on."""
    step = max(1, limits.max_char_run - COMMON_PERIOD - PROBE_CHARS)  # every run that is long enough holds a probe
    for probe in range(0, len(text) - COMMON_PERIOD - PROBE_CHARS + 1, step):
        if text[probe : probe + PROBE_CHARS] == text[probe + COMMON_PERIOD : probe + COMMON_PERIOD + PROBE_CHARS]:
            for period in PERIODS:
                start, end = _periodic(text, probe, period)
                if end - start >= limits.max_char_run:
                    return _describe(text[start : start + period], (end - start) // period, start, end)
    encoded = text.encode("utf-8", "surrogatepass")
    if len(encoded) - len(encoded.translate(None, DIGITS)) >= limits.max_counting_run:
        return _count_on(text, limits.max_counting_run)
    return ""


def find_turn_loop(messages: Sequence[Message], turns: Sequence[int], limits: Repetition) -> str:
    """Find actions that answer the same message again and again; `turns` are indices of assistant messages.

    A page that is turned gives another result, and another answer to the same call is progress: only the
    same message followed by the same action is a step in a circle.
    """
    if sum(len(messages[index].get("tool_calls", "1")) for index in turns) < limits.turn_repeats:
        return ""
    steps = [
        (index, (messages[index - 1]["content"] if index else "", action))
        for index in turns
        for action in _actions(messages[index])
    ]
    places, actions = [index for index, _ in steps], [action for _, action in steps]
    stretch = find_stretch(
        actions, lambda: [1] * len(actions), limits.turn_repeats, len(actions), limits.min_repeated_share, 0
    )
    if stretch is None:
        return ""
    first, last = places[stretch.start], places[stretch.end - 1]
    return f"messages[{first}] to messages[{last}]: {stretch.repeats} times {_shown(actions[stretch.first][1])}"


def find_stretch(
    keys: Sequence[Hashable],
    weigh: Callable[[], Sequence[int]],
    repeats: int,
    window: int,
    density: float,
    min_letters: int,
) -> Stretch | None:
    """Return the first stretch that is a loop: see the head of this file.

    Args:  keys: what is compared; None is never repeated. weigh: gives the letters of each position, for
    as many positions at least; called only if needed. repeats, window: so many occurrences of one key
    within so many positions.
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
    for found in places.values():
        for start, last in zip(found, found[repeats - 1 :], strict=False):
            end = last + 1
            dense = repeated[end] - repeated[start] >= density * (total[end] - total[start])
            if end - start <= window and dense:
                opened[start] += 1
                opened[end] -= 1
    depth = list(accumulate(opened))
    edges = [i for i in range(len(depth)) if (depth[i] > 0) != (i > 0 and depth[i - 1] > 0)]
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        if total[end] - total[start] >= min_letters:
            counts = Counter(key for key in keys[start:end] if key in often)
            item, count = max(counts.items(), key=lambda entry: entry[1])  # the first of equals
            inside = [place for place in places[item] if start <= place < end]
            first, second = min(pairwise(inside), key=lambda pair: pair[1] - pair[0])
            return Stretch(start, end, first, second, count)
    return None


def _plain(text: str, table: bytes) -> str:
    """Return a text as long as before, in small letters and without punctuation, as far as it is ASCII."""
    return text.encode("utf-8", "surrogatepass").translate(table).decode("utf-8", "surrogatepass")


def _words(plain: str) -> list[str]:
    """Split at spaces; what is long and not ASCII is a text without spaces, taken character by character."""
    words = plain.split()
    if plain.isascii():
        return words
    cut: list[str] = []
    for word in words:
        if len(word) < LONGEST_WORD or word.isascii():
            cut.append(word)
        else:
            cut += word
    return cut


def _starts(plain: str, words: list[str]) -> list[int]:
    """Return where each word starts, and the end."""
    starts, position = [], 0
    for word in words:
        position = plain.index(word, position)
        starts.append(position)
        position += len(word)
    return [*starts, len(plain)]


def _letters(text: str) -> int:
    """Count letters, in UTF-8 bytes: a Chinese character says as much as three letters."""
    if text.isascii():
        return len(text) if text.isalpha() else len(text.encode().translate(None, NOT_LETTERS))
    return sum(len(character.encode("utf-8", "replace")) for character in text if character.isalpha())


def _letters_of_lines(text: str) -> list[int]:
    """Count the letters of each line."""
    if text.isascii():
        return list(map(len, text.encode().translate(None, NOT_LETTERS.replace(b"\n", b"")).split(b"\n")))
    return [_letters(line) for line in text.split("\n")]


def _word_letters(words: list[str]) -> list[int]:
    letters = {word: _letters(word) for word in set(words)}
    return [letters[word] for word in words]


def _periodic(text: str, probe: int, period: int) -> tuple[int, int]:
    """Return how far around `probe` a text repeats itself after `period` characters."""
    start = end = probe
    while start > 0 and text[start - 1] == text[start - 1 + period]:
        start -= 1
    while end + period < len(text) and text[end] == text[end + period]:
        end += 1
    return start, end + period


def _count_on(text: str, counted: int) -> str:
    """Describe numbers in a row, no letter between, that grow or shrink by the same step."""
    numbers = [int(number[-18:]) for number in NUMBERS.findall(text)]
    steps = list(map(sub, numbers[1:], numbers))
    end = 0
    for probe in range(0, len(steps), max(1, counted // 2)):  # every run that is long enough holds a probe
        if probe < end or not steps[probe]:
            continue
        start = end = probe
        while start > 0 and steps[start - 1] == steps[probe]:
            start -= 1
        while end < len(steps) and steps[end] == steps[probe]:
            end += 1
        if end - start + 1 >= counted:
            run = list(islice(NUMBERS.finditer(text), start, end + 1))
            if not LETTER.search(text, run[0].start(), run[-1].end()):
                return _describe(text[run[0].start() : run[:4][-1].end()], len(run), run[0].start(), run[-1].end())
    return ""


def _actions(message: Message) -> list[str]:
    """Return what a turn does: its calls, or what it says."""
    calls = [call["function"] for call in message.get("tool_calls", [])]
    if not calls:
        return [message["content"]]
    return [f"{call['name']} {json.dumps(call['arguments'], sort_keys=True, ensure_ascii=False)}" for call in calls]


def _describe(unit: str, repeats: int, start: int, end: int) -> str:
    return f"characters {start} to {end}: {repeats} times {_shown(unit.strip() or unit)}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= EVIDENCE_CHARS else text[: EVIDENCE_CHARS - 3] + "...")
