"""Examine: which rows are drawn, and the columns in which each outcome is written."""

import gzip
import json

import numpy as np
import pytest

from sft.cli import InputError
from sft.conversation import Conversation, Rejection
from sft.filters import examine
from sft.filters.examine import Draw, check_readable, examined_row, json_text, row_text, write_examined
from sft.filters.pipeline import Kept
from sft.formats.raw_files import Row
from sft.params.data import Read
from sft.params.read import load
from sft.parquet import read_rows
from sft.workers import map_shards
from tests.support.project import ROOT, tool_records

ROWS = [Row(location=f"a.jsonl:{number}", record={}) for number in range(1, 201)]
MESSAGES = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]


def ranks(folder, *parts, max_rows=10):
    """Return a draw from parts, each a list of hashes."""
    drawn = Draw(max_rows)
    for number, hashes in enumerate(parts):
        order = np.argsort(np.array(hashes, np.uint64), kind="stable")[:max_rows]
        np.savez(folder / f"{number}.npz", hashes=np.array(hashes, np.uint64)[order], places=order.astype(np.int64))
        drawn.add(folder / f"{number}.npz")
    tasks = drawn.tasks({"number": number, "part": None} for number in range(len(parts)))
    return {task["number"]: task["drawn"] for task in tasks}


@pytest.mark.parametrize("waiting", [0, 1 << 18])
def test_a_draw_takes_the_smallest_hashes_of_all_parts_and_of_equal_ones_the_first(tmp_path, monkeypatch, waiting):
    monkeypatch.setattr(examine, "MIN_WAITING", waiting)
    assert ranks(tmp_path, [5, 9, 1], [8, 8], [0, 5, (1 << 64) - 1], max_rows=3) == {0: [0, 2], 2: [0]}
    assert ranks(tmp_path, [7, 7], [], [7], [3], max_rows=2) == {0: [0], 3: [0]}
    assert ranks(tmp_path, [4], [2, 1], max_rows=9) == {0: [0], 1: [0, 1]}
    assert not list(tmp_path.iterdir())


def test_a_row_is_drawn_by_its_content_wherever_it_is():
    record = {"messages": MESSAGES}
    assert row_text(Row("a:1", record)) == row_text(Row("b:7", dict(record))) == json_text(record)
    assert row_text(Row("a:1", None, "not JSON", "{broken")) == "{broken"


def test_rows_pass_until_a_file_cannot_be_read(tmp_path):
    rows = check_readable([ROWS[0], Row("b.jsonl:2", None, "damaged", is_end=True)], tmp_path)
    assert next(rows) == ROWS[0]
    with pytest.raises(InputError) as error:
        next(rows)
    assert str(error.value).startswith(f"{tmp_path}/b.jsonl:2: damaged")


def test_a_kept_row_is_written_in_normal_form():
    conversation = Conversation(MESSAGES, None)
    row = Row("a.jsonl:3", {"messages": [{"role": "developer", "content": "x"}]})
    assert examined_row(row, Kept(conversation, "1f", b"signature", 2), "chats") == {
        "id": "1f",
        "signature": b"signature",
        "control_tokens": 2,
        "messages": json.dumps(MESSAGES, separators=(",", ":")),
        "tools": None,
        "meta": '{"source":"chats","location":"a.jsonl:3"}',
        "location": "a.jsonl:3",
    }


@pytest.mark.parametrize(
    ("row", "messages", "tools"),
    [
        (Row("a:1", {"messages": MESSAGES, "tools": []}), json_text(MESSAGES), "[]"),
        (Row("a:1", {"prompt": "?"}), '{"prompt":"?"}', None),
        (Row("a:1", None, "not valid JSON", "{broken"), '{"raw":"{broken"}', None),
    ],
    ids=["record", "other fields", "text"],
)
def test_a_rejected_row_is_written_as_it_came_with_reason_evidence_and_location(row, messages, tools):
    columns = examined_row(row, Rejection("some-reason", "because \ud800"), "chats")
    assert (columns["messages"], columns["tools"]) == (messages, tools)
    assert (columns["reason"], columns["evidence"]) == ("some-reason", "a:1: because \\ud800")
    assert len(columns["id"]) == 32


def test_json_is_text_that_utf8_can_hold():
    assert json_text({"a": [1, "é"]}) == '{"a":[1,"é"]}'
    assert json_text("\ud800") == '"\\ud800"'
    assert json_text(2**70) == str(2**70)


def test_every_row_is_written_in_its_order_whatever_the_batches(tmp_path):
    params = load("filter", path=ROOT / "params.yaml").model_dump_json()
    task = {
        "scratch": str(tmp_path),
        "raw": "raw",
        "params": params,
        "benchmark_items": None,
        "digest": "",
        "source": "x",
    }
    rows = [Row(f"a:{number}", record) for number, record in enumerate(tool_records(300))]
    folder, num_rows, _ = write_examined(rows, task)
    written = list(read_rows(tmp_path / folder))
    assert num_rows == len(written) == 300
    assert [row["location"] for row in written] == [row.location for row in rows]
    assert all(row["reason"] is None and row["signature"] for row in written)


def test_a_part_of_a_compressed_file_is_read_again_if_its_worker_was_lost(tmp_path, monkeypatch):
    """The lost worker may have removed the lines: then they are read from the compressed file."""
    raw, scratch = tmp_path / "raw", tmp_path / "scratch"
    raw.mkdir()
    scratch.mkdir()
    (raw / "a.jsonl.gz").write_bytes(gzip.compress(b"".join(b'{"messages": [%d]}\n' % n for n in range(9))))
    monkeypatch.setattr("sft.formats.raw_files.PART_BYTES", 40)
    monkeypatch.setenv("SFT_WORKERS", "1")
    examine_part, starts = examine.examine_part, []

    def examine_twice(task):
        starts.append(task["part"])
        examine_part(task)  # by a worker that ends before it answers
        return examine_part(task)

    monkeypatch.setattr(examine, "map_shards", lambda work, *rest: map_shards(examine_twice, *rest))
    task = {"source": "s", "raw": str(raw), "scratch": str(scratch), "read": Read(format="openai").model_dump_json()}
    task |= {
        "params": load("filter", path=ROOT / "params.yaml").model_dump_json(),
        "benchmark_items": None,
        "digest": "",
    }
    assert examine.examine_source(task, None, lambda folder: None).found == 9
    assert len(starts) > 2
    assert not list(scratch.glob("*.text"))
