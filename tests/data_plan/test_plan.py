"""plan: sampled figures against those of the whole files, over real HTTP with and without ranges, from hub and disk."""

import contextlib
import gzip
import io
import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft.cli import InputError
from sft.data_plan import samples
from sft.data_plan.plan import Plan, Seen, SourcePlan, draw_blend, fullness, lines, make_plan
from sft.data_plan.row_sampling import DRAWS, interval
from sft.files import write_json
from sft.packing.blend import plan_copies, plan_epochs
from sft.params.check import read
from sft.params.data import Source
from tests.support.loopback_hub import COMMIT, Web, web
from tests.support.project import ROOT, set_params
from tests.support.tokenizers import REASONING_AND_TOOLS, write_tokenizer

__all__ = ["web"]
NUM_ROWS = 2_000
PIN = "#sha256=" + "0" * 64
READ = {"format": "openai", "select": {"used_in": ["nano_v3"]}}


def make_rows() -> list[dict[str, Any]]:
    """Rows of 0.2 to 4 kB, sorted by length; every fifth is of another use, every seventh has no answer."""
    rows = []
    for number in range(NUM_ROWS):
        words = " ".join(
            f"word{number * 31 % 997} is {(number * 7 + place) % 1013},"
            for place in range(4 + number * 120 // NUM_ROWS)
        )
        turns = [
            {"role": "user", "content": f"Question {number}?"},
            {"role": "assistant", "content": f"So {words} done."},
        ]
        uses = ["other"] if number % 5 == 0 else ["nano_v3"]
        rows.append({"messages": turns[: 1 if number % 7 == 0 else 2], "used_in": uses, "license": "MIT"})
    return rows


ROWS = make_rows()
CONTENT = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a tokenizer."""
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path)


def make_project(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    write_tokenizer(tmp_path / "models/base", (*REASONING_AND_TOOLS, "<|im_start|>", "<|im_end|>", "<|endoftext|>"))
    (tmp_path / "rows.jsonl").write_bytes(CONTENT)
    model = read(tmp_path / "params.yaml").fetch.model
    write_json(tmp_path / "reports/fetch/model.json", {"uri": model.address, "sha256": model.sha256})
    return tmp_path


def plan_of(project: Path, uri: str, monkeypatch: pytest.MonkeyPatch | None = None, **more: Any) -> Plan:
    if monkeypatch is not None:
        for name in ("WHOLE_BYTES", "WHOLE_COMPRESSED_BYTES", "COMPRESSED_PREFIX"):
            monkeypatch.setattr(samples, name, 100_000)
        monkeypatch.setattr(samples, "BUDGET_BYTES", 800_000)
    set_params(
        project, **{"fetch.sources": {"mine": {"uri": uri, "read": READ, **more}}, "filter.near_duplicates": None}
    )
    return make_plan(None, 512)


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The plan of the whole file."""
    project = make_project(tmp_path_factory.mktemp("whole"))
    with contextlib.chdir(project):
        return plan_of(project, "file://rows.jsonl")


def misses(sampled: Plan, truth: Plan) -> list[str]:
    """The figures whose interval does not have the truth, or is no interval."""
    return [
        name
        for name, figure in sampled.totals.items()
        if not figure.low <= truth.totals[name].estimate <= figure.high
        or (name == "tokens" and figure.high > 2 * figure.low)
    ]


def test_a_whole_file_has_exact_figures(truth: Plan) -> None:
    assert (truth.totals["rows"].low, truth.totals["rows"].high) == (NUM_ROWS, NUM_ROWS)
    assert truth.totals["kept"].estimate == NUM_ROWS * 4 // 5 - len(
        [n for n in range(NUM_ROWS) if n % 7 == 0 and n % 5]
    )
    mine = truth.sources["mine"]
    assert (mine.not_selected, sum(mine.rejected.values())) == (
        NUM_ROWS // 5,
        NUM_ROWS * 4 // 5 - truth.totals["kept"].estimate,
    )
    assert mine.row_licenses == {"MIT": truth.totals["trained_tokens"].estimate}
    assert truth.bytes == truth.bytes_read == len(CONTENT)
    assert truth.totals["packed_trained_tokens"].estimate < truth.totals["trained_tokens"].estimate
    assert len(lines(truth)) < 40


