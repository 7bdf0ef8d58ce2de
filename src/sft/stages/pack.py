"""pack: samples of all sources -> packed sequences, split for training, validation and test.

data/prepared/<source>/*.parquet, data/filtered/<source>/signatures-*.parquet, models/base (tokenizer)
    ->  data/packed/{training,validation,test}/*.parquet   input_ids, loss_mask (shifted), seq_start_id
        data/packed/{training,validation,test}.npy         the same rows, for sets that fit in memory
        data/packed/metadata.json                          counts, mixture, fingerprints, digests, seeds
        data/packed/rejected.jsonl                         id, source, reason, evidence
        data/packed/chat_template.jinja                    the template that all sources were rendered with
        reports/pack.json                                  the ledger, lengths, what was lost by source and domain
        reports/mixture.csv                                the mixture, asked and achieved

In this order: a sample longer than a pack follows `pack.over_length`; what a source before it (by
`pack.precedence`) has too is dropped; conversations are held out by hash, per source, duplicates on one side;
those of the training split are drawn or repeated until the blend is the one asked for; samples are packed
best-fit over the whole split, copies of a conversation never into one pack; packs stand in a seeded order.

Whatever is taken away is counted by reason: tokens in + tokens repeated = tokens packed + tokens rejected.
"""

import csv
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sft.cli import InputError, echo, run_stage
from sft.files import publish_file, publish_folder, write_json
from sft.hashing import file_digest, folder_digest
from sft.ledger import Ledger, read_report
from sft.packing.blend import check_asked, describe_mixture, mixture_by_domain
from sft.packing.splits import SPLITS, by_precedence
from sft.packing.write import read_lists, write_npy
from sft.params.data import Pack, Source
from sft.params.read import load
from sft.workers import map_shards

if TYPE_CHECKING:
    from sft.packing.plan import Order, Plan
    from sft.packing.samples import Conversations, Group, Samples
    from sft.packing.shuffle import Shuffle

BASE = Path("models/base")
FILTERED = Path("data/filtered")
PREPARED = Path("data/prepared")
PACKED = Path("data/packed")
MIXTURE = Path("reports/mixture.csv")
FINGERPRINTS = ("template_sha256", "tokenizer_sha256")

Int32s = npt.NDArray[np.int32]


def filter_report(source: str) -> dict[str, Any]:
    """Read what the filter stage reports of a source. Raises InputError."""
    return read_report(Path(f"reports/filter/{source}.json"), rejected=dict, sampled=bool)


def prep_report(source: str) -> dict[str, Any]:
    """Read what the prep stage reports of a source. Raises InputError."""
    numbers, prints = dict.fromkeys(("rows_out", "samples", "stop_id", "pad_id"), int), dict.fromkeys(FINGERPRINTS, str)
    return read_report(Path(f"reports/prep/{source}.json"), rejected=dict, **numbers, **prints)


def read_samples(sources: Iterable[str], params: Pack, spool: Path) -> "tuple[list[Group], Samples, Conversations]":
    """Measure the samples of all sources, in order."""
    from sft.packing.samples import READ_TOKENS, cut_groups, join, list_groups, measure_groups, read_numbers
    from sft.parquet import release_memory

    for source in sources:
        if not (PREPARED / source).is_dir() or not Path(f"reports/prep/{source}.json").exists():
            raise InputError(f"{PREPARED / source}: not found. Run the prep stage first: dvc repro prep@{source}")
    groups = list_groups({source: PREPARED / source for source in sources})
    rows = Counter(dict.fromkeys(sources, 0))
    for group in groups:
        rows[group.source] += group.rows
    for source in sources:
        if rows[source] != (expected := prep_report(source)["samples"]):
            raise InputError(
                f"{PREPARED / source}: {rows[source]} samples, but reports/prep/{source}.json says {expected}. "
                f"The data was changed between stages: dvc repro --force prep@{source}"
            )
    fixed = {"pack": params.model_dump(), "spool": str(spool)}
    parts = [{"groups": part, **fixed} for part in cut_groups(groups, READ_TOKENS)]
    samples, conversations = join(read_numbers(map_shards(measure_groups, parts, "lengths")), rows)
    release_memory()
    return groups, samples, conversations


def fingerprints(sources: Iterable[str]) -> dict[str, str]:
    """Return the digests of template and tokenizer that every source was prepared with."""
    found = {source: prep_report(source) for source in sources}
    prints = {}
    for name in FINGERPRINTS:
        values = {report[name] for report in found.values()}
        if len(values) > 1:
            raise InputError(
                f"reports/prep: the sources were prepared with different {name.removesuffix('_sha256')}s. "
                "Prepare them alike: dvc repro prep"
            )
        prints[name] = values.pop()
    for source in found:
        template = PREPARED / source / "chat_template.jinja"
        if file_digest(template) != prints["template_sha256"]:
            raise InputError(
                f"{template}: not the template that reports/prep/{source}.json names, so not the one that the samples "
                f"were rendered with. Run: dvc repro --force prep@{source}"
            )
    if prints["tokenizer_sha256"] != file_digest(BASE / "tokenizer.json"):
        raise InputError(f"{BASE}: another tokenizer than the data was prepared with. Run: dvc repro prep")
    return prints


