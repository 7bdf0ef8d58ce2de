"""Prepare: a batch of rows gives what each row gives alone; rejected rows are named and counted."""

import json
import time

import pyarrow as pa
import pytest

from sft.batches import batches
from sft.cli import InputError
from sft.formats.messages import normalize
from sft.parquet import SAMPLES
from sft.tokens import template
from sft.tokens.prepare import BYTES_AT_ONCE, ROWS_AT_ONCE, _parse, group_number, prepare_rows
from sft.tokens.reasoning import Shares
from sft.tokens.render import ChatTemplate
from tests.support.project import ROOT, chat_records, tool_records
from tests.support.tokenizers import write_tokenizer

KEPT = Shares(strip=0.0, truncate=0.0, budgets=[32], seed=1)


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return ChatTemplate.load(str(ROOT / "templates/nano3.jinja"), write_tokenizer(tmp_path_factory.mktemp("base")))


def filtered(records, **messages):
    """Return rows as the filter stage writes them; `row_1=...` replaces the messages of row 1."""
    rows = [
        {
            "id": conversation.id,
            "messages": messages.get(f"row_{index}", json.dumps(conversation.messages)),
            "tools": json.dumps(conversation.tools) if conversation.tools else None,
            "meta": "{}",
        }
        for index, conversation in enumerate(map(normalize, records))
    ]
    return pa.RecordBatch.from_pylist(rows, pa.schema(dict.fromkeys(("id", "messages", "tools", "meta"), pa.string())))


def test_a_batch_is_what_its_rows_are_alone(chat):
    rows = filtered([*chat_records(6), *tool_records(5)])
    together = prepare_rows(chat, rows, KEPT)
    alone = [prepare_rows(chat, rows.slice(index, 1), KEPT) for index in range(11)]
    assert together.samples.schema == SAMPLES
    assert together.samples.to_pylist() == [row for each in alone for row in each.samples.to_pylist()]
    assert len(together.samples) == 14
    for name in ("rows", "lengths", "reasoning", "rejected"):
        assert together.counts[name] == sum((each.counts[name] for each in alone[1:]), alone[0].counts[name]), name


def test_counts_are_those_of_the_samples(chat):
    samples, rejected, counts = prepare_rows(chat, filtered(chat_records(4)), KEPT)
    rows = samples.to_pylist()
    assert [row["sample"] for row in rows] == [0, 0, 1, 0, 0, 1]
    assert counts["lengths"].total() == len(rows)
    assert counts["rows"]["trained"] == sum(sum(row["mask"]) for row in rows) > 0
    assert (counts["rows"]["out"], rejected) == (4, [])
    assert counts["reasoning"] == {"none": 2, "kept": 2}


def test_a_rejected_row_loses_all_its_samples_and_no_others(chat):
    rows = filtered(chat_records(4))
    name = rows["id"][1].as_py()
    expected = [row for row in prepare_rows(chat, rows, KEPT).samples.to_pylist() if row["conversation_id"] != name]
    silent = json.loads(rows["messages"][1].as_py())
    for message in silent:
        message |= {"loss": False} if message["role"] == "assistant" else {}
    rows = filtered(chat_records(4), row_1=json.dumps(silent))
    samples, rejected, counts = prepare_rows(chat, rows, KEPT)
    assert samples.to_pylist() == expected
    assert [(line["id"], line["reason"]) for line in rejected] == [(name, "nothing-trained")]
    assert (counts["rows"]["out"], counts["rejected"]) == (3, {"nothing-trained": 1})
    assert prepare_rows(chat, rows.slice(1, 1), KEPT).samples.to_pylist() == []


def test_a_row_with_a_sample_longer_than_the_limit_is_rejected(chat):
    rows = filtered(chat_records(4))
    samples, _, _ = prepare_rows(chat, rows, KEPT)
    sizes = [len(ids) for ids in samples["ids"].to_pylist()]
    kept, rejected, counts = prepare_rows(chat, rows, KEPT, max_tokens=max(sizes) - 1)
    longest = {
        name for name, size in zip(samples["conversation_id"].to_pylist(), sizes, strict=True) if size == max(sizes)
    }
    assert {line["id"] for line in rejected} == longest
    assert {line["reason"] for line in rejected} == {"too-long"}
    assert (len(kept) < len(samples), counts["rejected"]["too-long"]) == (True, len(longest))
    assert prepare_rows(chat, rows, KEPT, max_tokens=max(sizes)).samples == samples


