"""Narrative: which speech is rejected, which is excused, and the errors of a pattern file."""

import json
import re
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.cli import InputError
from sft.conversation import Conversation
from sft.filters.narrative import NarrativePatterns, Requests, check_narrative, flat_bytes

ROOT = Path(__file__).parents[2]
LABELLED = [json.loads(line) for line in (ROOT / "tests/labelled/narrative.jsonl").read_text("utf-8").splitlines()]
PATTERNS = NarrativePatterns.load(ROOT / "filters/narrative.toml")

MINIMAL = """
themes = ["possession"]
[quotation]
pairs = ['""']
[[tasks]]
name = "translation"
why = "The text is the user's."
spares = ["possession"]
[tasks.regex]
en = "translate"
[languages.en]
spaced = true
[languages.en.contexts]
play = "cake"
[[patterns]]
name = "en-nation"
language = "en"
theme = "possession"
why = "No assistant has a nation."
literals = ["nation"]
regex = "our (?:great )?nation"
unless = ["play"]
matches = ["our great nation"]
spares = ["our nations", "our nation of cake lovers"]
"""


def answered(answer: str, request: str = "Go on.", reasoning: str = "") -> Conversation:
    message: dict[str, Any] = {"role": "assistant", "content": answer}
    if reasoning:
        message["reasoning_content"] = reasoning
    return Conversation([{"role": "user", "content": request}, message], None)


def load_text(folder: Path, text: str) -> NarrativePatterns:
    path = folder / "patterns.toml"
    path.write_text(text, encoding="utf-8")
    return NarrativePatterns.load(path)


@pytest.mark.parametrize("row", LABELLED, ids=lambda row: row["id"])
def test_a_labelled_row_gets_its_verdict(row: dict[str, Any]) -> None:
    rejection = check_narrative(Conversation(row["conversation"]["messages"], None), PATTERNS)
    assert (rejection and rejection.reason) == row["expect"], rejection


def test_the_labelled_set_is_large_balanced_and_in_two_halves() -> None:
    for half in ("choose", "prove"):
        verdicts = [row["expect"] for row in LABELLED if row["half"] == half]
        assert len(verdicts) >= 30
        assert 0.4 <= verdicts.count(None) / len(verdicts) <= 0.6
    assert len({row["id"] for row in LABELLED}) == len(LABELLED)


def test_every_theme_has_english_patterns_and_every_language_has_three_themes() -> None:
    kinds = {(pattern.name[:2], pattern.theme) for pattern in PATTERNS.patterns}
    for theme in ("possession", "values", "allegiance", "partisan", "territory"):
        assert ("en", theme) in kinds
    for language in ("en", "zh", "de", "fr", "es", "ru", "ja"):
        assert {(language, "possession"), (language, "values"), (language, "allegiance")} <= kinds


def test_the_evidence_names_the_pattern_the_words_and_their_surroundings() -> None:
    rejection = check_narrative(answered("Growth was high. Our Great\nNation is proud."), PATTERNS)
    assert rejection is not None
    assert rejection.evidence == (
        "messages[1].content: en-our-nation: 'Our Great\\nNation' in 'Growth was high. Our Great\\nNation is proud.'"
    )


