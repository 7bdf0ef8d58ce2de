"""pack: what comes in goes out or is counted, split by conversation, packed without a broken promise."""

import json
from pathlib import Path

import numpy as np
import pytest

from sft.command import InputError
from sft.data.shards import read_rows
from sft.files import folder_digest, read_json
from sft.stages import filter as filter_stage
from sft.stages import pack as stage
from sft.stages import prep as prep_stage
from tests.project import link_project, set_params

SPLITS = ("training", "validation", "test")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        link_project(folder)
        patch.chdir(folder)
        Path("models").mkdir()
        Path("inputs/model").rename("models/base")
        for source, file in (("calls", "calls.jsonl"), ("chats", "chats.jsonl.gz")):
            Path("data/raw", source).mkdir(parents=True)
            Path("inputs", file).rename(Path("data/raw", source, file))
            filter_stage.main(source)
            prep_stage.main(source)
    return folder


@pytest.fixture
def project(prepared, tmp_path, monkeypatch):
    for name in ("data", "models"):
        (tmp_path / name).mkdir()
    (tmp_path / "data/prepared").symlink_to(prepared / "data/prepared")
    (tmp_path / "models/base").symlink_to(prepared / "models/base")
    (tmp_path / "params.yaml").write_bytes((prepared / "params.yaml").read_bytes())
    (tmp_path / "reports").mkdir()
    for name in ("filter", "prep"):
        (tmp_path / "reports" / name).symlink_to(prepared / "reports" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepared_samples(project):
    return {
        (source, row["conversation_id"], row["sample"]): row
        for source in ("calls", "chats")
        for row in read_rows(project / "data/prepared" / source)
    }


def packs(project, split):
    return list(read_rows(project / "data/packed" / split))


def segments(pack):
    ends = [*pack["seq_start_id"][1:], len(pack["input_ids"])]
    keys = zip(pack["source"], pack["conversation_id"], pack["sample"], strict=True)
    for key, start, end in zip(keys, pack["seq_start_id"], ends, strict=True):
        yield key, pack["input_ids"][start:end], pack["loss_mask"][start:end]


def test_every_sample_is_in_one_pack_with_its_tokens_and_its_mask_shifted_once(project):
    stage.main()
    expected = prepared_samples(project)
    found = {
        key: (ids, mask) for split in SPLITS for pack in packs(project, split) for key, ids, mask in segments(pack)
    }
    assert len(expected) == 120
    assert found.keys() == expected.keys()
    for key, (ids, mask) in found.items():
        assert ids == expected[key]["ids"]
        assert mask == [*expected[key]["mask"][1:], 0]
    assert sum(len(packs(project, split)) for split in SPLITS) < len(expected)


def test_all_samples_of_a_conversation_are_in_one_split(project):
    stage.main()
    sides: dict[str, set[str]] = {}
    for split in SPLITS:
        for pack in packs(project, split):
            for conversation in pack["conversation_id"]:
                sides.setdefault(conversation, set()).add(split)
    assert len(sides) == 100
    assert all(len(side) == 1 for side in sides.values())
    assert {split for side in sides.values() for split in side} == set(SPLITS)


def test_metadata_and_report_count_what_is_written(project):
    stage.main()
    metadata, report = (
        read_json(project / "data/packed/metadata.json"),
        read_json(project / "reports/pack.json"),
    )
    for split in SPLITS:
        counted, found = metadata["splits"][split], packs(project, split)
        assert counted["packs"] == len(found) > 0
        assert counted["tokens"] == sum(len(pack["input_ids"]) for pack in found)
        assert counted["trained_tokens"] == sum(sum(pack["loss_mask"]) for pack in found)
        assert sum(source["tokens"] for source in counted["sources"].values()) == counted["tokens"]
    prepared = prepared_samples(project).values()
    assert report["tokens"] == report["tokens_in"] == sum(len(row["ids"]) for row in prepared)
    assert report["trained_tokens"] == sum(sum(row["mask"]) for row in prepared)
    assert (report["rows_in"], report["rows_out"], report["rejected"]) == (100, 100, {})
    assert {name: source["domain"] for name, source in metadata["sources"].items()} == {
        "calls": "tool-use",
        "chats": "chat",
    }
    assert metadata["sources"]["chats"]["rejected_by_filter"] == {"duplicate": 1, "malformed-row": 1}


def test_npy_holds_the_same_rows_as_the_parquet_shards(project):
    stage.main()
    for split in SPLITS:
        rows = [dict(row) for row in np.load(project / "data/packed" / f"{split}.npy", allow_pickle=True)]
        assert rows
        assert rows == [
            {name: pack[name] for name in ("input_ids", "loss_mask", "seq_start_id")} for pack in packs(project, split)
        ]


def test_sets_too_large_for_npy_are_parquet_only_and_say_so(project):
    set_params(project, **{"pack.npy_max_tokens": 1000})
    stage.main()
    assert not list((project / "data/packed").glob("*.npy"))
    assert read_json(project / "data/packed/metadata.json")["npy"] is False


def test_the_same_input_gives_the_same_bytes_and_another_seed_others(project):
    digests = []
    for seed in (1, 1, 2):
        set_params(project, **{"pack.seed": seed})
        stage.main()
        digests.append(folder_digest(project / "data/packed"))
    assert digests[0] == digests[1] != digests[2]


def test_samples_longer_than_a_pack_are_dropped_and_counted_by_source(project):
    set_params(project, **{"pack.pack_size": 100})
    stage.main()
    metadata, report = (
        read_json(project / "data/packed/metadata.json"),
        read_json(project / "reports/pack.json"),
    )
    assert metadata["sources"]["calls"]["over_length"]["samples"] == 60
    assert report["rejected"]["over-length"] >= 60
    assert report["tokens"] + report["tokens_rejected"]["over-length"] == report["tokens_in"]
    assert report["rows_in"] == report["rows_out"] + report["rejected"]["over-length"] == 100


def test_samples_longer_than_a_pack_can_be_an_error_that_names_the_longest(project):
    set_params(project, **{"pack.pack_size": 100, "pack.over_length": "error"})
    with pytest.raises(InputError, match=r"longest has 4\d\d \(calls, conversation [0-9a-f]{32}\)"):
        stage.main()
    assert not (project / "data/packed").exists()


def test_a_pack_size_that_no_sample_fits_stops(project):
    set_params(project, **{"pack.pack_size": 5})
    with pytest.raises(InputError, match="no sample fits"):
        stage.main()


def test_segments_are_padded_to_the_multiple_that_is_asked_for(project):
    set_params(project, **{"pack.pad_segments_to": 16})
    stage.main()
    starts = [start for split in SPLITS for pack in packs(project, split) for start in pack["seq_start_id"]]
    assert len(starts) == 120
    assert all(start % 16 == 0 for start in starts)
    metadata = read_json(project / "data/packed/metadata.json")
    kept = sum(sum(pack["loss_mask"]) for pack in packs(project, "training"))
    assert kept == metadata["splits"]["training"]["trained_tokens"]


def test_another_tokenizer_than_the_data_was_prepared_with_is_refused(project):
    base = project / "models/base"
    target = base.resolve()
    base.unlink()
    base.mkdir()
    for file in target.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    tokenizer["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="another tokenizer"):
        stage.main()


def test_a_source_that_is_not_prepared_says_what_to_run(project):
    set_params(project, **{"fetch.sources": {"other": {"uri": "file://x.jsonl", "format": "openai"}}})
    with pytest.raises(InputError, match="dvc repro prep@other"):
        stage.main()
