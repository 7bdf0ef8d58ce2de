"""A params.yaml of version 0.1.0: the messages are the lines that make it one of today."""

import re
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.params.check import read
from sft.params.explain import known_keys
from sft.params.read import load
from sft.params.schema import Params
from sft.params.version_0_1 import RENAMED, new_entry
from tests.support.params_files import DEFAULT, changed, error_of, with_source

OLD = Path(__file__).parents[1] / "fixtures/0.1.0/params.yaml"
# New keys are shown as missing.
ADDED = {
    "filter": "  ends: trim",
    "prep": "  stop_tokens: []\n  date: null\n  max_rejected: 0.5",
}
# Defaults of today that are others than those of version 0.1.0.
CHANGED = {"samples_per_domain": "null", "tool_prompts": 64, "validation": 0.05, "test": 0.05}
DIGEST, COMMIT = "a" * 64, "0123456789abcdef0123456789abcdef01234567"


def paste(text: str, message: str) -> str:
    """Do what a message says: replace each line or entry that it names by the lines below."""
    lines = text.splitlines()
    replacements = re.findall(r"^[^\n]*:(\d+): [^\n]* Replace it by:\n((?: +.*\n?)+)", message, re.M)
    for number, new in reversed(sorted((int(number), new) for number, new in replacements)):
        indent = len(lines[number - 1]) - len(lines[number - 1].lstrip())
        end = number
        while end < len(lines) and len(lines[end]) - len(lines[end].lstrip()) > indent and lines[end].strip():
            end += 1
        lines[number - 1 : end] = new.rstrip("\n").split("\n")
    return "\n".join(lines) + "\n"


def test_pasting_what_the_messages_show_gives_the_params_of_today(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(OLD.read_bytes())
    message = error_of(path)
    text = paste(OLD.read_text(), message)
    for section, keys in ADDED.items():
        text = re.sub(f"^{section}:$", f"{section}:\n{keys}", text, flags=re.M)
    for key, value in CHANGED.items():
        text = re.sub(rf"^  {key}: .*$", f"  {key}: {value}", text, flags=re.M)
    path.write_text(f"{text}bridge: {{}}\n")
    assert read(path) == read(DEFAULT)


def test_each_old_entry_and_each_old_key_has_one_message(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(OLD.read_bytes())
    places = re.findall(rf"^{re.escape(str(path))}:\d+: ([\w.-]+)", error_of(path), re.M)
    entries = ["fetch.model", *(f"fetch.sources.{name}" for name in read(DEFAULT).fetch.sources)]
    assert sorted(places) == sorted(
        [*entries, *RENAMED, "bridge", "filter.ends", "prep.stop_tokens", "prep.date", "prep.max_rejected"]
    )


def test_a_section_alone_shows_the_same_lines(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(OLD.read_bytes())
    whole = error_of(path)
    for section in ("fetch", "filter"):
        with pytest.raises(InputError) as error:
            load(section, path)
        assert str(error.value) in whole


def test_the_entry_of_an_evaluation_set_keeps_its_fields(tmp_path):
    old = f"benchmarks: {{mine: {{uri: 'https://h/a.jsonl', sha256: {DIGEST}, fields: {{question: frage}}}}}}"
    message = error_of(changed(tmp_path, "benchmarks: {}", old))
    assert message.endswith(
        "fetch.benchmarks.mine: written as in version 0.1.0. Replace it by:\n"
        "    mine:\n"
        f"      uri: https://h/a.jsonl#sha256={DIGEST}\n"
        "      fields: {question: frage}"
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            {"uri": "hf://own/set/a/*.jsonl", "revision": COMMIT, "format": "openai", "share": 0.5},
            f"    mine:\n      uri: hf://own/set@{COMMIT}/a/*.jsonl\n      read: openai\n      share: 0.5",
        ),
        (
            {"uri": "hf://datasets/own/set", "revision": "unknown - write the commit", "format": "openai"},
            "    mine:\n      uri: hf://datasets/own/set@COMMIT-UNKNOWN\n      read: openai",
        ),
        (
            {
                "uri": "file://a.jsonl",
                "format": "alpaca",
                "fields": {"prompt": "q"},
                "where": {"used_in": ["a", "b"]},
                "rows": None,
                "origin": "me: here",
            },
            "    mine:\n      uri: file://a.jsonl\n"
            "      read: {format: alpaca, fields: {prompt: q}, select: {used_in: [a, b]}}\n"
            "      origin: 'me: here'",
        ),
        (
            {"uri": "file://a.jsonl", "read": "openai", "rows": 5},
            "    mine:\n      uri: file://a.jsonl\n      read: {format: openai, max_rows: 5}",
        ),
    ],
)
def test_the_new_entry_has_the_values_of_the_old_one(old, new):
    assert new_entry(["fetch", "sources", "mine"], old) == new


def test_other_mistakes_in_an_old_entry_are_shown_too(tmp_path):
    message = error_of(with_source(tmp_path, "mine: {uri: file://x.jsonl, format: openai, domian: chat, epochs: 0.0}"))
    assert message.count("Replace it by:") == 1
    assert ": fetch.sources.mine.domian: unknown key" in message
    assert ": fetch.sources.mine.epochs: " in message
    assert "fetch.sources.mine.read: missing" not in message


def test_an_old_entry_without_a_uri_is_an_unknown_key_and_a_missing_one(tmp_path):
    message = error_of(with_source(tmp_path, "mine: {format: openai}"))
    assert ": fetch.sources.mine.uri: missing" in message
    assert ": fetch.sources.mine.format: unknown key" in message


def test_an_old_value_is_translated_with_its_key(tmp_path):
    message = error_of(changed(tmp_path, "  control_tokens: .*", "  markup: plain"))
    assert message.endswith(" Replace it by:\n  control_tokens: as_text")


def test_every_old_key_leads_to_a_key_that_exists():
    assert set(RENAMED.values()) <= set(known_keys(Params))
    assert not set(RENAMED) & set(known_keys(Params))