def group_near_duplicates(
    conversations: "Conversations", chosen: npt.NDArray[np.bool_], threshold: float, spool: Path
) -> Int32s:
    """Give every id the number of the first that it is alike with, by signatures; only chosen conversations count."""
    from sft.filters.dedup.across_sources import find_duplicate_groups

    wanted = np.zeros(len(conversations.ids), np.bool_)
    wanted[conversations.identity[chosen]] = True
    found: list[Int32s] = []
    first = find_duplicate_groups(_signatures(conversations, wanted, found), threshold, spool)
    identities = np.concatenate([*found, np.empty(0, np.int32)])
    if missing := int(wanted.sum()) - len(identities):
        none = wanted.copy()
        none[identities] = False
        raise InputError(
            f"{FILTERED}: {missing} of {wanted.sum()} prepared conversations have no signature, such as "
            f"{conversations.ids.names(none.nonzero()[0][:1])[0]}. Run the filter stage again: dvc repro filter prep"
        )
    cluster = np.arange(len(wanted), dtype=np.int32)
    cluster[identities] = identities[first]
    return cluster


def _signatures(
    conversations: "Conversations", wanted: npt.NDArray[np.bool_], found: list[Int32s]
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the signatures of wanted ids, each once, and add to `found` whose they are."""
    import pyarrow as pa

    from sft.filters.dedup.signatures import SIGNATURE_BYTES
    from sft.parquet import SIGNATURES, read_tables

    missing = wanted.copy()
    for number, source in enumerate(conversations.sources):
        own = np.zeros(len(wanted), np.bool_)
        own[conversations.identity[conversations.source == number]] = True
        for table in read_tables(FILTERED / source, "signatures-", schema=SIGNATURES) if own.any() else ():
            identity = conversations.ids.find(table["id"].combine_chunks())
            take = (identity >= 0) & own[identity] & missing[identity]
            missing[identity[take]] = False
            found.append(identity[take])
            sketches = b"".join(table["signature"].filter(pa.array(take)).to_pylist())
            yield np.frombuffer(sketches, np.uint8).reshape(-1, SIGNATURE_BYTES)


def write_rejected(path: Path, samples: "Samples", conversations: "Conversations", plan: "Plan", params: Pack) -> None:
    """Write what was refused, a line each, by source and id; not what only the draw left out."""
    from sft.packing.samples import FITS, NOT_DRAWN, OVER_LENGTH, REASONS, UNTRAINED

    refused = (samples.reason != FITS) & (samples.reason != NOT_DRAWN)
    with path.open("w", encoding="utf-8") as file:
        for source, number in sorted((name, number) for number, name in enumerate(conversations.sources)):
            own = np.flatnonzero(refused & (conversations.source == number)[samples.conversation])
            own = own[np.lexsort((samples.number[own], conversations.identity[samples.conversation[own]]))]
            names = conversations.texts(samples.conversation[own])
            for name, sample in zip(names, own.tolist(), strict=True):
                reason, length = samples.reason[sample], samples.length[sample]
                if reason == OVER_LENGTH:
                    evidence = f"sample {samples.number[sample]}: {length} tokens of {params.pack_size}"
                elif reason == UNTRAINED:
                    evidence = f"sample {samples.number[sample]}: none of {length} tokens is trained"
                else:
                    kept = plan.instead[samples.conversation[sample] :][:1]
                    evidence = f"{conversations.names(kept)[0]} of {conversations.sources_of(kept)[0]} is kept"
                line = {"id": name, "source": source, "reason": REASONS[reason], "evidence": evidence}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def write_mixture(rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the mixture as a table for `dvc plots`."""
    with publish_file(MIXTURE) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def describe_split(order: "Order", samples: "Samples", conversations: "Conversations", params: Pack) -> dict[str, Any]:
    """Return the counts of one split, its efficiency, and its counts by source."""
    from sft.packing.bins import lower_bound
    from sft.packing.samples import add_counts, count_by_source

    sources = count_by_source(samples, conversations, order.samples)
    total, packs = add_counts(sources.values()), len(order.packs) - 1
    return {
        **total,
        "packs": packs,
        "fewest_packs": lower_bound(samples.kept[order.samples], params.pack_size),
        "packing_efficiency": round(total["tokens"] / (packs * params.pack_size), 6) if packs else None,
        "sources": {source: sources[source] for source in sorted(sources) if sources[source]["samples"]},
    }


def describe_sources(
    samples: "Samples", conversations: "Conversations", plan: "Plan", fetched: Mapping[str, Source]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what is packed and what was lost, and why, of every source and of every domain."""
    from sft.packing.samples import add_counts, add_losses, count_by_source, count_losses

    packed = count_by_source(samples, conversations, np.concatenate([each.samples for each in plan.splits.values()]))
    begins = np.searchsorted(conversations.source[samples.conversation], range(len(fetched) + 1))
    lost = {source: count_losses(samples, slice(*begins[n : n + 2])) for n, source in enumerate(conversations.sources)}
    sources = {
        source: {
            "domain": described.domain,
            "license": described.license,
            **packed[source],
            "lost": lost[source],
            "rejected_by_prep": prep_report(source)["rejected"],
            "rejected_by_filter": filter_report(source)["rejected"],
        }
        for source, described in fetched.items()
    }
    domains: dict[str, Any] = {}
    for domain in sorted({described.domain for described in fetched.values()}):
        own = [source for source, described in fetched.items() if described.domain == domain]
        domains[domain] = {
            **add_counts(packed[source] for source in own),
            "lost": add_losses(lost[source] for source in own),
        }
    return sources, domains


def token_ids(source: str) -> dict[str, int]:
    """Return the ids of the padding and of the stop token, as prep reports them of any source."""
    report = prep_report(source)
    return {"stop": report["stop_id"], "pad": report["pad_id"]}


def account(
    samples: "Samples", conversations: "Conversations", plan: "Plan", prep_rows: int
) -> tuple[Ledger, dict[str, Any]]:
    """Return the ledger of conversations, and what else the report says of samples, tokens and trained tokens.

    A conversation is rejected when no sample of it is packed, for the reason for which the last one went.
    """
    from sft.packing.samples import DUPLICATE, FITS, NOT_DRAWN, REASONS, add_counts, count_by_source, count_losses

    order = np.concatenate([each.samples for each in plan.splits.values()])
    repeats = np.concatenate([each.repeats for each in plan.splits.values()])
    reason = np.full(len(conversations), FITS, np.uint8)
    for first, last in ((FITS + 1, DUPLICATE - 1), (DUPLICATE, NOT_DRAWN)):  # the later step decides
        own = (first <= samples.reason) & (samples.reason <= last)
        reason[samples.conversation[own]] = samples.reason[own]
    packed = np.zeros(len(conversations), np.bool_)
    packed[samples.conversation[order]] = True
    gone = np.bincount(reason[~packed], minlength=len(REASONS))
    rejected = Counter({REASONS[number]: int(gone[number]) for number in np.flatnonzero(gone)})
    ledger = Ledger(prep_rows, int(packed.sum()), rejected)

    lost = count_losses(samples, slice(None))
    whole = Counter({name: counts["samples"] for name, counts in lost.items() if name != REASONS[FITS]})
    of_samples = Ledger(len(samples), int((repeats == 0).sum()), whole)
    of_samples.check("pack, samples")
    repeated = add_counts(count_by_source(samples, conversations, order[repeats > 0]).values())
    report: dict[str, Any] = {"samples": of_samples.report(), "repeated": repeated}
    for unit, came, kept in (
        ("tokens", samples.length, samples.kept),
        ("trained_tokens", samples.trained, samples.trained_kept),
    ):
        total, went = int(came.sum(dtype=np.int64)), int(kept[order].sum(dtype=np.int64))
        by_reason = {name: counts[unit] for name, counts in lost.items()}
        Ledger(total + repeated[unit], went, Counter(by_reason)).check(f"pack, {unit}")
        report |= {unit: went, f"{unit}_in": total, f"{unit}_rejected": by_reason}
    return ledger, report


def say_what_happened(report: Mapping[str, Any], pack_size: int) -> None:
    """Say how full the packs are and what was lost."""
    for split, figures in report["splits"].items():
        efficiency = figures["packing_efficiency"]
        echo(
            f"[bold]{split}[/]: {figures['conversations']} conversations, {figures['packs']} packs of "
            f"{pack_size}, {'-' if efficiency is None else format(efficiency, '.2%')} full"
        )
    by_reason: dict[str, list[str]] = {}
    for source, lost in report["lost"]["sources"].items():
        for reason, counts in lost.items():
            by_reason.setdefault(reason, []).append(f"{counts['samples']} {source}")
    for reason, sources in sorted(by_reason.items()):
        tokens = report["tokens_rejected"][reason]
        echo(f"[yellow]{reason}[/]: {tokens:,} tokens, samples by source: {', '.join(sources)}")
    if report["repeated"]["samples"]:
        echo(f"repeated: {report['repeated']['samples']} samples, {report['repeated']['tokens']:,} tokens")


class Planned(NamedTuple):
    """All that is known before a token is moved; nothing in it grows with the data."""

    shuffle: "Shuffle"
    metadata: dict[str, Any]
    """What stands in metadata.json, but for digests of what is written."""
    mixture: list[dict[str, str | int | float]]
    ledger: Ledger
    report: dict[str, Any]
    """What stands in reports/pack.json beside the ledger."""


def plan_packs(folder: Path, spool: Path, fetched: Mapping[str, Source], params: Pack) -> Planned:
    """Plan the packs and describe them; write what was refused into a folder, and into the spool what goes where."""
    from sft.packing.bins import length_quantiles
    from sft.packing.plan import fitting, plan_blend
    from sft.packing.samples import FITS, refuse_over_length
    from sft.packing.shuffle import Layout, plan_shuffle
    from sft.parquet import release_memory

    groups, samples, conversations = read_samples(fetched, params, spool)
    prints, ids = fingerprints(fetched), token_ids(next(iter(fetched)))
    if params.over_length == "error":
        refuse_over_length(samples, conversations, params)
    if not (samples.reason == FITS).any():
        raise InputError(f"{PREPARED}: no sample fits pack.pack_size {params.pack_size} tokens. Raise it.")
    cluster = np.arange(len(conversations.ids), dtype=np.int32)
    if params.near_duplicates is not None:
        cluster = group_near_duplicates(conversations, fitting(samples, conversations), params.near_duplicates, spool)
        release_memory()
    plan = plan_blend(samples, conversations, cluster, fetched, params)
    del cluster
    prep_rows = sum(prep_report(source)["rows_out"] for source in fetched)
    ledger, balance = account(samples, conversations, plan, prep_rows)
    write_rejected(folder / "rejected.jsonl", samples, conversations, plan, params)
    release_memory()

    layout = Layout(params.pack_size, params.pad_segments_to, ids["pad"], ids["stop"])
    shuffle = plan_shuffle(plan.splits, samples, conversations, groups, layout, spool)
    splits = {split: describe_split(plan.splits[split], samples, conversations, params) for split in SPLITS}
    sources, domains = describe_sources(samples, conversations, plan, fetched)
    nothing = {"tokens": 0, "trained_tokens": 0}
    mixture = describe_mixture(
        plan.available,
        {source: splits["training"]["sources"].get(source, nothing) for source in fetched},
        {source: described.domain for source, described in fetched.items()},
        plan.epochs,
    )
    metadata = {
        "pack_size": params.pack_size,
        "pad_segments_to": params.pad_segments_to,
        "seed": params.seed,
        "sampled": any(filter_report(source)["sampled"] for source in fetched),
        "npy": balance["tokens"] <= params.npy_max_tokens,
        **prints,
        "splits": splits,
        "sources": sources,
        "domains": domains,
        "mixture": {"sources": {row["source"]: row for row in mixture}, "domains": mixture_by_domain(mixture)},
    }
    source_of = conversations.source[samples.conversation]
    report = {
        "origins": {source: described.origin for source, described in sorted(fetched.items()) if described.origin},
        **balance,
        "splits": {split: {k: v for k, v in splits[split].items() if k != "sources"} for split in SPLITS},
        "lost": {
            "sources": {source: described["lost"] for source, described in sources.items()},
            "domains": {domain: described["lost"] for domain, described in domains.items()},
        },
        "length_quantiles": {
            source: length_quantiles(samples.length[source_of == number])
            for number, source in enumerate(conversations.sources)
        },
    }
    return Planned(shuffle, metadata, mixture, ledger, report)


def main() -> None:
    """Pack the blend."""
    from sft.packing.shuffle import write_packs
    from sft.parquet import release_memory

    params, sources = load("pack"), load("fetch.sources")
    fetched = {name: sources[name] for name in by_precedence(sources, params.precedence)}
    check_asked({s: d.share for s, d in fetched.items()}, {s: d.epochs for s, d in fetched.items()})
    with publish_folder(PACKED) as folder:
        spool = folder.absolute() / "spool"
        spool.mkdir()
        shuffle, metadata, mixture, ledger, described = plan_packs(folder, spool, fetched, params)
        release_memory()  # so that memory holds no sample while workers hold theirs
        write_packs(folder, shuffle)
        shutil.rmtree(spool)
        for split in SPLITS if metadata["npy"] else ():
            write_npy(folder / f"{split}.npy", read_lists(folder / split))
        shutil.copyfile(PREPARED / next(iter(fetched)) / "chat_template.jinja", folder / "chat_template.jinja")
        digests = {split: folder_digest(folder / split) for split in SPLITS}
        write_json(folder / "metadata.json", {**metadata, "digests": digests})
    write_mixture(mixture)
    say_what_happened(ledger.write(Path("reports/pack.json"), **described), params.pack_size)


if __name__ == "__main__":
    run_stage(main, __doc__)
