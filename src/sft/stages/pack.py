"""pack: samples of all sources -> packed sequences, split for training, validation and test.

data/prepared/<source>/*.parquet, data/filtered/<source>/kept-*.parquet, models/base (tokenizer)
    ->  data/packed/{training,validation,test}/*.parquet   input_ids, loss_mask (shifted), seq_start_id
        data/packed/{training,validation,test}.npy         the same rows, for sets that fit in memory
        data/packed/metadata.json                          counts, mixture, fingerprints, digests, seeds
        data/packed/rejected.jsonl                         id, source, reason, evidence
        data/packed/chat_template.jinja                    the template of all samples
        reports/pack.json                                  the ledger, lengths, losses by source and domain
        reports/mixture.csv                                the mixture, requested and achieved

The steps, in order: apply `pack.over_length` to samples longer than a pack; drop conversations that an earlier source
(by `pack.precedence`) has too; hold out conversations by hash, per source, near-duplicates and those with the same
first user message or `group` in one split; draw or repeat conversations of the training split until the blend is as
requested; pack best-fit over the whole split, copies of a conversation in different packs; order the packs by a seeded
hash.

Whatever is dropped is counted by reason: tokens in + tokens repeated + context that windows add = tokens packed +
tokens rejected.
"""

import csv
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.markup import escape

from sft.cli import InputError, echo
from sft.files import publish_file, publish_folder, write_json
from sft.hashing import file_digest, folder_digest
from sft.ledger import Ledger, read_report
from sft.packing.blend import check_shares
from sft.packing.splits import SPLITS, NearDuplicates, by_precedence
from sft.packing.summary import print_summary
from sft.packing.write import read_lists, write_npy
from sft.params.check import check_packs
from sft.params.data import Pack, Source
from sft.params.read import load
from sft.run_stage import run_stage
from sft.workers import map_shards

if TYPE_CHECKING:
    from sft.packing.external_sort import SortTasks
    from sft.packing.sample_table import ConversationTable, RowGroup, SampleTable

BASE = Path("models/base")
FILTERED = Path("data/filtered")
PREPARED = Path("data/prepared")
PACKED = Path("data/packed")
MIXTURE = Path("reports/mixture.csv")
FINGERPRINTS = ("template_sha256", "tokenizer_sha256")

Reports = Mapping[str, Mapping[str, Any]]