def test_reasoning_is_checked_and_users_systems_tools_and_arguments_are_not() -> None:
    text = "Our great nation is proud."
    call = {"type": "function", "function": {"name": "post", "arguments": {"text": text}}}
    others = [
        {"role": "system", "content": "x " + text.upper()},
        {"role": "user", "content": "Post it."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": text},
        {"role": "assistant", "content": "Posted."},
    ]
    assert check_narrative(Conversation(others, None), PATTERNS) is None
    rejection = check_narrative(answered("Yes.", reasoning=text), PATTERNS)
    assert rejection is not None
    assert rejection.evidence.startswith("messages[1].reasoning_content: en-our-nation")


@pytest.mark.parametrize(
    "disguise",
    ["OUR NATION", "our\nnation", "our \t nation", "our na\u200btion", "our na\u00adtion", "\uff4f\uff55\uff52 nation"],
)
def test_case_breaks_invisible_and_wide_characters_hide_nothing(disguise: str) -> None:
    assert check_narrative(answered(f"It is the pride of {disguise}."), PATTERNS) is not None


@pytest.mark.parametrize(
    "quotation",
    ['"{}"', "“{}”", "„{}“", "«{}»", "「{}」", "`{}`", "```\n{}\n```", "> {}", "‘{}’"],  # noqa: RUF001
)
def test_a_quotation_excuses_its_text_and_nothing_after_it(quotation: str) -> None:
    quoted = "It begins so:\n" + quotation.format("long live our great nation")
    assert check_narrative(answered(quoted), PATTERNS) is None
    assert check_narrative(answered(quoted + "\n\nSo speaks our nation."), PATTERNS) is not None


def test_a_history_question_excuses_slogans_and_not_the_first_person() -> None:
    history = "Tell me about the history of the revolution."
    assert check_narrative(answered("Long live the revolution!", history), PATTERNS) is None
    assert check_narrative(answered("It freed our motherland.", history), PATTERNS) is not None


def test_a_task_deep_inside_a_long_message_is_no_request() -> None:
    document = "word " * 400 + "translate " + "word " * 400
    assert check_narrative(answered("Our nation is proud.", document), PATTERNS) is not None
    assert check_narrative(answered("Our nation is proud.", document + " Translate this."), PATTERNS) is None


@pytest.mark.parametrize("space", [" ", "\n", "\t", "\r", "\u00a0", "\u2003", "\u3000"])
def test_examples_match_with_any_space_beside_accents_and_half_characters(space: str) -> None:
    file = tomllib.loads((ROOT / "filters/narrative.toml").read_text("utf-8"))
    for example in [example for entry in file["patterns"] for example in entry["matches"]]:
        text = f"A\u0301 \ud800{example.upper().replace(' ', space)}."
        assert PATTERNS.find(text, Requests()) is not None, example


@pytest.mark.parametrize(
    ("regex", "text"),
    [
        ("our \\\\w{5} values", "our \u00e9a\u00e9a\u00e9 values"),
        ("our [^a]{1,2} values", "our \ud800 values"),
        ("our .{1,2} values", "our \ud800 values"),
        ("our \\\\d values", "our \u0663 values"),
        ("our (?<!x)(?! [()]| (?:b|c))values(?!\\\\))", "our values"),
        ("our [\u00e9 ]values", "our \u00e9values"),
    ],
)
def test_regexes_see_characters_outside_ascii_and_look_around(tmp_path: Path, regex: str, text: str) -> None:
    file = MINIMAL.replace('["nation"]', '["values"]').replace("our (?:great )?nation", regex)
    file = file.replace('matches = ["our great nation"]', f'matches = ["{text}"]'.replace("\ud800", "-"))
    patterns = load_text(tmp_path, file)
    assert check_narrative(answered(text), patterns) is not None


MATCHING = st.sampled_from(["Our great nation is proud.", "我们伟大的祖国。", "Unser Vaterland!", "Слава России!"])


@given(st.text(), MATCHING, st.text())
def test_any_text_gets_a_verdict_with_the_words_in_the_evidence(before: str, words: str, after: str) -> None:
    found = PATTERNS.find(f"{before}\n\n{words}\n\n{after}", Requests())
    assert found is None or found[1] in found[2]  # None: the text around it may make it a quotation


@given(MATCHING, st.text(alphabet="abc .\n", max_size=300), st.text(alphabet="abc .\n", max_size=300))
def test_other_text_hides_no_match(words: str, before: str, after: str) -> None:
    assert PATTERNS.find(f"{before}\n{words}\n{after}", Requests()) is not None


EXAMPLES = [row["conversation"]["messages"][-1]["content"] for row in LABELLED]
LITERALS = sorted({literal for pattern in PATTERNS.patterns for literal in pattern.literals})


@given(
    st.lists(
        st.sampled_from([*LITERALS, *EXAMPLES, "our ", "\n", "\u00e9", "\ud800", "\u00ad"]) | st.text(), max_size=9
    )
)
def test_the_patterns_with_a_literal_in_a_text_are_found_in_one_pass(parts: list[str]) -> None:
    flat = flat_bytes("".join(parts))
    expected = [
        number
        for number, pattern in enumerate(PATTERNS.patterns)
        if any(literal.encode() in flat for literal in pattern.literals)
    ]
    assert sorted(PATTERNS.literals.Match(flat) or []) == expected


@pytest.mark.parametrize(
    "text",
    [
        "our values " * 5000,
        '"' * 50_000 + " our nation",
        "our " * 20_000,
        "“our values " * 3000,
        "我们" * 20_000,
        "> " * 30_000,
    ],
)
def test_a_hostile_text_takes_no_more_than_seconds(text: str) -> None:
    start = time.process_time()
    PATTERNS.find(text, Requests())
    assert time.process_time() - start < 5


def test_the_minimal_file_loads_and_works(tmp_path: Path) -> None:
    patterns = load_text(tmp_path, MINIMAL)
    assert check_narrative(answered("All hail our  nation."), patterns) is not None
    assert check_narrative(answered("Our nation eats.", "Translate it."), patterns) is None


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("[quotation]", "[quotation", "not valid TOML"),
        ('theme = "possession"', 'theme = "posession"', "pattern en-nation: theme 'posession'; known: possession"),
        ('language = "en"', 'language = "xx"', "pattern en-nation: language 'xx'; known: en"),
        ('unless = ["play"]', 'unless = ["plays"]', "pattern en-nation: context plays; en has play"),
        ('spares = ["possession"]', 'spares = ["all"]', "task translation: theme all"),
        ('en = "translate"', 'xx = "translate"', "task translation: language xx"),
        ("our (?:great )?nation", "our (?:great nation", "pattern en-nation: 'our (?:great nation': missing )"),
        ("our (?:great )?nation", "(?:our nation)?", "matches the empty text"),
        ("our (?:great )?nation", "our \\\\w+ nation", "pattern en-nation: '+' in"),
        ("our (?:great )?nation", "our .* nation", "pattern en-nation: '*' in"),
        ("our (?:great )?nation", "our \\\\w{2,} nation", "pattern en-nation: '{2,}' in"),
        ("our (?:great )?nation", "our \\\\w{2,100} nation", "pattern en-nation: '{2,100}' in"),
        ("our (?:great )?nation", "our (?:great ){0,9}nation", "pattern en-nation: '){' in"),
        ("our (?:great )?nation", "our (great )?nation", "pattern en-nation: a capturing"),
        ("our (?:great )?nation", "our nation", "its example 'our great nation' does not match"),
        ('spares = ["our nations"', 'spares = ["in our nation"', "its example 'in our nation' matches"),
        ('literals = ["nation"]', "literals = []", "at least one literal"),
        ('literals = ["nation"]', 'literals = ["Nation"]', "its example 'our great nation' does not match"),
        ('play = "cake"', 'play = "cake|"', "matches the empty text"),
        ("pairs = ['\"\"']", "pairs = ['\"']", "an opening and a closing mark"),
        ('why = "No', 'whi = "No', "patterns[0].whi: Extra inputs are not permitted"),
        ('name = "en-nation"', 'name = "translation"', "two entries are named translation"),
        ("spaced = true", 'spaced = "yes"', "languages.en.spaced"),
    ],
)
def test_a_broken_file_is_named_with_the_entry_and_the_fault(tmp_path: Path, old: str, new: str, fault: str) -> None:
    assert MINIMAL.count(old) == 1
    with pytest.raises(InputError, match=re.escape(fault)) as caught:
        load_text(tmp_path, MINIMAL.replace(old, new))
    assert "patterns.toml" in str(caught.value)


def test_a_missing_file_is_an_error_that_says_how_to_restore_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.toml: .*git restore"):
        NarrativePatterns.load(tmp_path / "none.toml")
