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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.command import InputError, run_stage, say
from sft.data.blend import check_asked, describe_mixture, mixture_by_domain, plan_epochs, plan_repeats
from sft.data.packs import (
    CUT,
    Loss,
    Sample,
    build_pack,
    count,
    count_losses,
    fit_samples,
    lose,
    pack_fault,
    padded_length,
    write_npy,
)
from sft.data.splits import SPLITS, by_precedence, keyed_hash, settle_duplicates, split_conversations
from sft.files import file_digest, folder_digest, publish_file, publish_folder, read_json, write_json
from sft.ledger import Ledger
from sft.params import Pack, Source, load

BASE = Path("models/base")
FILTERED = Path("data/filtered")
PREPARED = Path("data/prepared")
PACKED = Path("data/packed")
MIXTURE = Path("reports/mixture.csv")
NOT_DRAWN = "not-drawn"
"""The reason of a fit conversation of the training split that the blend has no room for: counted, not listed."""


@dataclass(frozen=True)
class SplitPlan:
    """The packs of one split, before any is built."""

    samples: list[Sample]
    """Each copy of a repeated sample by itself, numbered by `repeat`."""
    bins: list[list[int]]
    """Indices into samples."""


@dataclass(frozen=True)
class BlendPlan:
    """What of the samples is packed where, and what is not."""

    splits: dict[str, SplitPlan]
    losses: list[Loss]
    available: dict[str, int]
    """Trained tokens of the training split by source, every conversation once."""
    epochs: dict[str, float]
    """How often the training split of each source is seen."""


def read_samples(sources: Iterable[str]) -> list[Sample]:
    """Read the samples of all sources, in order, each with its source."""
    from sft.data.shards import read_rows

    samples: list[Sample] = []
    for source in sources:
        report = Path(f"reports/prep/{source}.json")
        if not (PREPARED / source).is_dir() or not report.exists():
            raise InputError(f"{PREPARED / source}: not found. Run the prep stage first: dvc repro prep@{source}")
        before = len(samples)
        for row in read_rows(PREPARED / source):  # nothing predicts a first token, so it is never trained
            samples.append({**row, "source": source, "trained": sum(row["mask"][1:])})
        expected = read_json(report)["samples"]
        if len(samples) - before != expected:
            raise InputError(
                f"{PREPARED / source}: {len(samples) - before} samples, but {report} says {expected}. "
                f"The data was changed between stages: dvc repro --force prep@{source}"
            )
    return samples


def fingerprints(sources: Iterable[str]) -> dict[str, str]:
    """Return the digests of template and tokenizer that every source was prepared with."""
    found = {source: read_json(Path(f"reports/prep/{source}.json")) for source in sources}
    prints = {}
    for name in ("template_sha256", "tokenizer_sha256"):
        values = {report[name] for report in found.values()}
        if len(values) > 1:
            raise InputError(
                f"reports/prep: the sources were prepared with different {name.removesuffix('_sha256')}s. "
                "Prepare them alike: dvc repro prep"
            )
        prints[name] = values.pop()
    if prints["tokenizer_sha256"] != file_digest(BASE / "tokenizer.json"):
        raise InputError(f"{BASE}: another tokenizer than the data was prepared with. Run: dvc repro prep")
    return prints


def find_clusters(conversations: Sequence[tuple[str, str]], threshold: float) -> dict[str, str]:
    """Cluster conversations, (source, id), whose signatures are at least this similar."""
    from sft.data.duplicates import clusters
    from sft.data.shards import read_rows

    found: dict[str, bytes] = {}
    for source in dict.fromkeys(source for source, _ in conversations):
        for row in read_rows(FILTERED / source, "signatures-", ["id", "signature"]):
            found.setdefault(row["id"], row["signature"])
    ids = dict.fromkeys(conversation for _, conversation in conversations)
    if missing := [conversation for conversation in ids if conversation not in found]:
        raise InputError(
            f"{FILTERED}: {len(missing)} of {len(ids)} prepared conversations have no signature, such as {missing[0]}. "
            "Run the filter stage again: dvc repro filter prep"
        )
    return clusters([(conversation, found[conversation]) for conversation in ids], threshold)


