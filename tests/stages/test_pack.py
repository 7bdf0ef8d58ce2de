"""pack: every sample is packed or counted, conversations are split as a whole, and packs keep their contract."""

import csv
import itertools
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sft.cli import InputError
from sft.files import read_json
from sft.hashing import file_digest, folder_digest, folder_digests
from sft.parquet import read_rows
from sft.stages import filter as filter_stage
from sft.stages import pack as stage
from sft.stages import prep as prep_stage
from tests.support.project import ROOT, lay_out, link_project, run, set_params, sources_in_params, write_kept

SPLITS = ("training", "validation", "test")
LETTERS = str.maketrans("0123456789", "abcdefghij")
"""Digits to letters, so that conversations of different numbers are no near-duplicates."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        link_project(folder)
        set_params(folder, **{"train.global_batch_size": 1, "validation.eval_iters": 0})  # few packs are enough
        patch.chdir(folder)
        Path("models").mkdir()
        Path("inputs/model").rename("models/base")
        Path("data/benchmarks").mkdir(parents=True)
        Path("data/benchmarks/items.jsonl").touch()
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


def rejected(project):
    return [json.loads(line) for line in (project / "data/packed/rejected.jsonl").read_text().splitlines()]


def mixture(project):
    with (project / "reports/mixture.csv").open() as file:
        return {row["source"]: row for row in csv.DictReader(file)}


def segments(pack):
    ends = [*pack["seq_start_id"][1:], len(pack["input_ids"])]
    keys = zip(pack["source"], pack["conversation_id"], pack["sample"], strict=True)
    for key, start, end in zip(keys, pack["seq_start_id"], ends, strict=True):
        yield key, pack["input_ids"][start:end], pack["loss_mask"][start:end]


def test_every_sample_is_in_one_pack_with_its_tokens_and_its_mask_shifted_once(project):
    stage.main()
    expected = prepared_samples(project)
    packed = {
        key: (ids, mask) for split in SPLITS for pack in packs(project, split) for key, ids, mask in segments(pack)
    }
    assert len(expected) == 120
    assert packed.keys() == expected.keys()
    for key, (ids, mask) in packed.items():
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
        counted, packed = metadata["splits"][split], packs(project, split)
        assert counted["packs"] == len(packed) > 0
        assert counted["tokens"] == sum(len(pack["input_ids"]) for pack in packed)
        assert counted["trained_tokens"] == sum(sum(pack["loss_mask"]) for pack in packed)
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


def test_sets_too_large_for_npy_are_parquet_only(project):
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


def test_samples_longer_than_a_pack_are_dropped_and_counted_by_source_and_domain(project):
    set_params(project, **{"pack.pack_size": 100, "pack.over_length": "drop"})
    stage.main()
    report = read_json(project / "reports/pack.json")
    lost = report["lost"]["sources"]["calls"]["over-length"]
    assert lost["samples"] == 60
    assert report["lost"]["domains"]["tool-use"] == report["lost"]["sources"]["calls"]
    assert report["lost"]["sources"]["chats"] == {}
    assert report["tokens"] + lost["tokens"] == report["tokens_in"]
    assert report["rows_in"] == report["rows_out"] + report["rejected"]["over-length"] == 100
    assert report["length_quantiles"]["calls"]["p0"] > 100 >= report["length_quantiles"]["chats"]["p100"]
    lines = rejected(project)
    assert len(lines) == 60
    assert all(line.keys() == {"id", "source", "reason", "evidence"} for line in lines)
    assert f"sample 0: {report['length_quantiles']['calls']['p0']} tokens of 100" in {
        line["evidence"] for line in lines
    }


def test_samples_longer_than_a_pack_can_be_an_error_that_names_the_first(project):
    set_params(project, **{"pack.pack_size": 100, "pack.over_length": "error"})
    first = next(iter(read_rows(project / "data/prepared/calls")))
    with pytest.raises(
        InputError,
        match=rf"data/prepared/calls: conversation {first['conversation_id']}, sample 0: .* 4\d\d .*pack_size 100",
    ):
        stage.main()
    assert not (project / "data/packed").exists()


def test_samples_longer_than_a_pack_can_be_cut_behind_their_last_whole_turn(project):
    set_params(project, **{"pack.pack_size": 420, "pack.over_length": "cut-at-turn"})
    stage.main()
    expected, cut = prepared_samples(project), 0
    for split in SPLITS:
        for pack in packs(project, split):
            for key, ids, mask in segments(pack):
                whole = expected[key]
                assert ids == whole["ids"][: len(ids)]
                assert mask == [*whole["mask"][1 : len(ids)], 0]
                assert len(ids) in {*whole["turn_ends"], len(whole["ids"])}
                cut += len(ids) < len(whole["ids"])
    report = read_json(project / "reports/pack.json")
    assert cut == report["lost"]["sources"]["calls"]["cut"]["samples"] > 0
    for unit in ("tokens", "trained_tokens"):
        assert report[f"{unit}_rejected"]["cut"] == report["lost"]["domains"]["tool-use"]["cut"][unit] > 0
        assert report[f"{unit}_in"] == report[unit] + sum(report[f"{unit}_rejected"].values())
    assert "cut" not in report["rejected"]
    assert "cut" not in {line["reason"] for line in rejected(project)}


def test_samples_longer_than_a_pack_are_packed_in_windows_that_train_each_token_once(project, prepared):
    (project / "data/filtered").symlink_to(prepared / "data/filtered")
    set_params(project, **{"pack.pack_size": 400, "pack.over_length": "window", "pack.max_windows": 2})
    stage.main()
    report, metadata = read_json(project / "reports/pack.json"), read_json(project / "data/packed/metadata.json")
    whole = prepared_samples(project)
    trained: dict[tuple, list[int]] = {}
    numbers: dict[tuple, list[int]] = {}
    for split in SPLITS:
        for pack in packs(project, split):
            assert len(pack["input_ids"]) <= 400
            in_windows = [
                name
                for name, window in zip(
                    zip(pack["source"], pack["conversation_id"], strict=True), pack["window"], strict=True
                )
                if window
            ]
            assert len(in_windows) == len(set(in_windows)), "windows of a conversation are in different packs"
            for (key, ids, mask), window in zip(segments(pack), pack["window"], strict=True):
                numbers.setdefault(key, []).append(window)
                trained.setdefault(key, []).extend(
                    token for token, is_trained in zip(ids[1:], mask, strict=False) if is_trained
                )
    assert max(map(len, numbers.values())) == 2 == report["windows"]["most_windows"]
    for key, row in whole.items():
        expected = [token for token, is_trained in zip(row["ids"], row["mask"], strict=True) if is_trained]
        if len(row["ids"]) <= 400:
            assert (trained[key], numbers[key]) == (expected, [0])
        else:
            assert 0 not in numbers.get(key, [])
            assert Counter(trained.get(key, [])) <= Counter(expected)
    lost = report["trained_tokens_rejected"]
    assert sum(map(len, trained.values())) + sum(lost.values()) == report["trained_tokens_in"]
    assert metadata["windows"] == report["windows"]


def test_a_pack_size_that_no_sample_fits_stops(project):
    set_params(project, **{"pack.pack_size": 5})
    with pytest.raises(InputError, match=r"data/prepared: .*pack\.pack_size 5\b"):
        stage.main()


def test_segments_are_padded_to_the_requested_multiple(project):
    set_params(project, **{"pack.pad_segments_to": 16})
    stage.main()
    lengths = [
        end - start
        for split in SPLITS
        for pack in packs(project, split)
        for start, end in itertools.pairwise([*pack["seq_start_id"], len(pack["input_ids"])])
    ]
    assert len(lengths) == 120
    assert all(length % 16 == 1 for length in lengths), "all tokens but the last are read"
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
    with pytest.raises(InputError, match=r"models/base/tokenizer\.json: .*tokenizer_sha256"):
        stage.main()


def test_another_template_than_the_samples_were_rendered_with_is_refused(bare):
    lay_out(bare, {"a": range(9)})
    sources_in_params(bare, {"a": {}})
    stage.main()
    (bare / "data/prepared/a/chat_template.jinja").write_text("edited")
    with pytest.raises(InputError, match=r"data/prepared/a/chat_template\.jinja: .*template_sha256 .*prep@a"):
        stage.main()


def test_a_source_that_is_not_prepared_is_an_error_with_the_command(project):
    set_params(project, **{"fetch.sources": {"other": {"uri": "file://x.jsonl", "read": "openai"}}})
    with pytest.raises(InputError, match=r"data/prepared/other: .*dvc repro prep@other"):
        stage.main()


def test_without_shares_and_epochs_the_mixture_is_the_data(project):
    stage.main()
    counted = read_json(project / "data/packed/metadata.json")["splits"]["training"]["sources"]
    for source, row in mixture(project).items():
        assert list(row) == [
            "source",
            "domain",
            "epochs",
            "asked_share",
            "samples",
            "tokens",
            "trained_tokens",
            "achieved_share",
        ]
        assert row["asked_share"] == row["achieved_share"]
        assert (int(row["tokens"]), row["epochs"]) == (counted[source]["tokens"], "1.0")
    assert len(counted) == 2


def test_epochs_repeat_training_only_mark_the_copies_and_keep_them_in_different_packs(project):
    stage.main()
    once = read_json(project / "reports/pack.json")
    set_params(project, **{"fetch.sources.chats.epochs": 2.5})
    stage.main()
    report, packed = read_json(project / "reports/pack.json"), {}
    for split in SPLITS:
        for pack in packs(project, split):
            copies = list(zip(pack["conversation_id"], pack["sample"], pack["repeat"], strict=True))
            assert len({(conversation, repeat) for conversation, _, repeat in copies}) == len(
                {conversation for conversation, _, _ in copies}
            )
            for source, copy in zip(pack["source"], copies, strict=True):
                packed.setdefault((split, source), []).append(copy)
    assert {repeat for _, _, repeat in packed["training", "chats"]} == {0, 1, 2}
    for (split, source), copies in packed.items():
        assert len(copies) == len(set(copies))
        if (split, source) != ("training", "chats"):
            assert {repeat for _, _, repeat in copies} == {0}
    assert report["rows_out"] == once["rows_out"] == 100
    assert report["tokens"] == once["tokens"] + report["repeated"]["tokens"]
    assert report["repeated"]["samples"] == sum(repeat > 0 for _, _, repeat in packed["training", "chats"])
    for split in ("validation", "test"):
        assert report["splits"][split] == once["splits"][split]


@pytest.mark.parametrize(("unit", "count"), [("tokens", "trained_tokens"), ("samples", "samples")])
def test_shares_are_reached_without_repeating_and_what_is_not_drawn_is_counted(project, capsys, unit, count):
    shares = {"fetch.sources.calls.share": 0.75, "fetch.sources.chats.share": 0.25}
    set_params(project, **shares, **{"pack.unit": unit})
    stage.main()
    metadata = read_json(project / "data/packed/metadata.json")
    limits, counted = metadata["mixture"]["limits"], metadata["splits"]["training"]["sources"]
    assert re.match(r"limited by (calls|chats) \(pack.max_epochs 1\); used in part: \w+ 0\.\d+ epochs$", limits)
    assert f"blend: {limits}" in " ".join(capsys.readouterr().out.split())
    total = sum(source[count] for source in counted.values())
    assert [counted[name][count] / total for name in ("calls", "chats")] == pytest.approx([0.75, 0.25], abs=0.02)
    report, rows = read_json(project / "reports/pack.json"), mixture(project)
    assert [rows[source]["asked_share"] for source in ("calls", "chats")] == ["0.75", "0.25"]
    assert [float(rows[source]["achieved_share"]) for source in ("calls", "chats")] == pytest.approx(
        [0.75, 0.25], abs=0.02
    )
    assert report["repeated"]["samples"] == 0
    assert report["rows_in"] == report["rows_out"] + report["rejected"]["not-drawn"]
    assert report["tokens_in"] == report["tokens"] + report["tokens_rejected"]["not-drawn"]
    assert report["rejected"]["not-drawn"] > 0
    assert rejected(project) == [], "counted, not listed"
    domains = read_json(project / "data/packed/metadata.json")["mixture"]["domains"]
    assert {name: domain["asked_share"] for name, domain in domains.items()} == {"tool-use": 0.75, "chat": 0.25}


def test_an_excluded_license_is_counted_and_every_trained_token_has_a_license(project, capsys):
    sources = {"fetch.sources.calls.license": "MIT and GPL-3.0", "fetch.sources.chats.license": "CC0-1.0"}
    set_params(project, **sources, **{"fetch.sources.calls.share": 0.75, "fetch.sources.chats.share": 0.25})
    stage.main()
    metadata = read_json(project / "data/packed/metadata.json")
    by_license = {name: counts["trained_tokens"] for name, counts in metadata["licenses"].items()}
    assert sum(by_license.values()) == metadata["splits"]["training"]["trained_tokens"]
    assert list(by_license) == ["CC0-1.0", "MIT and GPL-3.0"]
    assert by_license["MIT and GPL-3.0"] == metadata["splits"]["training"]["sources"]["calls"]["trained_tokens"]
    set_params(project, **{"pack.exclude_licenses": ["gpl-3.0"]})
    stage.main()
    report = read_json(project / "reports/pack.json")
    assert list(report["licenses"]) == ["CC0-1.0"]
    assert list(report["lost"]["sources"]["calls"]) == ["excluded-license"]
    assert report["rejected"]["excluded-license"] == sum(line["source"] == "calls" for line in rejected(project))
    assert "licenses of the trained tokens: CC0-1.0 100.0%" in " ".join(capsys.readouterr().out.split())
    set_params(project, **{"pack.exclude_licenses": ["gpl-3.0", "CC0-1.0"]})
    with pytest.raises(InputError, match=r"^pack\.exclude_licenses"):
        stage.main()


def test_shares_of_some_sources_only_stop_before_anything_is_read(project):
    set_params(project, **{"fetch.sources.calls.share": 1.0})
    with pytest.raises(InputError, match=r"fetch\.sources: share: .*calls, .*chats"):
        stage.main()


@pytest.fixture
def bare(project, monkeypatch):
    """A project without prepared data: each test lays out its own. Prints nothing."""
    (project / "data/prepared").unlink()
    for name in ("filter", "prep"):
        (project / "reports" / name).unlink()
    monkeypatch.setattr("sft.packing.summary.echo", lambda *parts: None)
    set_params(project, **{"pack.pack_size": 64, "pack.npy_max_tokens": 0})
    return project


def test_who_keeps_what_several_sources_have_is_what_precedence_says_then_the_name_never_the_order_of_sources(bare):
    lay_out(bare, {"a": list(range(10)), "b": list(range(5, 15))})
    keepers = {}
    for order in ("ab", "ba"):
        for precedence in ([], ["b"]):
            sources_in_params(bare, {name: {} for name in order})
            set_params(bare, **{"pack.pack_size": 256, "pack.precedence": precedence})
            stage.main()
            (evidence,) = {line["evidence"][len("c5 ") :] for line in rejected(bare)}
            keepers[order, *precedence] = (evidence, folder_digest(bare / "data/packed"))
    assert keepers["ab",] == keepers["ba",]
    assert keepers["ab", "b"] == keepers["ba", "b"]
    assert keepers["ab",][0] == "of a is kept"
    assert keepers["ab", "b"][0] == "of b is kept"


def test_a_conversation_of_several_sources_stays_with_one_and_the_evidence_is_kept(bare):
    lay_out(bare, {"a": list(range(10)), "b": list(range(5, 15))})
    sources_in_params(bare, {"a": {}, "b": {}})
    set_params(bare, **{"pack.pack_size": 256, "pack.precedence": ["b"]})
    stage.main()
    report = read_json(bare / "reports/pack.json")
    assert (report["rows_in"], report["rows_out"], report["rejected"]) == (20, 15, {"duplicate": 5})
    assert list(report["lost"]["sources"]["a"]) == ["duplicate"]
    assert report["lost"]["sources"]["b"] == {}
    lines = {line["id"]: line for line in rejected(bare)}
    assert lines.keys() == {f"c{n}" for n in range(5, 10)}
    assert lines["c5"] == {"id": "c5", "source": "a", "reason": "duplicate", "evidence": "c5 of b is kept"}


def test_near_duplicates_of_an_earlier_source_are_dropped_and_those_of_one_source_are_in_one_split(bare):
    """Near-duplicates: 2n and 2n + 1 of source a; 20 to 24 of b and 0, 2, 4, 6, 8 of a."""
    numbers = {"a": list(range(20)), "b": list(range(20, 30))}
    lay_out(bare, numbers)
    for source, members in numbers.items():
        texts = {}
        for n in members:
            kind = n // 2 if n < 20 else n - 20 if n < 25 else n
            text = " ".join(f"{kind}".translate(LETTERS) + f"{word}".translate(LETTERS) for word in range(80))
            texts[f"c{n}"] = text + "!" * n
        write_kept(bare / "data/filtered" / source, texts)
    sources_in_params(bare, {"a": {}, "b": {}})
    set_params(bare, **{"pack.pack_size": 256, "pack.near_duplicates": 0.8, "pack.validation": 0.2, "pack.test": 0.2})
    stage.main()
    written = [
        (conversation, split)
        for split in SPLITS
        for pack in packs(bare, split)
        for conversation in pack["conversation_id"]
    ]
    sides = dict(written)
    assert len(sides) == len(set(written))
    assert sides.keys() == {f"c{n}" for n in (*range(20), *range(25, 30))}
    assert all(sides[f"c{2 * n}"] == sides[f"c{2 * n + 1}"] for n in range(10))
    assert set(sides.values()) == set(SPLITS)
    lines = rejected(bare)
    assert {line["id"] for line in lines} == {f"c{n}" for n in range(20, 25)}
    assert lines[0] == {
        "id": "c20",
        "source": "b",
        "reason": "near-duplicate",
        "evidence": "1.00 similar: c0 of a is kept",
    }
    assert read_json(bare / "reports/pack.json")["rejected"] == {"near-duplicate": 5}


def test_conversations_that_are_not_among_the_filtered_ones_cannot_be_compared(bare):
    lay_out(bare, {"a": list(range(10))})
    write_kept(bare / "data/filtered/a", {})
    sources_in_params(bare, {"a": {}})
    set_params(bare, **{"pack.near_duplicates": 0.8})
    with pytest.raises(InputError, match=r"data/filtered: 10 of 10 .*dvc repro --force filter"):
        stage.main()


def test_a_source_without_samples_changes_no_pack(bare):
    digests = []
    for sources in ({"a": list(range(20))}, {"a": list(range(20)), "b": []}):
        lay_out(bare, sources)
        sources_in_params(bare, {source: {} for source in sources})
        stage.main()
        digests.append([folder_digest(bare / "data/packed" / split) for split in SPLITS])
    assert digests[0] == digests[1]
    assert read_json(bare / "data/packed/metadata.json")["sources"]["b"]["samples"] == 0


def test_another_process_with_another_hash_seed_writes_the_same_bytes(bare):
    lay_out(bare, {"a": list(range(20)), "b": list(range(15, 40))})
    sources_in_params(bare, {"a": {"epochs": 1.5}, "b": {"epochs": 0.5}})
    digests = set()
    for seed in ("0", "7"):
        run(bare, "python", "-m", "sft.stages.pack", PYTHONPATH=str(ROOT / "src"), PYTHONHASHSEED=seed)
        reports = [file_digest(bare / "reports" / name) for name in ("pack.json", "mixture.csv")]
        digests.add((folder_digest(bare / "data/packed"), *reports))
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("values", "split", "advice"),
    [
        ({"train.global_batch_size": 500}, "training", "lower train.global_batch_size"),
        ({"pack.validation": 0.0, "validation.eval_iters": 2}, "validation", "set validation.eval_iters to 0"),
    ],
)
def test_too_few_packs_for_a_step_are_said_here_and_not_at_train(project, values, split, advice):
    """Before DVC removes the model of the last run. The earlier packs stay."""
    stage.main()
    before = folder_digests(project / "data/packed")
    set_params(project, **values)
    with pytest.raises(InputError, match=f"data/packed/{split}: .*{advice}"):
        stage.main()
    assert folder_digests(project / "data/packed") == before
