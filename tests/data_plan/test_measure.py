"""measure: the figures of single rows, those of the stages."""

import json
from pathlib import Path

import pytest

from sft.data_plan.measure import FIGURES, load_chat, measure
from sft.params.check import read
from sft.params.data import Read
from sft.tokens.prepare import prepare_rows
from sft.tokens.reasoning import Shares
from tests.support.project import ROOT
from tests.support.tokenizers import REASONING_AND_TOOLS, write_tokenizer
from tests.tokens.test_prepare import filtered


def test_figures_of_kept_cut_rejected_and_unselected_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    base = write_tokenizer(tmp_path / "base", (*REASONING_AND_TOOLS, "<|im_start|>", "<|im_end|>", "<|endoftext|>"))
    words = " ".join(f"w{number}" for number in range(400))
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So it is."}]
    more = [{"role": "user", "content": "And?"}, {"role": "assistant", "content": words}]
    rows = [{"messages": turns}, {"messages": turns + more}, {"messages": turns[:1]}, {"messages": more, "kind": "b"}]
    raw = tmp_path / "raw"
    raw.mkdir()
    text = "".join(json.dumps({"kind": "a", "license": "MIT", **row}) + "\n" for row in rows)
    (raw / "a.jsonl").write_text(text)
    params = read(ROOT / "params.yaml")
    changed = {"pack_size": 256, "over_length": "cut-at-turn", "pad_segments_to": 1}
    params = params.model_copy(update={"pack": params.pack.model_copy(update=changed)})
    measured = measure(
        raw, "tool-calls", Read(format="auto", select={"kind": ["a"]}), params, load_chat(params.prep, base)
    )
    kept, cut, rejected, unselected = (
        dict(zip(FIGURES, values.tolist(), strict=True)) for values in measured.figures.values()
    )
    assert kept["tokens"] == kept["packed_tokens"] == measured.lengths[0]
    assert kept["windows"] == 1
    assert 0 < kept["trained_tokens"] < kept["tokens"]
    assert cut["tokens"] > 256 > cut["packed_tokens"] > 0
    assert cut["windows"] == -(-cut["tokens"] // 256)
    assert kept["trained_tokens"] <= cut["packed_trained_tokens"] < cut["trained_tokens"]
    in_windows = params.model_copy(update={"pack": params.pack.model_copy(update={"over_length": "window"})})
    again = measure(
        raw, "tool-calls", Read(format="auto", select={"kind": ["a"]}), in_windows, load_chat(params.prep, base)
    )
    figures = dict(zip(FIGURES, list(again.figures.values())[1].tolist(), strict=True))
    assert figures["packed_trained_tokens"] == cut["trained_tokens"]
    assert figures["packed_samples"] > 1
    one = in_windows.model_copy(update={"pack": in_windows.pack.model_copy(update={"max_windows": 1})})
    again = measure(raw, "tool-calls", Read(format="auto", select={"kind": ["a"]}), one, load_chat(params.prep, base))
    assert dict(zip(FIGURES, list(again.figures.values())[1].tolist(), strict=True))["packed_samples"] == 1
    assert (rejected, unselected) == ({**dict.fromkeys(FIGURES, 0), "rows": 1},) * 2
    assert (measured.not_selected, measured.rejected.total(), measured.read) == (1, 1, "read: openai")
    assert measured.licenses == {"MIT": kept["trained_tokens"] + cut["trained_tokens"]}


def test_a_row_loses_the_reasoning_that_it_loses_in_prep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which rows lose it is drawn by their id. A row that comes twice counts twice."""
    monkeypatch.chdir(ROOT)
    base = write_tokenizer(tmp_path / "base", (*REASONING_AND_TOOLS, "<|im_start|>", "<|im_end|>", "<|endoftext|>"))
    records = [
        {
            "messages": [
                {"role": "user", "content": f"What is {number} and 1?"},
                {"role": "assistant", "content": f"It is {number + 1}.", "reasoning_content": "I add one to it. " * 3},
            ]
        }
        for number in range(30)
    ]
    records.append(records[3])
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    params = read(ROOT / "params.yaml")
    reasoning = params.prep.reasoning.model_copy(update={"strip": 0.5})
    params = params.model_copy(update={"prep": params.prep.model_copy(update={"reasoning": reasoning})})
    chat = load_chat(params.prep, base)
    measured = measure(raw, "tool-calls", Read(format="openai"), params, chat)
    prepared = prepare_rows(chat, filtered(records), Shares(**reasoning.model_dump())).samples
    assert [values[FIGURES.index("tokens")] for values in measured.figures.values()] == [
        len(ids) for ids in prepared["ids"].to_pylist()
    ]
    assert len(set(measured.lengths)) > 1


def test_of_two_rows_that_say_the_same_only_one_may_be_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their id is the same: what a row gives the template is no part of it."""
    monkeypatch.chdir(ROOT)
    base = write_tokenizer(tmp_path / "base", (*REASONING_AND_TOOLS, "<|im_start|>", "<|im_end|>", "<|endoftext|>"))
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So it is."}]
    rows = [{"messages": turns, "chat_template_kwargs": kwargs} for kwargs in ({"no_such_word": 1}, {})]
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    params = read(ROOT / "params.yaml")
    measured = measure(raw, "tool-calls", Read(format="openai"), params, load_chat(params.prep, base))
    assert measured.rejected == {"unsupported-template-kwargs": 1}
    assert [int(values[FIGURES.index("kept")]) for values in measured.figures.values()] == [0, 1]