def drop_duplicates(
    samples: Sequence[Sample], near_duplicates: float | None
) -> tuple[list[Sample], list[Loss], dict[str, str]]:
    """Keep of conversations that several sources have those of the first; return also who belongs together."""
    conversations = list(dict.fromkeys((sample["source"], sample["conversation_id"]) for sample in samples))
    clusters = {} if near_duplicates is None else find_clusters(conversations, near_duplicates)
    lost, groups = settle_duplicates(conversations, clusters)
    by_conversation = {(duplicate.source, duplicate.conversation): duplicate for duplicate in lost}
    kept: list[Sample] = []
    losses: list[Loss] = []
    for sample in samples:
        duplicate = by_conversation.get((sample["source"], sample["conversation_id"]))
        if duplicate is None:
            kept.append(sample)
        else:
            losses.append(lose(sample, duplicate.reason, f"{duplicate.kept} of {duplicate.kept_source} is kept"))
    return kept, losses, groups


def plan_blend(everything: Sequence[Sample], sources: Mapping[str, Source], params: Pack) -> BlendPlan:
    """Choose what is packed, in which split, how often; the order of reading decides nothing but who wins."""
    fitting, losses = fit_samples(everything, params.over_length, params.pack_size, params.pad_segments_to)
    if not fitting:
        raise InputError(f"{PREPARED}: no sample fits pack.pack_size {params.pack_size} tokens. Raise it.")
    samples, duplicates, groups = drop_duplicates(fitting, params.near_duplicates)
    sizes: dict[str, Counter[str]] = {source: Counter() for source in sources}
    for sample in samples:
        sizes[sample["source"]][sample["conversation_id"]] += sample["trained"]
    splits = split_conversations(sizes, params.validation, params.test, params.seed, groups)

    training = {
        source: [(conversation, trained) for conversation, trained in own.items() if splits[conversation] == "training"]
        for source, own in sizes.items()
    }
    shares = {source: described.share for source, described in sources.items()}
    epochs = {source: described.epochs for source, described in sources.items()}
    times = {
        conversation: number
        for own in plan_repeats(training, shares, epochs, params.seed).values()
        for conversation, number in own.items()
    }
    available = {source: sum(trained for _, trained in own) for source, own in training.items()}
    return BlendPlan(
        {split: plan_split(samples, split, splits, times, params) for split in SPLITS},
        losses + duplicates + [lose(s, NOT_DRAWN) for s in samples if times.get(s["conversation_id"]) == 0],
        available,
        plan_epochs(available, shares, epochs),
    )


def plan_split(
    samples: Iterable[Sample], split: str, splits: Mapping[str, str], times: Mapping[str, int], params: Pack
) -> SplitPlan:
    """Choose bin and order of every sample of a split; `times` says how often a conversation of training is in."""
    import numpy as np

    from sft.data.bins import plan_bins

    own = [
        {**sample, "repeat": repeat}
        for sample in samples
        if splits[sample["conversation_id"]] == split
        for repeat in range(times.get(sample["conversation_id"], 1))
    ]
    own.sort(key=lambda sample: (keyed_hash(params.seed, _name(sample)), sample["repeat"]))
    lengths = np.array([padded_length(len(sample["ids"]), params.pad_segments_to) for sample in own], np.int32)
    numbers = {conversation: number for number, (conversation, seen) in enumerate(times.items()) if seen > 1}
    repeated = np.array([numbers.get(sample["conversation_id"], -1) for sample in own], np.int32)
    bins = plan_bins(lengths, params.pack_size, repeated, np.array([sample["repeat"] for sample in own], np.int32))
    order = sorted(range(len(bins)), key=lambda place: keyed_hash(params.seed, f"pack:{bins.firsts()[place]}"))
    ordered = bins.take(np.array(order, np.int64))
    members = np.split(ordered.members, ordered.starts[1:-1]) if len(bins) else []
    return SplitPlan(own, [one.tolist() for one in members])


def _name(sample: Sample) -> str:
    return f"{sample['source']}:{sample['conversation_id']}:{sample['sample']}"


