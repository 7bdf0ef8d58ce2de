"""bench/corpus.py makes the same corpus every time, with the promised shape."""

import importlib.util
import itertools
import json
import sys

import pytest

from sft.conversation import Conversation
from sft.filters.rules.replies import check_truncated
from sft.filters.structure import check_structure
from sft.formats.messages import normalize
from tests.support.project import ROOT


def load(name):
    """Import a program of bench/ by its file."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"bench/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def corpus(monkeypatch):
    corpus = load("corpus")
    text = {
        "prose": [f"Paragraph {n}: " + "it says what it says. " * (n % 60) for n in range(500)],
        "code": [f"def f{n}(x):\n    return x + {n}" for n in range(100)],
    }
    monkeypatch.setattr(corpus, "collect_text", lambda: text)
    return corpus


def test_a_corpus_is_the_same_every_time_and_begins_with_a_smaller_one(corpus, tmp_path):
    corpus.write_corpus(tmp_path / "a.jsonl", 40)
    corpus.write_corpus(tmp_path / "b.jsonl", 60)
    lines = (tmp_path / "b.jsonl").read_bytes().splitlines()
    assert (tmp_path / "a.jsonl").read_bytes().splitlines() == lines[:40]
    assert len(set(lines)) == 60


def test_a_corpus_has_the_promised_shape_and_valid_rows(corpus):
    conversations = corpus.Conversations()
    records = [conversations.make(number) for number in range(600)]
    for record in records:
        conversation = normalize(record)
        assert isinstance(conversation, Conversation)
        assert check_structure(conversation) is None
        assert check_truncated(conversation) is None
    reasons, calls, several = (
        sum(any(key in message for message in record["messages"]) for record in records) / len(records)
        for key in ("reasoning_content", "tool_calls", "tool_call_id")
    )
    assert 0.25 < reasons < 0.42
    assert 0.08 < calls == several < 0.2
    assert sum(len(record["messages"]) > 4 for record in records) > 100
    lengths = sorted(len(json.dumps(record)) / corpus.CHARS_PER_TOKEN for record in records)
    assert 500 < lengths[300] < 1100
    assert lengths[-1] > 6 * lengths[300]


def test_manual_pages_lose_their_markup_and_duplicates(corpus):
    page = ".TH LS 1\n.SH NAME\nls \\- list the contents of a \\fIdirectory\\fR, sorted by name\n\nshort\n"
    texts = corpus._unique(itertools.chain(corpus._paragraphs([page]), corpus._paragraphs([page])), 10_000)
    assert texts == ["ls  list the contents of a directory, sorted by name"]
    assert corpus._unique(["a <think> b", "a broken \ufffd b", "a whole b"], 10_000) == ["a whole b"]