def test_time_of_reasoning_is_not_time_of_the_template(chat, monkeypatch):
    monkeypatch.setattr(template, "CPU_SECONDS", 0.1)
    monkeypatch.setattr(chat.tokenizer.encoder, "count", lambda text: _spend(0.1) or 1)
    samples, _, counts = prepare_rows(chat, filtered(chat_records(4)), KEPT._replace(strip=1.0))
    assert (len(samples), counts["reasoning"]) == (4, {"none": 2, "stripped": 2})


def _spend(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_few_long_rows_share_a_limit_of_memory():
    sizes = [1, BYTES_AT_ONCE, BYTES_AT_ONCE // 2, BYTES_AT_ONCE // 2, 2 * BYTES_AT_ONCE, *[1] * (ROWS_AT_ONCE + 1)]
    rows = [(str(number), range(size)) for number, size in enumerate(sizes)]
    made = list(batches(rows, lambda row: len(row[1]), ROWS_AT_ONCE, BYTES_AT_ONCE))
    assert [len(batch) for batch in made] == [1, 1, 2, 1, ROWS_AT_ONCE, 1]
    assert [row for batch in made for row in batch] == rows


def test_the_text_of_a_license_is_cut_and_has_a_hash(chat):
    texts = [f"Permission is granted, {'and granted again, ' * 100}{year}" for year in (2024, 2025, 2024)]
    rows = filtered(chat_records(3)).set_column(3, "meta", pa.array([json.dumps({"license": text}) for text in texts]))
    names = dict.fromkeys(prepare_rows(chat, rows, KEPT).samples["license"].to_pylist())
    assert len(names) == 2
    assert all(name.startswith("Permission is granted, and") for name in names)
    assert max(map(len, names)) < 150


def test_a_license_with_half_a_surrogate_pair_is_text(chat):
    rows = filtered(chat_records(1))
    meta = pa.array([json.dumps({"license": "MIT\ud800"})])
    rows = pa.RecordBatch.from_arrays([*rows.columns[:3], meta], names=rows.schema.names)
    assert prepare_rows(chat, rows, KEPT).samples["license"].to_pylist() == ["MIT\\ud800"]


def test_a_row_that_is_not_json_is_named(chat):
    rows = filtered(chat_records(2), row_1="[{")
    with pytest.raises(InputError, match=f"data/filtered: conversation {rows['id'][1]}: .*JSON"):
        prepare_rows(chat, rows, KEPT)


def test_ids_that_differ_from_the_reference_are_an_error(chat, monkeypatch):
    engine, rows = chat.tokenizer.encoder, filtered(chat_records(3))
    monkeypatch.setattr(
        engine,
        "_encode",
        lambda texts: (engine._encode_by_reference(texts)[0] * 0, engine._encode_by_reference(texts)[1]),
    )
    with pytest.raises(InputError, match=r"conversation [0-9a-f]{32} .*SFT_FASTOKENS=0"):
        prepare_rows(chat, rows, KEPT, compared=1000)


def test_the_requested_number_of_characters_is_compared_with_the_reference(chat, monkeypatch):
    compared = list[str]()
    monkeypatch.setattr(chat.tokenizer.encoder, "matches_reference", lambda texts: compared.extend(texts) or True)
    rows = filtered(chat_records(3))
    prepare_rows(chat, rows, KEPT)
    assert compared == []
    prepare_rows(chat, rows, KEPT, compared=40)
    assert sum(map(len, compared)) == 40
    assert len(compared) > 1, "it continues in the next segment"


@pytest.mark.parametrize(
    "value",
    [
        {"arguments": {"a": 2**64, "b": -(2**63), "c": 1e300, "d": 0.1, "e": 123456789012345678901234567890}},
        [{"role": "user", "content": "9" * 40}],
        [{"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": {"x": 10**30}}}]}],
        [{"role": "user", "content": '"arguments": 1'}],
        [{"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": {"x": 10**400}}}]}],
    ],
)
@pytest.mark.parametrize("separators", [None, (",", ":")])
def test_json_is_read_as_python_reads_it(value, separators):
    text = json.dumps(value, separators=separators)
    assert repr(_parse("x", memoryview(text.encode()))) == repr(json.loads(text))


def test_conversations_with_the_same_question_or_group_have_the_same_group_number():
    def of(*contents: str, meta: str = "{}", name: str = "a", role: str = "user") -> int:
        return group_number(name, [{"role": role, "content": content} for content in contents], meta)

    question = of("Why is\nthe sky  blue?")
    assert of(" why is the SKY blue?", "And the sea?", name="b") == question
    assert of("Why is the sea blue?") != question
    assert of("Be brief.", role="system") != of("Be brief.", name="b", role="system"), "no question: by id"
    assert of("one", meta='{"group":7}') == of("two", meta='{"group":7}') != of("one", meta='{"group":8}')
    assert of("one", meta='{"group":"7"}') != of("one", meta='{"group":7}')
