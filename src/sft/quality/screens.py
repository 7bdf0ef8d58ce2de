"""Screens: one quick look at the bytes of a text, compiled by numba: which loops may there be in it?

What a screen lets pass is looked at closely (sft.quality.repetition); what it stops holds no such loop. Words and
lines are compared by numbers made of their bytes: should two that differ have the same, more passes, not less.
Texts are UTF-8, (bytes,) uint8. Compiled code is kept beside this file in __pycache__.
"""

from typing import Any

import numba
import numpy as np

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, odd
HALF, HIGH_BYTE = np.uint64(32), np.uint64(56)  # shifts that leave the well-mixed bits of a number
ONE = np.uint64(1)
SPACE, NEWLINE, STOP, EXCLAMATION, QUESTION, ZERO, NINE = (np.uint8(ord(sign)) for sign in " \n.!?09")
PLACES = 256  # of a table, at least: more than a window has words

compiled: Any = numba.njit(cache=True)


@compiled
def begins_character(byte):  # type: ignore[no-untyped-def]
    """Say whether a byte of UTF-8 is the first of a character."""
    return byte & 0xC0 != 0x80


@compiled
def is_ascii_space(byte):  # type: ignore[no-untyped-def]
    """Say whether str.strip and str.split take an ASCII character for white space."""
    return byte == SPACE or 9 <= byte <= 13 or 28 <= byte <= 31


@compiled
def is_other_space(text, place):  # type: ignore[no-untyped-def]
    """Say whether a character that begins here is white space beyond ASCII."""
    one, two = text[place], text[place + 1]
    if one == 0xC2:
        return two == 0x85 or two == 0xA0
    if one == 0xE2 and two == 0x80:
        last = text[place + 2]
        return last <= 0x8A or last == 0xA8 or last == 0xA9 or last == 0xAF
    if one == 0xE2 and two == 0x81:
        return text[place + 2] == 0x9F
    return ((one == 0xE1 and two == 0x9A) or (one == 0xE3 and two == 0x80)) and text[place + 2] == 0x80


@compiled
def most_equal(numbers):  # type: ignore[no-untyped-def]
    """Return how many numbers stand there before, and how often the most frequent one does."""
    size = PLACES
    while size < 2 * len(numbers):
        size *= 2
    table, counts, repeated, most = np.empty(size, np.uint64), np.zeros(size, np.int64), 0, 0
    for number in numbers:
        slot = np.int64(number >> HALF) & (size - 1)
        while counts[slot] and table[slot] != number:
            slot = (slot + 1) & (size - 1)
        repeated += counts[slot] > 0
        table[slot] = number
        counts[slot] += 1
        most = max(most, counts[slot])
    return repeated, most


@compiled
def repeats_lines(text, shortest, repeats):  # type: ignore[no-untyped-def]
    """Say whether some line or sentence, of at least so many characters, may come so often.

    It does not where fewer are equal to the letter, or, in ASCII, where none comes so often without spaces around it.
    """
    most_lines = len(text) // (shortest + 1) + 1
    begins, ends, lines = (
        np.empty(most_lines, np.int64),
        np.empty(most_lines, np.int64),
        np.empty(most_lines, np.uint64),
    )
    found, begin, characters, line, is_ascii = 0, 0, 0, np.uint64(0), True
    for place in range(len(text) + 1):
        is_end = place == len(text) or text[place] == NEWLINE
        if not is_end and text[place] == SPACE and place:
            before = text[place - 1]
            is_end = before == STOP or before == EXCLAMATION or before == QUESTION
        if not is_end:
            line = (line + np.uint64(text[place]) + ONE) * MULTIPLIER
            characters += begins_character(text[place])
            if text[place] >= 128:
                is_ascii = False
            continue
        if characters >= shortest:
            begins[found], ends[found], lines[found] = begin, place, line
            found += 1
        begin, characters, line = place + 1, 0, np.uint64(0)
    if most_equal(lines[:found])[0] < repeats - 1:
        return False
    if not is_ascii:
        return True
    for number in range(found):
        begin, end, line = begins[number], ends[number], np.uint64(0)
        while begin < end and is_ascii_space(text[begin]):
            begin += 1
        while begin < end and is_ascii_space(text[end - 1]):
            end -= 1
        for place in range(begin, end):
            line = (line + np.uint64(text[place]) + ONE) * MULTIPLIER
        lines[number] = line
    return most_equal(lines[:found])[1] >= repeats


