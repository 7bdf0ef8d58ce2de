"""Conservation: every labelled conversation through filter, prep and pack; whatever it is, it is packed or counted."""

import json
import random
from collections import Counter

import pytest
from bench import filters

from sft.files import read_json
from sft.hashing import folder_digest
from sft.parquet import read_rows
from sft.stages import filter as filter_stage
from sft.stages import pack as pack_stage
from sft.stages import prep as prep_stage
from tests.support.project import ROOT, set_params, write_jsonl
from tests.support.tokenizers import write_tokenizer

SPLITS = ("training", "validation", "test")


def messy_lines() -> list[bytes]:
    """Every labelled row of OpenAI's form as a line, sound or broken."""
    fixtures = [row for row in filters.rows("conversations") if row["format"] == "openai" and "where" not in row]
    lines = [filters._line(row).replace(b"\n", b" ") for row in fixtures if "fields" not in row]
    records = [row["conversation"] for name in ("repetition", "narrative", "consistency") for row in filters.rows(name)]
    records += [row[side] for row in filters.rows("duplicates") for side in "ab"]
    return [*lines, *(json.dumps(record).encode() for record in records)]


def run_stages(folder, lines, monkeypatch, **params):
    folder.mkdir()
    (folder / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(folder)
    write_tokenizer(folder / "models/base")
    write_jsonl(folder / "data/benchmarks/items.jsonl", [])
    sources = {name: {"uri": f"file://{name}", "read": "openai", "domain": "chat"} for name in ("odd", "even")}
    settings = {
        "fetch.sources": sources,
        "filter.max_rejected": 0.9,
        "prep.max_tokens": 5_000,
        "pack.pack_size": 2048,
        "pack.over_length": "window",
        "prep.reasoning.strip": 0.3,
        "prep.reasoning.truncate": 0.3,
        "train.global_batch_size": 1,
        "validation.eval_iters": 0,
    }
    set_params(folder, **{**settings, **params})
    for number, name in enumerate(sources):
        (folder / "data/raw" / name).mkdir(parents=True)
        (folder / "data/raw" / name / "a.jsonl").write_bytes(b"".join(line + b"\n" for line in lines[number::2]))
        filter_stage.main(name)
        prep_stage.main(name)
    pack_stage.main()
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return run_stages(tmp_path_factory.mktemp("conservation") / "a", messy_lines(), patch)


def test_every_row_is_packed_or_rejected_with_a_reason_and_no_token_is_lost(done):
    lines = messy_lines()
    assert len(lines) > 500
    packed = {
        (source, conversation, sample)
        for split in SPLITS
        for row in read_rows(done / "data/packed" / split)
        for source, conversation, sample in zip(row["source"], row["conversation_id"], row["sample"], strict=True)
    }
    rejected_by_pack = [json.loads(line) for line in (done / "data/packed/rejected.jsonl").read_text().splitlines()]
    prepared_tokens = conversations = 0
    reasons = Counter[str]()
    for number, source in enumerate(("odd", "even")):
        kept = list(read_rows(done / "data/filtered" / source, "kept"))
        rejected = list(read_rows(done / "data/filtered" / source, "rejected"))
        places = [json.loads(row["meta"])["location"] for row in [*kept, *rejected]]
        wanted = [f"a.jsonl:{n}" for n, line in enumerate(lines[number::2], 1) if line.strip()]
        assert sorted(places) == sorted(wanted)
        assert all(row["reason"] and row["evidence"] for row in rejected)
        reasons.update(row["reason"] for row in rejected)
        report, prep = (read_json(done / f"reports/{stage}/{source}.json") for stage in ("filter", "prep"))
        assert (report["rows_in"], report["rows_out"]) == (len(wanted), len(kept))
        assert report["rejected"] == dict(Counter(row["reason"] for row in rejected))
        samples = list(read_rows(done / "data/prepared" / source, "samples"))
        not_rendered = (done / f"data/prepared/{source}/rejected.jsonl").read_text().splitlines()
        assert {row["id"] for row in kept} == {row["conversation_id"] for row in samples} | {
            json.loads(line)["id"] for line in not_rendered
        }
        prepared_tokens += sum(len(row["ids"]) for row in samples)
        conversations += prep["rows_out"]
        lost = {line["id"] for line in rejected_by_pack if line["source"] == source}
        for row in samples:
            assert (source, row["conversation_id"], row["sample"]) in packed or row["conversation_id"] in lost
    assert len(reasons) >= 40
    pack = read_json(done / "reports/pack.json")
    assert pack["rows_in"] == conversations == pack["rows_out"] + sum(pack["rejected"].values())
    assert pack["tokens_in"] == prepared_tokens
    left = pack["tokens"] - pack["windows"]["context_tokens"] + sum(pack["tokens_rejected"].values())
    assert left == prepared_tokens
    assert pack["trained_tokens_in"] == pack["trained_tokens"] + sum(pack["trained_tokens_rejected"].values())
    assert pack["windows"]["windows"] > pack["windows"]["samples"] > 0
    assert "near-duplicate" in pack["rejected"]


def test_the_order_of_rows_changes_no_pack(tmp_path, monkeypatch):
    """Where only equal conversations are duplicates: of similar ones the first is kept, whichever it is."""
    lines = [line for line in messy_lines() if line.strip()]
    alone = {"filter.near_duplicates": None, "pack.near_duplicates": None}
    digests = set()
    for name, seed in (("a", 1), ("b", 2)):
        halves = [random.Random(seed).sample(lines[start::2], len(lines[start::2])) for start in (0, 1)]
        longest = max(map(len, halves))
        order = [half[n] if n < len(half) else b"" for n in range(longest) for half in halves]
        folder = run_stages(tmp_path / name, order, monkeypatch, **alone)
        digests.add(folder_digest(folder / "data/packed"))
    assert len(digests) == 1