def write_split(folder: Path, split: str, plan: SplitPlan, params: Pack, ids: dict[str, int], npy: bool) -> None:
    """Build, check and write the packs of one split."""
    from sft.data.shards import PACKS, ShardWriter

    packs = []
    with ShardWriter(folder / split, "packs", PACKS) as shards:
        for members in plan.bins:
            pack = build_pack([plan.samples[i] for i in members], params.pad_segments_to, ids["pad"])
            if fault := pack_fault(pack, params.pack_size, ids["stop"]):
                raise InputError(f"{split}: pack with conversation {pack['conversation_id'][0]}: {fault}")
            shards.write(pack)
            if npy:
                packs.append(pack)
    if npy:
        write_npy(folder / f"{split}.npy", packs)


def write_rejected(path: Path, losses: Iterable[Loss]) -> None:
    """Write what was refused, a line each, in the order of the ids; not what only the draw left out."""
    refused = (loss for loss in losses if loss.reason not in (CUT, NOT_DRAWN))
    with path.open("w", encoding="utf-8") as file:
        for loss in sorted(refused, key=lambda loss: (loss.source, loss.conversation, loss.sample)):
            line = {name: getattr(loss, name) for name in ("source", "reason", "evidence")}
            file.write(json.dumps({"id": loss.conversation, **line}, ensure_ascii=False) + "\n")