@compiled
def hash_words(text, letters, longest):  # type: ignore[no-untyped-def]
    """Return a number for each word; of one with so many characters, not all ASCII, for each character.

    `letters` (256,) gives what each byte is in words, SPACE if it parts them.
    """
    hashes = np.empty(len(text) + 1, np.uint64)
    words, begin, characters, word, is_ascii = 0, 0, 0, np.uint64(0), True
    for place in range(len(text) + 1):
        letter = letters[text[place]] if place < len(text) else SPACE
        if letter >= 0xC2 and is_other_space(text, place):
            letter = SPACE
        elif letter >= 0x80 and place and characters == 0 and not begins_character(letter):
            begin = place + 1  # the rest of such a space
            continue
        if letter != SPACE:
            word = (word + np.uint64(letter) + ONE) * MULTIPLIER
            characters += begins_character(letter)
            if letter >= 128:
                is_ascii = False
            continue
        if characters >= longest and not is_ascii:
            for inside in range(begin, place):
                if begins_character(text[inside]):
                    hashes[words] = np.uint64(0)
                    words += 1
                hashes[words - 1] = (hashes[words - 1] + np.uint64(letters[text[inside]]) + ONE) * MULTIPLIER
        elif characters:
            hashes[words] = word
            words += 1
        begin, characters, word, is_ascii = place + 1, 0, np.uint64(0), True
    return hashes[:words]


@compiled
def hash_sequences(words, length):  # type: ignore[no-untyped-def]
    """Return a number for each sequence of so many words."""
    hashes = np.zeros(max(0, len(words) - length + 1), np.uint64)
    for place in range(len(hashes)):
        for word in words[place : place + length]:
            hashes[place] = (hashes[place] + word + ONE) * MULTIPLIER
    return hashes


@compiled
def count_distinct(hashes, table, filled_by, mark):  # type: ignore[no-untyped-def]
    """Count the numbers that differ, with the help of a table of PLACES; `mark` is another one each time."""
    distinct = 0
    for number in hashes:
        slot = np.int64(number >> HIGH_BYTE)
        while filled_by[slot] == mark and table[slot] != number:
            slot = (slot + 1) & (PLACES - 1)
        if filled_by[slot] != mark:
            table[slot], filled_by[slot] = number, mark
            distinct += 1
    return distinct


@compiled
def repeats_words(text, letters, longest, window, share, length, repeats):  # type: ignore[no-untyped-def]
    """Say whether a sequence of `length` words may come so often where there are few different words.

    That is: in some window of words at most half differ, and of its sequences of three at most a share of its words;
    windows overlap by half. `letters` and `longest` as in `hash_words`.
    """
    words = hash_words(text, letters, longest)
    threes = hash_sequences(words, 3)
    table, filled_by = np.empty(PLACES, np.uint64), np.full(PLACES, -1)
    for place in range(0, max(1, len(words) - window // 2), window // 2):
        size = min(window, len(words) - place)
        if count_distinct(words[place : place + size], table, filled_by, 2 * place) <= size // 2:
            here = threes[place : place + max(0, size - 2)]
            if count_distinct(here, table, filled_by, 2 * place + 1) <= share * size:
                return most_equal(hash_sequences(words, length))[1] >= repeats
    return False


@compiled
def repeats_itself(text, step, period, probe):  # type: ignore[no-untyped-def]
    """Say whether the `probe` bytes at some multiple of `step` stand there again after `period` bytes."""
    for place in range(0, len(text) - period - probe + 1, step):
        same = 0
        while same < probe and text[place + same] == text[place + period + same]:
            same += 1
        if same == probe:
            return True
    return False


@compiled
def count_digits(text):  # type: ignore[no-untyped-def]
    """Count digits."""
    found = 0
    for byte in text:
        found += ZERO <= byte <= NINE
    return found