def read_prep_reports(sources: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the prep report of each source. Raises InputError: a source is not prepared."""
    reports = {}
    types = {
        **dict.fromkeys(("rows_out", "samples", "stop_id", "pad_id"), int),
        **dict.fromkeys(FINGERPRINTS, str),
        "rejected": dict,
    }
    for source in sources:
        path = Path(f"reports/prep/{source}.json")
        if not (PREPARED / source).is_dir() or not path.exists():
            raise InputError(f"{PREPARED / source}: not found. Run the prep stage first: dvc repro prep@{source}")
        reports[source] = read_report(path, **types)
    return reports


def read_filter_reports(sources: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the filter report of each source."""
    return {
        source: read_report(Path(f"reports/filter/{source}.json"), rejected=dict, sampled=bool) for source in sources
    }


def check_fingerprints(prep_reports: Reports) -> dict[str, str]:
    """Return the digests of the template and the tokenizer.

    Raises:  InputError: sources were prepared with different ones, or with others than are here now.
    """
    fingerprints = {}
    for name in FINGERPRINTS:
        digests = {report[name] for report in prep_reports.values()}
        if len(digests) > 1:
            raise InputError(f"reports/prep: {name}: found {len(digests)} values, expected one. Run: dvc repro prep")
        fingerprints[name] = digests.pop()
    for source in prep_reports:
        template = PREPARED / source / "chat_template.jinja"
        if file_digest(template) != fingerprints["template_sha256"]:
            raise InputError(
                f"{template}: differs from template_sha256 in reports/prep/{source}.json, the template of the samples. "
                f"Run: dvc repro --force prep@{source}"
            )
    tokenizer = BASE / "tokenizer.json"
    if fingerprints["tokenizer_sha256"] != file_digest(tokenizer):
        raise InputError(f"{tokenizer}: differs from tokenizer_sha256 in reports/prep. Run: dvc repro prep")
    return fingerprints


def read_samples(
    prep_reports: Reports, params: Pack, spool: Path
) -> "tuple[list[RowGroup], SampleTable, ConversationTable]":
    """Return the row groups of all sources, in order, and the tables of their samples and conversations."""
    from sft.packing.sample_table import (
        build_tables,
        column_reader,
        count_rows,
        list_row_groups,
        measure_row_groups,
        measure_tasks,
    )

    groups = list_row_groups({source: PREPARED / source for source in prep_reports})
    rows = count_rows(groups, prep_reports)
    for source, report in prep_reports.items():
        if rows[source] != report["samples"]:
            raise InputError(
                f"{PREPARED / source}: found {rows[source]} samples, expected {report['samples']} "
                f"(reports/prep/{source}.json). Run: dvc repro --force prep@{source}"
            )
    in_windows = params.over_length == "window"
    if in_windows:
        from sft.packing.over_length import add_windows

        groups = add_windows(groups, params, load("prep"), spool)
        rows = count_rows(groups, prep_reports)
    tasks = measure_tasks(groups, params, spool)
    column = column_reader(map_shards(measure_row_groups, tasks, "measure samples"))
    samples, conversations = build_tables(column, rows, in_windows=in_windows)
    return groups, samples, conversations


class PackPlan(NamedTuple):
    """All that is known before a token is moved; its size does not grow with the data."""

    sort: "SortTasks"
    metadata: dict[str, Any]
    """metadata.json, without the digests of the files."""
    ledger: Ledger
    report: dict[str, Any]
    """reports/pack.json, without the ledger."""


def plan_packs(folder: Path, spool: Path, sources: Mapping[str, Source], params: Pack) -> PackPlan:
    """Plan the packs. Writes rejected.jsonl to a folder, and the plan of the sort to files of the spool."""
    from sft.packing.accounting import balance_ledgers, make_metadata, make_report, rejected_lines
    from sft.packing.external_sort import Layout, plan_sort
    from sft.packing.licenses import exclude, licenses_of
    from sft.packing.plan import plan_blend
    from sft.packing.sample_table import EXCLUDED, FITS, check_lengths
    from sft.parquet import release_memory

    prep_reports = read_prep_reports(sources)
    filter_reports = read_filter_reports(sources)
    fingerprints = check_fingerprints(prep_reports)
    groups, samples, conversations = read_samples(prep_reports, params, spool)
    release_memory()
    if unused := exclude(samples, licenses_of(conversations, sources), params.exclude_licenses):
        echo(f"[yellow]pack.exclude_licenses: no conversation has {escape('; '.join(unused))}[/]")
    if params.over_length == "error":
        check_lengths(samples, conversations, params)
    if len(samples) and ((samples.reason == EXCLUDED) | samples.has_windows).all():
        raise InputError("pack.exclude_licenses: no conversation has another license. Remove one of them.")
    if not (samples.reason == FITS).any():
        raise InputError(
            f"{PREPARED}: no sample with a trained token fits pack.pack_size {params.pack_size}. Raise pack.pack_size."
        )
    plan = plan_blend(samples, conversations, near_duplicates(samples, conversations, params, spool), sources, params)
    rows_in = sum(report["rows_out"] for report in prep_reports.values())
    ledger, balance = balance_ledgers(samples, conversations, plan, rows_in)
    with (folder / "rejected.jsonl").open("w", encoding="utf-8") as file:
        for line in rejected_lines(samples, conversations, plan, params.pack_size):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    release_memory()

    first = next(iter(prep_reports.values()))
    layout = Layout(params.pack_size, params.pad_segments_to, first["pad_id"], first["stop_id"])
    sort = plan_sort(plan.splits, samples, conversations, groups, layout, spool)
    metadata = make_metadata(samples, conversations, plan, sources, params, prep_reports, filter_reports)
    metadata |= {"npy": balance["tokens"] <= params.npy_max_tokens, **fingerprints}
    metadata |= {name: first[name] for name in ("stop_ids", "date") if name in first}
    if "untrained" in first:
        chosen = [report["untrained"] for report in prep_reports.values()]
        metadata["untrained"] = {
            name: sum(each[name] for each in chosen) if isinstance(value, int) else value
            for name, value in first["untrained"].items()
        }
    return PackPlan(sort, metadata, ledger, make_report(metadata, balance, samples, conversations, sources))


def near_duplicates(
    samples: "SampleTable", conversations: "ConversationTable", params: Pack, spool: Path
) -> NearDuplicates:
    """Return which conversations resemble a kept one, by `pack.near_duplicates`."""
    from sft.packing.plan import has_fitting_sample
    from sft.parquet import release_memory

    if params.near_duplicates is None:
        return NearDuplicates.none(len(conversations.ids))
    from sft.packing.near_duplicates import find_near_duplicates

    chosen = has_fitting_sample(samples, conversations)
    found = find_near_duplicates(conversations, chosen, params.near_duplicates, FILTERED, spool)
    release_memory()
    return found


def write_mixture(rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the mixture as a table for `dvc plots`."""
    rows = list(rows)
    with publish_file(MIXTURE) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def main() -> None:
    """Pack the blend."""
    from sft.packing.external_sort import write_packs
    from sft.parquet import release_memory

    params, blend = load("pack"), load("fetch.sources")
    sources = {name: blend[name] for name in by_precedence(blend, params.precedence)}
    check_shares({n: source.share for n, source in sources.items()}, {n: s.epochs for n, s in sources.items()})
    with publish_folder(PACKED) as folder:
        spool = folder.absolute() / "spool"
        spool.mkdir()
        sort, metadata, ledger, report = plan_packs(folder, spool, sources, params)
        check_packs({split: metadata["splits"][split]["packs"] for split in SPLITS})
        release_memory()  # the tables of samples, before workers need theirs
        write_packs(folder, sort)
        shutil.rmtree(spool)
        for split in SPLITS if metadata["npy"] else ():
            write_npy(folder / f"{split}.npy", read_lists(folder / split), metadata["splits"][split]["packs"])
        shutil.copyfile(PREPARED / next(iter(sources)) / "chat_template.jinja", folder / "chat_template.jinja")
        digests = {split: folder_digest(folder / split) for split in SPLITS}
        write_json(folder / "metadata.json", {**metadata, "digests": digests})
    write_mixture(metadata["mixture"]["sources"].values())
    print_summary(ledger.write(Path("reports/pack.json"), **report), metadata)


if __name__ == "__main__":
    run_stage(main, __doc__)