def write_mixture(rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the mixture as a table for `dvc plots`."""
    with publish_file(MIXTURE) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def describe_split(plan: SplitPlan, params: Pack) -> dict[str, Any]:
    """Return the counts of one split, its efficiency, and its counts by source."""
    import numpy as np

    from sft.data.bins import lower_bound

    tokens = count(plan.samples)["tokens"]
    room = len(plan.bins) * params.pack_size
    names = sorted({sample["source"] for sample in plan.samples})
    return {
        **count(plan.samples),
        "packs": len(plan.bins),
        "fewest_packs": lower_bound(np.array([len(sample["ids"]) for sample in plan.samples]), params.pack_size),
        "packing_efficiency": round(tokens / room, 6) if room else None,
        "sources": {name: count([s for s in plan.samples if s["source"] == name]) for name in names},
    }


def describe_sources(
    packed: Sequence[Sample], losses: Sequence[Loss], fetched: Mapping[str, Source]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what is packed and what was lost, and why, of every source and of every domain."""
    sources = {
        source: {
            "domain": described.domain,
            "license": described.license,
            **count([s for s in packed if s["source"] == source]),
            "lost": count_losses([loss for loss in losses if loss.source == source]),
            "rejected_by_prep": read_json(Path(f"reports/prep/{source}.json"))["rejected"],
            "rejected_by_filter": read_json(Path(f"reports/filter/{source}.json"))["rejected"],
        }
        for source, described in fetched.items()
    }
    domains = {
        domain: {
            **count([s for s in packed if fetched[s["source"]].domain == domain]),
            "lost": count_losses([loss for loss in losses if fetched[loss.source].domain == domain]),
        }
        for domain in sorted({described.domain for described in fetched.values()})
    }
    return sources, domains


def token_ids() -> dict[str, int]:
    """Return the ids of the padding and of the stop token of models/base."""
    from sft.data.tokenizer import token_id

    stop = token_id(BASE, "eos_token")
    return {"stop": stop, "pad": token_id(BASE, "pad_token", default=stop)}


def account(
    everything: Sequence[Sample], packed: Sequence[Sample], losses: Sequence[Loss], prep_rows: int
) -> tuple[Ledger, dict[str, Any]]:
    """Return the ledger of conversations, and what else the report says of samples, tokens and trained tokens.

    A conversation is rejected when no sample of it is packed, for the reason for which the last one went.
    """
    kept = {(s["source"], s["conversation_id"]) for s in packed}
    whole = [loss for loss in losses if loss.reason != CUT]
    gone = {(loss.source, loss.conversation): loss.reason for loss in whole}
    conversations = Ledger(prep_rows, len(kept), Counter(reason for who, reason in gone.items() if who not in kept))
    once, repeated = [s for s in packed if not s["repeat"]], count([s for s in packed if s["repeat"]])
    samples = Ledger(len(everything), len(once), Counter(loss.reason for loss in whole))
    samples.check("pack, samples")

    came, went, lost = count(everything), count(packed), count_losses(losses)
    report: dict[str, Any] = {"samples": samples.report(), "repeated": repeated}
    for unit in ("tokens", "trained_tokens"):
        rejected = {reason: counts[unit] for reason, counts in lost.items()}
        Ledger(came[unit] + repeated[unit], went[unit], Counter(rejected)).check(f"pack, {unit}")
        report |= {unit: went[unit], f"{unit}_in": came[unit], f"{unit}_rejected": rejected}
    return conversations, report


def say_what_happened(report: Mapping[str, Any], pack_size: int) -> None:
    """Say how full the packs are and what was lost."""
    for split, figures in report["splits"].items():
        efficiency = figures["packing_efficiency"]
        say(
            f"[bold]{split}[/]: {figures['conversations']} conversations, {figures['packs']} packs of "
            f"{pack_size}, {'-' if efficiency is None else format(efficiency, '.2%')} full"
        )
    by_reason: dict[str, list[str]] = {}
    for source, lost in report["lost"]["sources"].items():
        for reason, counts in lost.items():
            by_reason.setdefault(reason, []).append(f"{counts['samples']} {source}")
    for reason, sources in sorted(by_reason.items()):
        tokens = report["tokens_rejected"][reason]
        say(f"[yellow]{reason}[/]: {tokens:,} tokens, samples by source: {', '.join(sources)}")
    if report["repeated"]["samples"]:
        say(f"repeated: {report['repeated']['samples']} samples, {report['repeated']['tokens']:,} tokens")


def main() -> None:
    """Pack the blend."""
    import numpy as np

    from sft.data.bins import length_quantiles

    params, fetch = load("pack", "fetch")
    fetched = {name: fetch.sources[name] for name in by_precedence(fetch.sources, params.precedence)}
    check_asked({s: d.share for s, d in fetched.items()}, {s: d.epochs for s, d in fetched.items()})
    everything = read_samples(fetched)
    prints, ids = fingerprints(fetched), token_ids()
    plan = plan_blend(everything, fetched, params)
    packed = [sample for split in SPLITS for sample in plan.splits[split].samples]
    conversations, balance = account(
        everything, packed, plan.losses, sum(read_json(Path(f"reports/prep/{s}.json"))["rows_out"] for s in fetched)
    )
    npy = balance["tokens"] <= params.npy_max_tokens
    splits = {split: describe_split(plan.splits[split], params) for split in SPLITS}
    sources, domains = describe_sources(packed, plan.losses, fetched)
    nothing = {"tokens": 0, "trained_tokens": 0}
    mixture = describe_mixture(
        plan.available,
        {source: splits["training"]["sources"].get(source, nothing) for source in fetched},
        {source: described.domain for source, described in fetched.items()},
        plan.epochs,
    )

    with publish_folder(PACKED) as folder:
        shutil.copyfile(PREPARED / next(iter(fetched)) / "chat_template.jinja", folder / "chat_template.jinja")
        for split in SPLITS:
            write_split(folder, split, plan.splits[split], params, ids, npy)
        write_rejected(folder / "rejected.jsonl", plan.losses)
        metadata = {
            "pack_size": params.pack_size,
            "pad_segments_to": params.pad_segments_to,
            "seed": params.seed,
            "sampled": any(read_json(Path(f"reports/filter/{source}.json"))["sampled"] for source in fetched),
            "npy": npy,
            **prints,
            "splits": splits,
            "sources": sources,
            "domains": domains,
            "mixture": {"sources": {row["source"]: row for row in mixture}, "domains": mixture_by_domain(mixture)},
            "digests": {split: folder_digest(folder / split) for split in SPLITS},
        }
        write_json(folder / "metadata.json", metadata)
    write_mixture(mixture)
    report = conversations.write(
        Path("reports/pack.json"),
        **balance,
        splits={split: {k: v for k, v in splits[split].items() if k != "sources"} for split in SPLITS},
        lost={
            "sources": {source: described["lost"] for source, described in sources.items()},
            "domains": {domain: described["lost"] for domain, described in domains.items()},
        },
        length_quantiles={
            source: length_quantiles(np.array([len(s["ids"]) for s in everything if s["source"] == source]))
            for source in fetched
        },
    )
    say_what_happened(report, params.pack_size)


if __name__ == "__main__":
    run_stage(main, __doc__)