def test_ranges_over_http_hold_the_truth(project: Path, truth: Plan, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    web.files = {"/rows.jsonl": CONTENT}
    sampled = plan_of(project, f"{web.url}/rows.jsonl{PIN}", monkeypatch)
    assert misses(sampled, truth) == [], sampled.totals
    assert sampled.bytes_read < 0.8 * len(CONTENT)
    assert len([asked for asked in web.ranges if asked]) > 24
    assert not sampled.sources["mine"].notes


def test_ranges_of_the_hub_and_a_missing_commit(
    project: Path, truth: Plan, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.hub = {"data/rows.jsonl": CONTENT, "data/test.jsonl": b"{}\n"}
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", web.url)
    template = web.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    sampled = plan_of(project, f"hf://own/set@{COMMIT}/data", monkeypatch)
    assert misses(sampled, truth) == [], sampled.totals
    assert "of split test" in sampled.sources["mine"].notes[0]
    with pytest.raises(InputError, match=r"^fetch\.sources\.mine: .*make pin"):
        plan_of(project, "hf://own/set@COMMIT-UNKNOWN/data")


def test_parquet_is_read_by_row_groups(project: Path, truth: Plan, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), stream, row_group_size=10, compression="none")
    web.files = {"/rows.parquet": stream.getvalue()}
    sampled = plan_of(project, f"{web.url}/rows.parquet{PIN}", monkeypatch)
    assert (sampled.totals["rows"].low, sampled.totals["rows"].high) == (NUM_ROWS, NUM_ROWS)
    assert misses(sampled, truth) == [], sampled.totals
    assert sampled.bytes_read < 0.6 * len(stream.getvalue())


@pytest.mark.parametrize("kind", ["gzip", "no-ranges"])
def test_a_file_without_ranges_is_read_at_its_start_and_says_so(
    kind: str, project: Path, truth: Plan, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.has_ranges = kind == "gzip"
    name, content = ("rows.jsonl.gz", gzip.compress(CONTENT)) if kind == "gzip" else ("rows.jsonl", CONTENT)
    web.files = {f"/{name}": content}
    sampled = plan_of(project, f"{web.url}/{name}{PIN}", monkeypatch)
    assert any(samples.AT_ITS_START in note for note in sampled.sources["mine"].notes)
    assert sampled.bytes_read <= 800_000
    assert sampled.totals["tokens"].estimate == pytest.approx(truth.totals["tokens"].estimate, rel=0.5)


def test_a_conversation_of_a_small_source_is_held_out_for_each_split(project: Path) -> None:
    """As pack does: of 16, one hundredth each is one."""
    (project / "few.jsonl").write_bytes(b"".join(CONTENT.splitlines(keepends=True)[101:117]))
    set_params(
        project,
        **{
            "fetch.sources": {"few": {"uri": "file://few.jsonl", "read": READ, "license": "MIT"}},
            "pack.validation": 0.01,
            "pack.test": 0.01,
        },
    )
    planned = make_plan(None, None)
    kept = planned.totals["kept"].estimate
    assert 3 <= kept <= 16
    trained = planned.totals["packed_trained_tokens"].estimate
    assert planned.blend_trained_tokens.estimate == pytest.approx(trained * (kept - 2) / kept)


def test_shares_give_epochs_and_name_the_scarce_source(project: Path) -> None:
    (project / "rows.jsonl").write_bytes(b"".join(CONTENT.splitlines(keepends=True)[:500]))
    (project / "few.jsonl").write_bytes(b"".join(CONTENT.splitlines(keepends=True)[101:150]))
    both = {
        "many": {"uri": "file://rows.jsonl", "read": READ, "share": 0.5, "license": "MIT"},
        "few": {"uri": "file://few.jsonl", "read": READ, "share": 0.5, "license": "CC-BY-4.0"},
    }
    set_params(project, **{"fetch.sources": both})
    planned = make_plan(None, None)
    assert planned.limits.startswith("limited by few (pack.max_epochs 1); used in part: many 0.")
    assert planned.sources["few"].epochs == 1
    assert 0 < planned.sources["many"].epochs < 0.2
    text = "\n".join(lines(planned))
    assert "CC-BY-4.0: 5" in text or "CC-BY-4.0: 4" in text
    few = (project / "few.jsonl").read_bytes()
    (project / "few.jsonl").write_bytes(few.replace(b'"license": "MIT"', b'"license": null'))
    set_params(project, **{"pack.exclude_licenses": ["cc-by-4.0"]})
    planned = make_plan(None, None)
    assert (planned.sources["few"].epochs, planned.sources["many"].epochs) == (0, 1)
    assert planned.sources["few"].figures["packed_tokens"].estimate == 0


@pytest.mark.parametrize(("unit", "few_alike"), [("samples", False), ("tokens", False), ("samples", True)])
def test_the_blend_of_a_run_is_in_the_interval_whatever_conversations_are_held_out_and_drawn(
    unit: str, few_alike: bool
) -> None:
    """A scarce source of 16 conversations, seen five times, limits one of 2,000; lengths differ much."""
    random, shares = np.random.default_rng(1), {"few": 0.1, "many": 0.9}
    params = read(ROOT / "params.yaml")
    sources = {
        name: Source.model_validate({"uri": "file://a", "read": READ, "share": of}) for name, of in shares.items()
    }
    pack = params.pack.model_copy(update={"unit": unit, "max_epochs": 5.0, "validation": 0.01, "test": 0.01})
    params = params.model_copy(update={"fetch": params.fetch.model_copy(update={"sources": sources}), "pack": pack})
    rows, seen = {}, {}
    for name, number in (("few", 16), ("many", 2000)):
        samples = np.ones(number) if few_alike else random.geometric(0.4, number)
        tokens = np.ceil(random.lognormal(6, 1, number)) * samples
        rows[name] = np.stack([tokens, np.ceil(tokens / 3), samples], 1)
        figures = np.concatenate([[number, number], np.zeros(3), rows[name].sum(0)])
        spread, lengths = np.cov(rows[name], rowvar=False), np.empty(0, np.int32)
        seen[name] = Seen(np.tile(figures, (DRAWS + 1, 1)), spread, lengths, cast("SourcePlan", None))
    epochs, blend = draw_blend(params, seen)
    assert (epochs["few"], 0 < epochs["many"] < 1) == (5, True)
    place, inside = 1 if unit == "tokens" else 2, np.zeros(2)
    for _ in range(100):
        training = {name: random.permutation(each)[2 if name == "few" else 40 :] for name, each in rows.items()}
        available = {name: int(each[:, place].sum()) for name, each in training.items()}
        run, total = plan_epochs(available, shares, dict.fromkeys(shares), 5.0), np.zeros(3)
        for name, each in training.items():
            hashes = random.integers(0, 1 << 62, len(each)).astype(np.uint64)
            total += plan_copies(each[:, place].astype(np.int64), hashes, run[name]) @ each
        for figure in (0, 1):
            _, low, high = interval(blend[:, figure])
            inside[figure] += low <= total[figure] <= high
    assert inside.min() >= 93, inside
    _, low, high = interval(blend[:, 0])
    assert high < 2.5 * low


def test_packs_are_as_full_as_bins_of_the_lengths_seen() -> None:
    """Samples of 300 tokens share packs of 512 with none of 300, but with those of 200."""
    params = read(ROOT / "params.yaml")
    long, short = (
        Seen(np.full((DRAWS + 1, 8), 1e6), np.eye(3), np.full(7, length, np.int32), cast("SourcePlan", None))
        for length in (300, 200)
    )
    assert fullness(params, {"long": long}, {"long": 1.0}) == pytest.approx(300 / 512)
    assert fullness(params, {"long": long, "short": short}, {"long": 1.0, "short": 1.0}) == pytest.approx(500 / 512)
    assert fullness(params, {"long": long, "short": short}, {"long": 1.0, "short": 0.0}) == pytest.approx(300 / 512)


def test_a_tokenizer_of_another_model_is_not_used(project: Path) -> None:
    set_params(project, **{"fetch.sources": {"mine": {"uri": "file://rows.jsonl", "read": READ}}})
    (project / "profiles").mkdir()
    shutil.copy(project / "params.yaml", project / "profiles/mine.yaml")
    set_params(project, **{"fetch.model": {"uri": "file://another"}})
    assert make_plan("mine", None).totals["rows"].estimate > 0, "models/base is that of the profile"
    write_json(project / "reports/fetch/model.json", {"uri": "file://another"})
    with pytest.raises(InputError, match=r"^models/base: .*dvc repro fetch-model"):
        make_plan("mine", None)


def test_a_base_model_that_was_fetched_for_other_params_is_not_used(project: Path) -> None:
    set_params(project, **{"fetch.sources": {"mine": {"uri": "file://rows.jsonl", "read": READ}}})
    set_params(project, **{"fetch.model": {"uri": "file://another"}})  # and not fetched since
    with pytest.raises(InputError, match=r"^models/base: .*dvc repro fetch-model"):
        make_plan(None, None)


def test_a_file_that_no_figure_counts_is_named_first_and_a_missing_digest_is_said(
    project: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.files = {"/rows.json": b"[" + b",".join(CONTENT.splitlines()) + b"]"}
    planned = plan_of(project, f"{web.url}/rows.json", monkeypatch)
    assert planned.sources["mine"].bytes_left_out == len(web.files["/rows.json"])
    page = lines(planned)
    assert page[1].startswith("LEFT OUT ")
    assert next(line for line in page if line.startswith("mine ")).split().count("unknown") == 2
    assert any(f"fetch needs a digest: {web.url}/rows.json#sha256=" in note for note in planned.sources["mine"].notes)


def test_a_list_of_addresses_is_one_source(project: Path) -> None:
    for folder in ("a", "b"):
        (project / folder).mkdir()
        (project / folder / "rows.jsonl").write_bytes(b"".join(CONTENT.splitlines(keepends=True)[:20]))
    set_params(project, **{"fetch.sources": {"mine": {"uri": ["file://a", "file://b"], "read": READ}}})
    planned = make_plan(None, None)
    assert (planned.sources["mine"].files, planned.totals["rows"].estimate) == (2, 40)
